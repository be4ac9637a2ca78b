"""At the source's site: runs each migration through the table of `states` until it has ended.

Each state has one step, a coroutine that does what the state asks for and returns what came of it. Steps may be repeated: all
that they ask of agents and peers is idempotent. So a gateway that was restarted, or that takes over from another one, goes on by
running the step of the state that the store has, and recovery has no code of its own.

Of the migrations from this site, a gateway runs those whose row names it. `look` starts and stops runs as rows come and go
(`succession` moves them); a run that meets TakenOver ends without another act.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field

import structlog

from gateway.config import PatienceSettings
from gateway.migration.arriving import Arriving
from gateway.migration.deliveries import Deliveries
from gateway.migration.inventory import Inventory
from gateway.migration.leaving import Leaving
from gateway.migration.ledger import Ledger, has_ended, state_of
from gateway.migration.moving import Moving
from gateway.migration.proofs import Proofs
from gateway.migration.reports import Reports
from gateway.migration.resolving import Resolving
from gateway.migration.states import CANCELLABLE, TRANSITIONS, Input, State
from gateway.migration.steps import Outcome, pause
from gateway.migration.survey import Preflight
from gateway.migration.wan_counts import WanCounts
from gateway.store import Row
from gateway.tunnel.tunnels import Tunnels
from landbridge.errors import LandbridgeError, TakenOver

log = structlog.get_logger()


@dataclass
class _Run:
    row: Row
    task: asyncio.Task[None] | None = None
    step: asyncio.Task[Outcome] | None = None


@dataclass
class Runs:
    """Of the migrations that this gateway coordinates."""

    ledger: Ledger
    inventory: Inventory
    tunnels: Tunnels
    patience: PatienceSettings
    deliveries: Deliveries
    reports: Reports
    leaving: Leaving
    _runs: dict[str, _Run] = field(default_factory=dict)
    _estimating: set[asyncio.Task[None]] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Set up what is derived: the counts, the proofs, and the table of steps."""
        self._counts = WanCounts(self.tunnels.pump)
        self._proofs = Proofs(self.inventory, self.patience.outage, self.ledger.changed)
        moving = Moving(self.ledger, self.inventory, self.tunnels, self.patience, self.reports, self._counts)
        resolving = Resolving(self.ledger, self.inventory, self.tunnels, self.patience, self.deliveries, self.leaving)
        arriving = Arriving(self.ledger, self.inventory, self._proofs, self._counts)
        self._steps: dict[State, Callable[[Row], Coroutine[None, None, Outcome]]] = {
            State.REQUESTED: moving.requested,
            State.PREPARING: moving.preparing,
            State.COPYING_DISKS: moving.moving,
            State.COPYING_MEMORY: moving.moving,
            State.SWITCHING: moving.moving,
            State.RESOLVING: resolving.resolving,
            State.CLEANING: resolving.cleaning,
            State.ACTIVATING: arriving.activating,
            State.VERIFYING: arriving.verifying,
        }

    def look(self) -> None:
        """Run what is this gateway's now, stop what is no more, and note what was asked for at another gateway."""
        self.hold_limits()
        for row in self.ledger.rows():
            run, own = self._runs.get(row.migration.id), self.ledger.is_own(row)
            if own and row.cancel_wish and not row.cancel_requested and state_of(row) in CANCELLABLE:
                row.cancel_requested = True
                row.cause = f"cancelled by {row.cancel_wish}"
                self.interrupt(row)
            if run is not None and run.task is not None and not own:
                log.warning("migration.lost", migration=row.migration.id, coordinator=row.coordinator)
                run.task.cancel()
            elif run is None and own and not has_ended(row):
                log.info("migration.resumed", migration=row.migration.id, state=state_of(row).name)
                self.start(row)

    def start(self, row: Row) -> None:
        """Run a migration, which the store has, until it has ended."""
        if row.migration.id in self._runs:
            return
        self._counts.begin(row)
        run = self._runs[row.migration.id] = _Run(row)
        run.task = asyncio.create_task(self._go(run), name=f"migration {row.migration.id}")

    def estimate(self, row: Row, found: Preflight) -> None:
        """Add the estimate to a migration that has begun, once it is made; one that has ended by then has none."""
        task = asyncio.create_task(self._estimate(row, found), name=f"estimate of {row.migration.id}")
        self._estimating.add(task)
        task.add_done_callback(self._estimating.discard)

    async def _estimate(self, row: Row, found: Preflight) -> None:
        known = len(found.findings)
        await found.complete()
        if found.estimate is not None and self.ledger.is_own(row) and not has_ended(row):
            row.migration.estimate.CopyFrom(found.estimate)
            row.migration.findings.extend(found.findings[known:])
            self.ledger.changed(row)

    def interrupt(self, row: Row) -> None:
        """Stop its present step, so that the run sees what was asked for; nothing if this gateway does not run it."""
        run = self._runs.get(row.migration.id)
        if run is not None and run.step is not None:
            run.step.cancel()

    async def _go(self, run: _Run) -> None:
        row = run.row
        try:
            while not has_ended(row):
                state = state_of(row)
                if row.cancel_requested and state in CANCELLABLE:
                    outcome = Outcome(Input.CANCEL, row.cause)
                elif (result := await self._step(run)) is None:
                    continue
                else:
                    outcome = result
                if outcome.event is Input.TROUBLE:
                    if Input.TROUBLE not in TRANSITIONS[state_of(row)]:
                        # Who must answer has left the configuration; a migration is not forgotten for that.
                        self.ledger.note(row, outcome.reason or "")
                        await pause()
                        continue
                    row.cause = row.cause or outcome.reason or ""
                row.migration.ClearField("silent_ms")
                await self.ledger.advance(row, outcome.event, outcome.reason)
                self.reports.send(row)
                if outcome.event is Input.VERIFIED:
                    await self._proofs.end(row.migration)
        except TakenOver as error:
            log.warning("migration.lost", migration=row.migration.id, reason=error.message)
        finally:
            self._runs.pop(row.migration.id, None)
            self._counts.end(row)
            self.hold_limits()

    async def _step(self, run: _Run) -> Outcome | None:
        """Run the step of the present state; None if the operator's wish to cancel has interrupted it."""
        step = run.step = asyncio.create_task(self._steps[state_of(run.row)](run.row))
        try:
            await asyncio.wait({step})
        finally:
            step.cancel()
            run.step = None
        try:
            return step.result()
        except asyncio.CancelledError:
            return None
        except TakenOver:
            raise
        except LandbridgeError as error:
            return Outcome(Input.TROUBLE, error.message)
        except Exception:  # a defect must end in the same recovery as any other trouble
            log.exception("migration.defect", migration=run.row.migration.id)
            return Outcome(Input.TROUBLE, "an internal error of this gateway interrupted it; see the gateway's log")

    def hold_limits(self) -> None:
        """Have the tunnels hold the limits of all migrations from this site that are under way."""
        rows = (row for row in self.ledger.rows() if row.coordinating and not has_ended(row))
        self.tunnels.set_migration_limits(
            {row.migration.id: row.migration.limit for row in rows if row.migration.limit}
        )

    async def close(self) -> None:
        """Stop running; the store has what the next run needs."""
        tasks = [*(run.task for run in self._runs.values() if run.task), *self._estimating]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

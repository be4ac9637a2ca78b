"""Has both ends of a migration hash what they have stored, and compares: the step of the state VERIFYING.

    destination   asked until it tells what the guest has written, and then until it has hashed the rest
    source        told what to leave out, and asked until it has hashed the same blocks
    compare       two readings of the same attempt
    end           both are told that they may forget it

All of it may be asked again, by this gateway or another: nothing is remembered here. Who does not answer is waited for as long as
the network between the hosts of a migration; the VM runs meanwhile, and what is not proved then is said to be so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

from gateway.migration import proof as rules
from gateway.migration.inventory import Inventory
from gateway.remote import FACTS, WORK
from gateway.store import Row
from landbridge.errors import HostUnreachable, LandbridgeError, ProtocolError, Unreachable
from landbridge.v1.agent_pb2 import ProveRequest, ProveResponse, ProveState
from landbridge.v1.peer_pb2 import PeerProveRequest
from landbridge.v1.types_pb2 import Migration, Proof, ProofOutcome

log = structlog.get_logger()

# Seconds between two questions how far the hosts are.
INTERVAL = 1.0
Ask = Callable[[ProveRequest], Awaitable[ProveResponse]]


class _Failed(Exception):  # noqa: N818 - an outcome
    """It cannot be had; why, as a clause."""


@dataclass(frozen=True)
class Proofs:
    """What is asked of whom. `changed` is told when a row has news for those who watch it."""

    inventory: Inventory
    patience: float
    changed: Callable[[Row], None]

    async def prove(self, row: Row) -> None:
        """Fill in the migration's proof, whatever the outcome. Returns when there is one."""
        migration, loop = row.migration, asyncio.get_running_loop()
        began = loop.time()
        migration.proof.CopyFrom(Proof(outcome=ProofOutcome.PROOF_OUTCOME_UNDER_WAY))
        try:
            here, there = await self._read(row)
            migration.proof.downtime_us = there.downtime_us
            migration.proof.disks.extend(rules.compare(here.disks, there.disks, there.left_out))
            rules.conclude(migration.proof, migration)
        except (_Failed, ProtocolError) as error:
            migration.proof.outcome = ProofOutcome.PROOF_OUTCOME_NOT_PROVED
            migration.proof.reason = str(error).rstrip(".")
        migration.proof.duration_ms = round((loop.time() - began) * 1000)
        migration.proof.ClearField("bytes_done")
        migration.proof.ClearField("bytes_total")
        log.info(
            "proof.ended",
            migration=migration.id,
            outcome=ProofOutcome.Name(migration.proof.outcome),
            reason=migration.proof.reason,
        )

    async def _read(self, row: Row) -> tuple[ProveResponse, ProveResponse]:
        """Both readings of one attempt, the source's first. Raises _Failed."""
        migration = row.migration
        here, there = ProveResponse(), ProveResponse()
        while True:
            there = await self._patiently(row, self._destination(migration), ProveRequest(migration=migration.id))
            _require(there, "destination")
            if there.left_out or there.state == ProveState.PROVE_STATE_DONE:
                here = await self._ask_source(row, there)
            _show(migration.proof, here, there)
            self.changed(row)
            is_done = here.state == there.state == ProveState.PROVE_STATE_DONE
            if is_done and here.attempt == there.attempt:
                return here, there
            await asyncio.sleep(INTERVAL)

    async def _ask_source(self, row: Row, there: ProveResponse) -> ProveResponse:
        source, request = self._source(row.migration), ProveRequest(migration=row.migration.id, attempt=there.attempt)
        here = await self._patiently(row, source, request)
        if here.state == ProveState.PROVE_STATE_UNKNOWN:
            request.begin = True
            request.left_out.extend(there.left_out)
            here = await self._patiently(row, source, request)
        _require(here, "source")
        return here

    async def _patiently(self, row: Row, ask: Ask, request: ProveRequest) -> ProveResponse:
        """The answer, through a silence no longer than the patience. Raises _Failed."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.patience
        while True:
            try:
                answer = await ask(request)
            except (Unreachable, HostUnreachable) as error:
                if loop.time() > deadline:
                    raise _Failed(error.message) from error
                row.migration.proof.reason = f"{error.message}; the VM runs, and the proof waits"
                self.changed(row)
            except LandbridgeError as error:
                raise _Failed(error.message) from error
            else:
                row.migration.proof.reason = ""
                return answer
            await asyncio.sleep(INTERVAL)

    def _source(self, migration: Migration) -> Ask:
        async def ask(request: ProveRequest) -> ProveResponse:
            agent = self.inventory.agent(migration.source_host)
            return await agent.ask(agent.stub.Prove, request, WORK)

        return ask

    def _destination(self, migration: Migration) -> Ask:
        async def ask(request: ProveRequest) -> ProveResponse:
            remote = self.inventory.site_named(migration.destination_site).remote
            return (await remote.ask(remote.stub.Prove, PeerProveRequest(prove=request), WORK)).prove

        return ask

    async def end(self, migration: Migration) -> None:
        """Tell both ends that it is over, once that is durable; whom it does not reach forgets by itself, in time."""
        request = ProveRequest(migration=migration.id, end=True)
        for ask in (self._source(migration), self._destination(migration)):
            try:
                await asyncio.wait_for(ask(request), FACTS)
            except (LandbridgeError, TimeoutError) as error:
                log.info("proof.not_ended", migration=migration.id, why=str(error))


def _require(answer: ProveResponse, end: str) -> None:
    if answer.state == ProveState.PROVE_STATE_FAILED:
        raise _Failed(f"at the {end}: {answer.problem}")
    if answer.state == ProveState.PROVE_STATE_UNSPECIFIED:
        raise _Failed(f"the {end}'s agent does not know of proofs: update it")


def _show(proof: Proof, here: ProveResponse, there: ProveResponse) -> None:
    proof.bytes_done = here.bytes_done + there.bytes_done
    proof.bytes_total = max(here.bytes_total, there.bytes_total) * 2

"""What a destination concludes of a migration whose source is not heard: from what it has told, and from what the host here says."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from gateway.migration.incoming import Incoming
from gateway.migration.ledger import Ledger
from gateway.migration.states import ENDED, State
from gateway.migration.stranded import Stranded
from gateway.store import Row, Store
from landbridge.errors import HostUnreachable, LandbridgeError, NotFound, PermissionDenied, Unreachable
from landbridge.v1.agent_pb2 import Stage, WatchRequest, WatchResponse
from landbridge.v1.peer_pb2 import PeerGetReportRequest, PeerGetReportResponse
from landbridge.v1.types_pb2 import Migration, ProofOutcome

if TYPE_CHECKING:
    from gateway.authorization.authority import Authority
    from gateway.migration.deliveries import Deliveries
    from gateway.migration.inventory import Inventory
    from gateway.tunnel.pump import Pump
    from gateway.tunnel.tunnels import Tunnels

ID = "3f2a8c1d-0b7e-4f64-9a53-d0c7a1e5b912"
PATIENCE = 900.0
GONE = Unreachable("site fra does not answer")
ACTIVE, ARRIVED, PREPARED = Stage.STAGE_ACTIVE, Stage.STAGE_ARRIVED, Stage.STAGE_PREPARED


class Source:
    """Another site: an error, or how the migration stands there."""

    def __init__(self, says: LandbridgeError | State) -> None:
        self.says = says
        self.stub = SimpleNamespace(GetReport="GetReport")

    async def ask(self, _: str, request: PeerGetReportRequest, _timeout: float) -> PeerGetReportResponse:
        if isinstance(self.says, LandbridgeError):
            raise self.says
        told = migration()
        told.id, told.state = request.migration, self.says.value
        return PeerGetReportResponse(migration=told)


class Host:
    """An agent that says how far it is."""

    def __init__(self, stage: Stage.ValueType) -> None:
        self.stage = stage
        self.asked: list[str] = []
        self.error: dict[str, LandbridgeError] = {}
        self.stub = SimpleNamespace(Watch="Watch", Activate="Activate", Prove="Prove")

    async def follow(self, _: str, request: WatchRequest) -> AsyncIterator[WatchResponse]:
        if error := self.error.get("Watch"):
            raise error
        yield WatchResponse(migration=request.migration, stage=self.stage)
        raise AssertionError("one snapshot is enough")

    async def ask(self, method: str, _: object, _timeout: float) -> None:
        self.asked.append(method)
        if error := self.error.get(method):
            raise error


class Here:
    """The destination."""

    def __init__(self, ledger: Ledger, host: Host, source: Source) -> None:
        self.ledger = ledger
        inventory = SimpleNamespace(
            site="ams", agent=lambda _: host, site_named=lambda _: SimpleNamespace(remote=source)
        )
        deliveries = SimpleNamespace(followed=self._nothing)
        pump = SimpleNamespace(forget_counts=lambda _: None)
        self.incoming = Incoming(
            ledger,
            cast("Inventory", inventory),
            cast("Pump", pump),
            cast("Authority", None),
            cast("Deliveries", deliveries),
        )
        self.stranded = Stranded(
            ledger,
            cast("Inventory", inventory),
            cast("Tunnels", None),
            cast("Authority", None),
            self.incoming,
            PATIENCE,
        )

    async def _nothing(self, _: str) -> None:
        return

    async def caught_up(self, *, silent: bool = False, proved: bool = False) -> Migration:
        row = Row(migration=migration(), coordinating=False)
        row.migration.policy.verify_disks = proved
        await self.ledger.save(row)
        if silent:
            row.migration.updated_at.FromDatetime(datetime.now(UTC) - timedelta(seconds=PATIENCE + 1))
        await self.stranded.catch_up(row)
        return row.migration


def migration() -> Migration:
    return Migration(
        id=ID,
        state=State.SWITCHING.value,
        vm="web-01",
        source_site="fra",
        source_host="fra-1",
        destination_site="ams",
        destination_host="ams-1",
    )


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    async def record(_row: Row, _before: State | None) -> None:
        pass

    store = Store(f"sqlite:///{tmp_path}/gateway.db", "gw-1")
    ledger = Ledger(store, record)
    await ledger.load()
    yield ledger
    store.close()


@pytest.mark.parametrize(
    ("says", "stage", "silent", "proved", "ends"),
    [
        (GONE, ACTIVE, False, False, State.COMPLETED),
        (GONE, ACTIVE, True, False, State.COMPLETED),
        (NotFound("it was built anew"), ACTIVE, False, False, State.COMPLETED),
        # Whoever wants the disks compared waits.
        (GONE, ACTIVE, False, True, State.SWITCHING),
        (GONE, ACTIVE, True, True, State.COMPLETED),
        # What waits, waits; what is on its way, too; and what the host has forgotten. What it has given up has failed.
        (GONE, ARRIVED, True, False, State.SWITCHING),
        (GONE, PREPARED, True, False, State.SWITCHING),
        (GONE, Stage.STAGE_FAILED, False, False, State.SWITCHING),
        (GONE, Stage.STAGE_FAILED, True, True, State.FAILED),
        (GONE, Stage.STAGE_UNKNOWN, True, False, State.SWITCHING),
        # Where the source answers, its word counts, and if it has none, nobody's.
        (State.ACTIVATING, ACTIVE, True, False, State.ACTIVATING),
        (State.COMPLETED, ARRIVED, False, False, State.COMPLETED),
        (PermissionDenied("no"), ACTIVE, True, False, State.SWITCHING),
    ],
)
async def test_a_migration_whose_source_cannot_be_asked_ends_as_the_host_here_knows(
    ledger: Ledger, says: Any, stage: Stage.ValueType, silent: bool, proved: bool, ends: State
) -> None:
    here = Here(ledger, Host(stage), Source(says))
    found = await here.caught_up(silent=silent, proved=proved)
    assert State(found.state) is ends
    is_concluded = ends in ENDED and isinstance(says, LandbridgeError)
    is_completed = is_concluded and ends is State.COMPLETED
    assert ("host ams-1 says that web-01 was let run there" in found.reason) is is_completed
    assert ("host ams-1 says that nothing of web-01 is there" in found.reason) is (is_concluded and not is_completed)
    assert found.HasField("ended_at") is is_concluded
    assert (found.proof.outcome == ProofOutcome.PROOF_OUTCOME_NOT_PROVED) is (is_completed and proved)


async def test_what_a_person_can_do_is_said_of_a_vm_that_waits_once_nobody_expects_the_source_any_more(
    ledger: Ledger,
) -> None:
    here = Here(ledger, Host(ARRIVED), Source(GONE))
    assert (await here.caught_up()).reason == ""
    assert (await here.caught_up(silent=True)).reason == (
        "site fra does not answer; web-01 has arrived whole and waits on host ams-1: if site fra is lost for good, an admin can let it "
        "run, with landbridge activate 3f2a8c1d"
    )


async def test_a_host_that_does_not_answer_either_changes_nothing(ledger: Ledger) -> None:
    host = Host(ACTIVE)
    host.error["Watch"] = HostUnreachable("host ams-1 does not answer")
    found = await Here(ledger, host, Source(GONE)).caught_up(silent=True)
    assert (State(found.state), found.reason) == (State.SWITCHING, "")


async def test_a_vm_that_somebody_has_taken_away_since_does_not_keep_its_migration_under_way(ledger: Ledger) -> None:
    host = Host(ACTIVE)
    host.error["Activate"] = NotFound("there is no such VM")
    assert State((await Here(ledger, host, Source(GONE)).caught_up()).state) is State.COMPLETED


async def test_a_report_that_comes_while_the_host_is_asked_is_the_end(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Host(ACTIVE)
    here = Here(ledger, host, Source(GONE))

    async def ask(method: str, _request: object, _timeout: float) -> None:
        told = migration()
        told.state = State.COMPLETED.value
        await here.incoming.report(told, "fra")

    monkeypatch.setattr(host, "ask", ask)
    assert (await here.caught_up()).reason == ""

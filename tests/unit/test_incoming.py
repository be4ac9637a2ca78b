"""Another site's gateway: what it may have written to this site's log, and how fast."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest
from structlog.testing import capture_logs

from certs.identity import Identity, parse
from gateway.authorization.request import domain_digest, mapping_digest
from gateway.migration import proof
from gateway.migration.incoming import ALLOWANCE, Incoming
from gateway.migration.ledger import Ledger
from gateway.migration.states import State
from gateway.store import Row, Store
from landbridge.errors import Conflict, PermissionDenied, PolicyRefused
from landbridge.v1 import agent_pb2
from landbridge.v1.types_pb2 import Migration

if TYPE_CHECKING:
    from gateway.authorization.authority import Authority
    from gateway.migration.deliveries import Deliveries
    from gateway.migration.inventory import Inventory
    from gateway.tunnel.pump import Pump

BRU: Identity = parse("spiffe://example.org/site/bru/gateway/gw-1")
FRA: Identity = parse("spiffe://example.org/site/fra/gateway/gw-1")
UUID = "11111111-2222-4333-8444-555555555555"


class Here:
    """A destination, with a log that is a list, and a policy that is asked and says no."""

    def __init__(self, ledger: Ledger, written: list[tuple[str, State]]) -> None:
        self.ledger = ledger
        self.written = written
        self.now = 0.0
        self.asked = 0
        inventory = SimpleNamespace(site="ams", agent=lambda _host: None)
        authority = SimpleNamespace(claims=lambda *_: None, authorize=self._refuse)
        deliveries = SimpleNamespace(followed=self._nothing)
        pump = SimpleNamespace(forget_counts=lambda _: None)
        self.incoming = Incoming(
            ledger,
            cast("Inventory", inventory),
            cast("Pump", pump),
            cast("Authority", authority),
            cast("Deliveries", deliveries),
            lambda: self.now,
        )

    async def _refuse(self, *_: object, **__: object) -> None:
        self.asked += 1
        raise PolicyRefused("site ams takes nothing")

    async def _nothing(self, _: str) -> None:
        return

    async def prepare(self, id_: str, source: Identity = BRU) -> None:
        migration = brought(id_, source=source.site)
        request = agent_pb2.PrepareRequest(migration=id_, role=agent_pb2.Role.ROLE_DESTINATION)
        request.source_site, request.destination_site, request.vm.uuid = source.site, "ams", UUID
        migration.domain_sha256, migration.mapping_sha256 = domain_digest(""), mapping_digest(request.mapping)
        request.verify_disks = proof.is_wanted(migration)
        await self.incoming.prepare(migration, request, source)

    async def admitted(self, id_: str, state: State = State.PREPARING, source: str = "bru") -> None:
        await self.ledger.save(Row(migration=brought(id_, state, source), coordinating=False))

    async def report(self, id_: str, state: State, source: str = "bru") -> None:
        await self.incoming.report(brought(id_, state, source), source)

    def state(self, id_: str) -> State:
        row = self.ledger.get(id_)
        assert row is not None
        return State(row.migration.state)


def brought(id_: str, state: State = State.PREPARING, source: str = "bru") -> Migration:
    return Migration(id=id_, state=state.value, source_site=source, destination_site="ams", vm_uuid=UUID)


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Here]:
    written: list[tuple[str, State]] = []

    async def record(row: Row, _before: State | None) -> None:
        written.append((row.migration.id, State(row.migration.state)))

    store = Store(f"sqlite:///{tmp_path}/gateway.db", "gw-1")
    ledger = Ledger(store, record)
    await ledger.load()
    yield Here(ledger, written)
    store.close()


async def test_a_site_that_reports_back_and_forth_does_not_fill_the_log(here: Here) -> None:
    await here.admitted("aaaa1111")
    await here.report("aaaa1111", State.SWITCHING)
    both = (State.COPYING_MEMORY, State.SWITCHING)
    for number in range(ALLOWANCE - 1):
        await here.report("aaaa1111", both[number % 2])
    with capture_logs() as logged:
        for number in range(ALLOWANCE - 1, ALLOWANCE + 20):
            if both[number % 2] is not here.state("aaaa1111"):
                with pytest.raises(
                    Conflict, match=r"site bru has brought site ams more than 200 changes .* a minute later"
                ):
                    await here.report("aaaa1111", both[number % 2])
    assert len(here.written) == 1 + ALLOWANCE
    assert [(each["event"], each["site"]) for each in logged] == [("peer.too_much", "bru")]
    # What changes no state is no entry, another site has its own allowance, and all of it comes back.
    await here.report("aaaa1111", here.state("aaaa1111"))
    await here.admitted("bbbb2222", source="fra")
    await here.report("bbbb2222", State.COPYING_DISKS, "fra")
    here.now += 60
    await here.report("aaaa1111", State.COMPLETED)
    assert here.state("aaaa1111") is State.COMPLETED


async def test_a_site_that_brings_migrations_without_end_does_not_fill_the_log(here: Here) -> None:
    for number in range(ALLOWANCE):
        with pytest.raises(PolicyRefused):
            await here.prepare(f"{number:08x}")
    with pytest.raises(Conflict, match="more than 200 migrations in a minute: begin this one again a minute later"):
        await here.prepare("ffffffff")
    assert here.asked == ALLOWANCE
    with pytest.raises(PolicyRefused):
        await here.prepare("ffffffff", FRA)
    # What was let in goes on.
    await here.admitted("aaaa1111")
    await here.report("aaaa1111", State.COPYING_DISKS)
    here.now += 60
    with pytest.raises(PolicyRefused):
        await here.prepare("ffffffff")


@pytest.mark.parametrize(
    ("present", "told"),
    [
        (State.COPYING_DISKS, State.REQUESTED),
        (State.COPYING_DISKS, State.PREPARING),
        (State.ACTIVATING, State.COPYING_MEMORY),
        (State.CLEANING, State.COMPLETED),
        (State.VERIFYING, State.FAILED),
    ],
    ids=str,
)
async def test_a_state_that_cannot_come_any_more_is_refused(here: Here, present: State, told: State) -> None:
    await here.admitted("aaaa1111", present)
    with pytest.raises(Conflict, match=f"is {present.name.lower()} at site ams, and cannot become {told.name.lower()}"):
        await here.report("aaaa1111", told)
    assert here.state("aaaa1111") is present
    assert here.written == [("aaaa1111", present)]


@pytest.mark.parametrize(
    ("present", "told"),
    [
        (State.PREPARING, State.SETTLED),
        (State.REQUESTED, State.CANCELLED),
        (State.SWITCHING, State.COPYING_MEMORY),
        (State.COPYING_DISKS, State.VERIFYING),
        (State.RESOLVING, State.COMPLETED),
        (State.COMPLETED, State.SETTLED),
    ],
    ids=str,
)
async def test_reports_in_between_may_be_missing(here: Here, present: State, told: State) -> None:
    await here.admitted("aaaa1111", present)
    await here.report("aaaa1111", told)
    assert here.state("aaaa1111") is told


async def test_no_other_site_has_a_host_here_told_that_a_vm_has_left_it(here: Here) -> None:
    await here.admitted("aaaa1111")
    with pytest.raises(PermissionDenied, match="its own gateways tell it: site bru has no say in that"):
        await here.incoming.cancel(agent_pb2.CancelRequest(migration="aaaa1111", has_left=True), "bru")
    # Nor, by the way, of one that is not known here: that answers nothing.
    with pytest.raises(PermissionDenied):
        await here.incoming.cancel(agent_pb2.CancelRequest(migration="bbbb2222", has_left=True), "bru")


@pytest.mark.parametrize("state", [State.VERIFYING, State.COMPLETED, State.SETTLED])
@pytest.mark.parametrize("discards", [False, True])
async def test_a_vm_that_was_let_run_here_is_here_whatever_its_host_knows_of_it_by_now(
    here: Here, state: State, discards: bool
) -> None:
    await here.admitted("aaaa1111", state)
    answer = await here.incoming.cancel(
        agent_pb2.CancelRequest(migration="aaaa1111", discard_arrived=discards), "bru"
    )  # whose host is asked for nothing: it has none
    assert answer.possession == agent_pb2.Possession.POSSESSION_HERE

"""What operators limit holds at every gateway of their site, whichever they asked, and whoever is started again."""

from __future__ import annotations

import pytest

from gateway.migration.states import State
from gateway.tunnel.tunnels import Tunnels
from landbridge.errors import Conflict, LandbridgeError, NotFound, PermissionDenied, UsageError
from landbridge.v1.gateway_pb2 import Site
from tests.system.sites import Operator, SiteUnderTest, TwoSites, eventually

pytestmark = pytest.mark.timeout(30)

DISK = bytes(range(256)) * 4096
MBIT = 125_000
# Bytes per second: a move of DISK takes longer than any test.
LITTLE = 20_000


@pytest.fixture
async def three(two: TwoSites) -> TwoSites:
    """Two sites, with a second gateway at the source."""
    await two.fra.second_gateway.start()
    return two


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Tunnels]:
    """The tunnels of each gateway, in the order in which they were started."""
    made: list[Tunnels] = []
    make = Tunnels.__init__

    def note(self: Tunnels, *args: object) -> None:
        make(self, *args)  # type: ignore[arg-type]  # as they came
        made.append(self)

    monkeypatch.setattr(Tunnels, "__init__", note)
    return made


async def tunnel(operator: Operator, site: str = "ams") -> Site:
    """The tunnel to a site, as an operator is told."""
    return (await operator.sites())[site]


async def tell(at: SiteUnderTest, gateway: str = "gw-1", /, **wish: object) -> None:
    """An admin, who alone may, has one gateway limit a tunnel."""
    async with at.person("root", gateway) as admin:
        await admin.limit(**wish)  # type: ignore[arg-type]  # what `limit` takes


async def shows(operator: Operator, limit: int, links: int) -> None:
    """The gateway tells of these soon, and the tunnel has so many links."""

    async def as_wanted() -> bool:
        said = await tunnel(operator)
        return (said.limit, said.links, said.links_up) == (limit, links, links)

    await eventually(as_wanted)


async def begun(two: TwoSites) -> str:
    """A move that is under way."""
    two.fra.hypervisor.add_vm("web-01", disk=DISK)
    two.fra.hypervisor.rate = LITTLE
    id_ = await two.fra.operator.migrate("web-01", "ams")
    await two.fra.operator.until(id_, State.COPYING_DISKS)
    return id_


def holds(tunnels: Tunnels, migration: str, limit: int) -> bool:
    """Whether a gateway's tunnel holds a migration to this."""
    scheduler = tunnels.to_site("ams").tunnel.scheduler
    known = scheduler._migrations.get(migration)
    return (known.bucket.rate if known else 0) == limit


async def test_what_one_gateway_is_told_of_a_tunnel_every_gateway_of_the_site_holds(three: TwoSites) -> None:
    one, two = three.fra.operator, three.fra.second_operator
    await tell(three.fra, "gw-2", bytes_per_second=50 * MBIT, site="ams")
    await tell(three.fra, site="ams", links=2)
    for operator in (one, two):
        await shows(operator, 50 * MBIT, 2)
    # The other site's own limits are its own.
    assert (await tunnel(three.ams.operator, "fra")).limit == 0


async def test_what_was_set_for_a_tunnel_outlives_all_gateways_until_it_is_reset(three: TwoSites) -> None:
    await tell(three.fra, bytes_per_second=50 * MBIT, site="ams", links=6)
    await three.fra.gateway.stop()
    await three.fra.second_gateway.stop()
    await three.fra.gateway.start()
    await shows(three.fra.operator, 50 * MBIT, 6)
    await three.fra.second_gateway.start()
    await shows(three.fra.second_operator, 50 * MBIT, 6)
    await tell(three.fra, "gw-2", site="ams", as_configured=True)
    for operator in (three.fra.operator, three.fra.second_operator):
        await shows(operator, 0, 4)
    await three.fra.gateway.restart()
    await shows(three.fra.operator, 0, 4)


async def test_no_limit_is_a_limit_that_was_set(three: TwoSites) -> None:
    await tell(three.fra, bytes_per_second=50 * MBIT, site="ams")
    await tell(three.fra, "gw-2", bytes_per_second=0, site="ams")
    await three.fra.gateway.restart()
    for operator in (three.fra.operator, three.fra.second_operator):
        await shows(operator, 0, 4)


@pytest.mark.parametrize(
    ("wish", "error"),
    [
        ({"site": "lon", "bytes_per_second": 1}, NotFound),
        ({"site": "lon", "as_configured": True}, NotFound),
        ({"site": "ams", "links": 65}, UsageError),
        ({"site": "ams", "links": 0}, UsageError),
        ({"site": "ams"}, UsageError),
    ],
)
async def test_what_cannot_be_is_refused_and_changes_nothing(
    two: TwoSites, wish: dict[str, int], error: type[LandbridgeError]
) -> None:
    with pytest.raises(error):
        await tell(two.fra, **wish)
    await shows(two.fra.operator, 0, 4)


@pytest.mark.parametrize("wish", [{"bytes_per_second": 1}, {"links": 1}, {"as_configured": True}], ids=str)
async def test_an_operator_who_may_move_vms_does_not_limit_the_tunnel_that_all_share(
    two: TwoSites, wish: dict[str, int]
) -> None:
    with pytest.raises(
        PermissionDenied, match="the tunnel to site ams, which is shared by all: that takes the role admin"
    ):
        await two.fra.operator.limit(site="ams", **wish)  # type: ignore[arg-type]  # see `tell`
    await shows(two.fra.operator, 0, 4)


async def test_a_migrations_limit_is_held_by_each_gateway_whoever_was_asked(
    started: list[Tunnels], three: TwoSites
) -> None:
    id_ = await begun(three)
    second = started[-1]
    (first,) = (tunnels for tunnels in started if tunnels is not second and tunnels._site == "fra")
    # The second one, which does not coordinate it, hears it first.
    await three.fra.second_operator.limit(MBIT, migration=id_)
    assert holds(second, id_, MBIT)
    await eventually(lambda: holds(first, id_, MBIT))
    assert (await three.fra.operator.migration(id_)).limit == MBIT
    await three.fra.operator.limit(0, migration=id_)
    assert holds(first, id_, 0)
    await eventually(lambda: holds(second, id_, 0))
    assert (await three.fra.second_operator.migration(id_)).limit == 0


async def test_a_migrations_limit_outlives_a_take_over_and_ends_with_the_migration(
    started: list[Tunnels], three: TwoSites
) -> None:
    id_ = await begun(three)
    second = started[-1]
    await three.fra.operator.limit(MBIT, migration=id_)
    await three.fra.gateway.stop()

    async def holds_alone() -> bool:
        return holds(second, id_, MBIT) and (await three.fra.second_operator.migration(id_)).limit == MBIT

    await eventually(holds_alone)
    await three.fra.gateway.start()
    await eventually(lambda: holds(started[-1], id_, MBIT))
    await three.fra.second_operator.cancel(id_)
    ended = await three.fra.second_operator.ended(id_)
    # What held is still told of afterwards.
    assert (State(ended.state), ended.limit) == (State.CANCELLED, MBIT)
    for tunnels in (second, started[-1]):
        await eventually(lambda tunnels=tunnels: holds(tunnels, id_, 0))  # type: ignore[misc]  # mypy knows no type for it
    with pytest.raises(Conflict, match="has ended already"):
        await three.fra.operator.limit(MBIT, migration=id_)


async def test_a_migration_that_comes_from_another_site_is_limited_there(two: TwoSites) -> None:
    id_ = await begun(two)
    with pytest.raises(Conflict, match="ask the gateway of site fra to limit it"):
        await two.ams.operator.limit(MBIT, migration=id_)

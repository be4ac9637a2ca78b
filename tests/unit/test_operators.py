"""What an operator's request to limit something becomes."""

from typing import cast

import pytest

from certs.guard import caller
from certs.identity import Identity, Role
from gateway.audit.exports import Exports
from gateway.authorization.authority import Authority
from gateway.migration.coordinator import Coordinator
from gateway.migration.inventory import Inventory
from gateway.migration.ledger import Ledger
from gateway.migration.limits import Limits
from gateway.migration.receipt_keeper import ReceiptKeeper
from gateway.migration.stranded import Stranded
from gateway.migration.survey import Survey
from gateway.service.operators import GatewayService
from gateway.store import TunnelLimits
from gateway.tunnel.tunnels import Tunnels
from landbridge.errors import UsageError
from landbridge.v1.gateway_pb2 import SetLimitRequest


class Limited:
    """Stands for the coordinator and the limits of tunnels, and notes what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int | TunnelLimits | None]] = []

    def administer(self, who: Identity, what: str) -> None:
        """Who asks is an admin."""

    async def limit(self, migration: str, bytes_per_second: int, who: Identity) -> None:
        self.told.append((migration, bytes_per_second))

    async def set(self, site: str, limits: TunnelLimits) -> None:
        self.told.append((site, limits))

    async def reset(self, site: str) -> None:
        self.told.append((site, None))

    def to_site(self, site: str) -> None:
        assert site == "ams"

    async def note(self, event: str, who: Identity, comment: str, *, subject: str) -> None:
        assert event == "configuration.changed"
        assert self.told == []  # on record before it is done


async def no_alarms() -> dict[str, list[str]]:
    return {}


async def told(request: SetLimitRequest) -> list[tuple[str, int | TunnelLimits | None]]:
    limited = Limited()
    service = GatewayService(
        cast("Coordinator", limited),
        cast("Ledger", None),
        cast("Inventory", None),
        cast("Survey", None),
        cast("Stranded", None),
        cast("Tunnels", limited),
        cast("Limits", limited),
        cast("Authority", limited),
        cast("ReceiptKeeper", None),
        cast("Exports", None),
        no_alarms,
    )
    caller.set(Identity("landbridge.test", "fra", Role.OPERATOR, "alice"))
    await service.SetLimit(request, None)
    return limited.told


async def test_only_what_is_given_is_changed_and_0_is_given() -> None:
    assert await told(SetLimitRequest(migration="3f2a", bytes_per_second=0)) == [("3f2a", 0)]
    assert await told(SetLimitRequest(site="ams", bytes_per_second=0)) == [("ams", TunnelLimits(0))]
    assert await told(SetLimitRequest(site="ams", links=8)) == [("ams", TunnelLimits(links=8))]
    assert await told(SetLimitRequest(site="ams", links=8, bytes_per_second=5)) == [("ams", TunnelLimits(5, 8))]
    assert await told(SetLimitRequest(site="ams", as_configured=True)) == [("ams", None)]


@pytest.mark.parametrize(
    "request_",
    [
        SetLimitRequest(bytes_per_second=5),
        SetLimitRequest(migration="3f2a"),
        SetLimitRequest(migration="3f2a", bytes_per_second=5, links=4),
        SetLimitRequest(migration="3f2a", as_configured=True),
        SetLimitRequest(migration="3f2a", bytes_per_second=2**63),
        SetLimitRequest(site="ams"),
        SetLimitRequest(site="ams", links=8, as_configured=True),
    ],
)
async def test_a_request_that_says_too_little_or_too_much_changes_nothing(request_: SetLimitRequest) -> None:
    with pytest.raises(UsageError):
        await told(request_)

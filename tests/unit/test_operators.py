"""What an operator's request to limit something becomes."""

from typing import cast

import pytest

from gateway.migration.coordinator import Coordinator
from gateway.migration.inventory import Inventory
from gateway.migration.ledger import Ledger
from gateway.service.operators import GatewayService
from gateway.tunnel.tunnels import Tunnels
from landbridge.errors import UsageError
from landbridge.v1.gateway_pb2 import SetLimitRequest


class Limited:
    """Stands for the coordinator and the tunnels, and notes what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, int]] = []

    async def limit(self, migration: str, bytes_per_second: int) -> None:
        self.told.append(("migration", migration, bytes_per_second))

    def set_limit(self, site: str, bytes_per_second: int) -> None:
        self.told.append(("site", site, bytes_per_second))

    def set_links(self, site: str, links: int) -> None:
        self.told.append(("links", site, links))


async def told(request: SetLimitRequest) -> list[tuple[str, str, int]]:
    limited = Limited()
    service = GatewayService(
        cast("Coordinator", limited), cast("Ledger", None), cast("Inventory", None), cast("Tunnels", limited)
    )
    await service.SetLimit(request, None)
    return limited.told


async def test_only_what_is_given_is_changed_and_0_is_given() -> None:
    assert await told(SetLimitRequest(migration="3f2a", bytes_per_second=0)) == [("migration", "3f2a", 0)]
    assert await told(SetLimitRequest(site="ams", bytes_per_second=0)) == [("site", "ams", 0)]
    assert await told(SetLimitRequest(site="ams", links=8)) == [("links", "ams", 8)]
    assert await told(SetLimitRequest(site="ams", links=8, bytes_per_second=5)) == [
        ("links", "ams", 8),
        ("site", "ams", 5),
    ]


@pytest.mark.parametrize("request_", [SetLimitRequest(bytes_per_second=5), SetLimitRequest(migration="3f2a")])
async def test_a_request_that_names_no_target_or_no_limit_lifts_none(request_: SetLimitRequest) -> None:
    with pytest.raises(UsageError):
        await told(request_)

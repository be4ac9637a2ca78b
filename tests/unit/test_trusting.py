"""gateway/identities/trusting.py: what another site tells."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from certs.identity import Role, Site
from certs.living import LivingIdentity
from certs.trust import pem_of
from gateway.config import GatewayConfig
from gateway.identities import trusting as module
from gateway.identities.issuing import Issuing
from gateway.identities.neighbours import Neighbours
from gateway.identities.records import Place, Records
from gateway.identities.trusting import Trusting
from gateway.migration.inventory import Inventory
from gateway.store import Store
from landbridge.config import Address
from landbridge.errors import ProtocolError
from landbridge.v1.enrolment_pb2 import DenialEntry
from landbridge.v1.peer_pb2 import SiteTrust
from tests.unit.identities import DOMAIN, Identities

A, B = Site(DOMAIN, "a"), Site(DOMAIN, "b")


@pytest.fixture
async def living(tmp_path: Path) -> AsyncIterator[tuple[LivingIdentity, Trusting]]:
    """A gateway of site a, which trusts b, and goes no rounds."""
    identity = LivingIdentity(Identities.make(tmp_path / "identities").of("a", Role.GATEWAY, "gw-1"))
    store = Store(f"sqlite:///{tmp_path}/gateway.db", "gw-1")
    made = Trusting(
        cast("GatewayConfig", SimpleNamespace(hosts=(), sites=())),
        identity,
        Records(store),
        cast("Issuing", SimpleNamespace(changes=0)),
        cast("Inventory", None),
        cast("Neighbours", SimpleNamespace(join=lambda _: None)),
    )
    yield identity, made
    store.close()


def told(living: LivingIdentity, *subjects: str, at: int = 1) -> SiteTrust:
    """What site b tells: its roots, and that these are revoked."""
    entries = [DenialEntry(subject=subject, site=str(B)) for subject in subjects]
    for entry in entries:
        entry.since.FromDatetime(datetime.fromtimestamp(at, UTC))
    return SiteTrust(roots=pem_of(living.trust.of_site(B)).decode(), denials=entries)


async def test_a_site_revokes_its_own_and_nobody_else(living: tuple[LivingIdentity, Trusting]) -> None:
    identity, trusting = living
    longer = f"{B}c/host/x"  # a site whose name begins like that of b
    await trusting.heard("b", told(identity, f"{B}/host/x", f"{A}/host/x", longer, f"{B}/issuer/gw-1", "1f"))
    assert {each.subject for each in identity.denials.all} == {f"{B}/host/x", f"{B}/issuer/gw-1", "1f"}
    assert {each.site for each in identity.denials.all} == {B}


async def test_what_a_site_revokes_is_bounded_in_all_and_not_only_at_once(
    living: tuple[LivingIdentity, Trusting], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_DENIALS", 3)
    identity, trusting = living
    await trusting.heard("b", told(identity, "1a", "1b"))
    await trusting.heard("b", told(identity, "1b", "1c"))
    with pytest.raises(ProtocolError, match="more than 3 in all"):
        await trusting.heard("b", told(identity, "1d"))
    assert {each.subject for each in identity.denials.all} == {"1a", "1b", "1c"}
    # What is known may be told again, also as of later.
    await trusting.heard("b", told(identity, "1a", "1b", "1c", at=2))
    assert {each.since.timestamp() for each in identity.denials.all} == {2.0}


async def test_a_denial_of_a_host_lies_ahead_by_what_another_gateway_may_sign_meanwhile(
    living: tuple[LivingIdentity, Trusting],
) -> None:
    identity, trusting = living
    now = datetime.now(UTC).replace(microsecond=0)
    for subject in (f"{A}/host/x", f"{A}/operator/alice", "1f"):
        await trusting.deny(subject)
    ahead = {each.subject: (each.since - now).total_seconds() for each in identity.denials.all}
    assert 64 <= ahead.pop(f"{A}/host/x") < 74
    # Operators are issued by the site's CA, and may be issued again at once.
    assert all(0 <= seconds < 10 for seconds in ahead.values())


async def test_what_a_site_tells_before_it_is_known_where_it_is_counts_as_soon_as_that_is_known(
    living: tuple[LivingIdentity, Trusting],
) -> None:
    identity, trusting = living
    first, then = Address("192.0.2.1", 7443), Address("192.0.2.2", 7443)
    said = told(identity)
    said.peers.append(str(then))
    said.tunnel.append(str(then))
    await trusting.heard("b", said)
    pem = pem_of(identity.trust.of_site(B))
    await trusting._records.join_site(str(B), pem, "b", [first], ())
    await trusting.look()
    await trusting.heard("b", said)
    assert await trusting._records.sites() == [Place("b", (then,), (then,))]

"""Whatever bundles are offered in whatever order: nobody but a site's own chain of roots is ever believed, and nobody is led back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st

from certs import authority
from certs.authority import Authority
from certs.identity import Site
from certs.trust import MOST_CERTIFICATES, TrustBundles
from landbridge.errors import IdentityError

NOW = datetime(2030, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
A, B = Site("example.org", "a"), Site("example.org", "b")
CHANGES = 4


def changed(first: Authority, now: datetime) -> tuple[list[x509.Certificate], list[x509.Certificate]]:
    """The roots of a site that changes its root every ten days, with overlaps of fifteen, and the handovers between them."""
    roots, handovers, latest = [first.certificate], [], first
    for number in range(CHANGES):
        latest, handover = authority.hand_over(latest, now + number * 10 * DAY, 15 * DAY)
        roots.append(latest.certificate)
        handovers.append(handover)
    return roots, handovers


FIRST = authority.create(A, NOW)
OWN_ROOTS, OWN_HANDOVERS = changed(FIRST, NOW)
# The same names and the same times, under another key; and another site.
FORGED_ROOTS, FORGED_HANDOVERS = changed(authority.create(A, NOW), NOW)
OTHER_ROOTS, OTHER_HANDOVERS = changed(authority.create(B, NOW), NOW)
ALL = [*OWN_ROOTS, *OWN_HANDOVERS, *FORGED_ROOTS, *FORGED_HANDOVERS, *OTHER_ROOTS, *OTHER_HANDOVERS]

offers = st.lists(st.sampled_from(ALL), max_size=MOST_CERTIFICATES, unique=True)
steps = st.lists(st.tuples(st.integers(0, 12), offers), max_size=8)


@settings(deadline=None, max_examples=30)
@given(steps)
def test_only_what_the_first_root_leads_to_is_ever_believed(steps: list[tuple[int, list[x509.Certificate]]]) -> None:
    trust, now = TrustBundles.of([FIRST.certificate]), NOW
    for days, offered in steps:
        now += days * DAY
        before = trust
        try:
            trust = trust.follow(offered, now)
        except IdentityError:
            assert trust is before
        assert set(trust.roots) == {A}
        believed = trust.roots[A]
        assert set(believed) <= set(OWN_ROOTS)
        # Nobody is led back: what was the newest stays believed until a newer one has taken over.
        newest = max(OWN_ROOTS.index(root) for root in before.roots[A])
        assert max(OWN_ROOTS.index(root) for root in believed) >= newest
        # A second time changes nothing.
        assert set(trust.follow([], now).all()) == set(trust.follow(trust.all(), now).all())


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 60))
def test_who_hears_of_every_change_in_time_always_believes_a_root_that_counts(days: int) -> None:
    trust = TrustBundles.of([FIRST.certificate])
    for day in range(days + 1):
        made = min(day // 10 + 1, CHANGES)
        trust = trust.follow([*OWN_ROOTS[: made + 1], *OWN_HANDOVERS[:made]], NOW + day * DAY)
    now = NOW + days * DAY
    counting = [root for root in trust.roots[A] if trust.counts(root, now)]
    assert OWN_ROOTS[min(days // 10 + 1, CHANGES)] in counting
    assert len(counting) <= 3

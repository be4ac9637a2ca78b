"""Whatever the policy and the request: nothing is allowed but by a rule that permits, and nothing that forbids is outweighed."""
# ruff: noqa: DTZ001 - what a clock on the wall shows has no zone

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from certs.identity import Identity
from gateway.authorization.decide import Check, Verdict, decide, fits, in_scope
from gateway.authorization.request import Labels, Request
from gateway.authorization.roles import OperatorRole
from gateway.authorization.rules import Rules
from tests.unit.policies import who

NAMES = ("alice", "bob", "carol", "dave")
VMS = ("web-1", "web-2", "db-1")
SITES = ("fra", "ams", "nyc")
KINDS = ("", "secret", "open")
TAGS = ("a", "b")


def maybe(values: st.SearchStrategy[list[str]]) -> st.SearchStrategy[list[str] | None]:
    return st.none() | values


def some(*values: str) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(values), min_size=1, max_size=3)


selectors = st.fixed_dictionaries(
    {
        "who": maybe(some(*NAMES, "*", "*/*", "ams/*")),
        "vms": maybe(some(*VMS, "web-*", "*")),
        "tags": maybe(some(*TAGS)),
        "classifications": maybe(some("secret", "open", "unclassified")),
        "from": maybe(some(*SITES, "*", "country:DE")),
        "to": maybe(some(*SITES, "*/h-1", "zone:eu")),
    }
)
permits = st.fixed_dictionaries(
    {"who": some(*NAMES, "*", "*/*"), "vms": some(*VMS, "*"), "from": some(*SITES, "*"), "to": some(*SITES, "*")}
)
freezes = st.builds(
    lambda selector, begin, hours: (
        selector
        | {
            "timezone": "Europe/Berlin",
            "begins": datetime(2026, 11, 26) + timedelta(hours=begin),
            "ends": datetime(2026, 11, 26) + timedelta(hours=begin + hours),
        }
    ),
    selectors,
    st.integers(0, 24),
    st.integers(1, 24),
)
eyes = st.builds(
    lambda selector, approvals, by: selector | {"approvals": approvals, "by": by},
    selectors,
    st.integers(1, 3),
    maybe(st.lists(st.sampled_from(["*", "ams/*", "c*"]), min_size=1, max_size=2)),
)


def named(entries: list[dict[str, object]], **more: object) -> list[dict[str, object]]:
    return [{**entry, "name": f"{more.get('effect', 'entry')}-{n}", **more} for n, entry in enumerate(entries)]


policies = st.builds(
    lambda site, allow, forbid, held, approved, residency, operators, approvers, glass: Rules.model_validate(
        {
            "site": site,
            "trust_domain": "example.org",
            "roles": {"operator": operators, "approver": approvers},
            "sites": {"fra": {"country": "DE", "zone": "eu"}, "ams": {"country": "NL", "zone": "eu"}},
            "rules": [*named(forbid, effect="forbid"), *named(allow, effect="permit")],
            "freezes": named(held),
            "four_eyes": named(approved),
            "residency": residency,
            "break_glass": {"who": glass},
        }
    ),
    st.sampled_from(["fra", "ams"]),
    st.lists(permits, max_size=2),
    st.lists(selectors, max_size=2),
    st.lists(freezes, max_size=2),
    st.lists(eyes, max_size=2),
    st.none() | st.dictionaries(st.sampled_from(["secret", "open", "unclassified"]), some("DE", "eu", "*")),
    st.lists(st.sampled_from([*NAMES, "*"]), max_size=3),
    st.lists(st.sampled_from([*NAMES, "*"]), max_size=3),
    st.lists(st.sampled_from([*NAMES, "*/*"]), max_size=2),
)
persons = st.builds(who, st.sampled_from(NAMES), st.sampled_from(["fra", "ams"]))
requests = st.builds(
    Request,
    requester=persons,
    vm=st.sampled_from(VMS),
    source_site=st.sampled_from(SITES),
    source_host=st.sampled_from(["h-1", "h-2"]),
    destination_site=st.sampled_from(SITES),
    destination_host=st.sampled_from(["h-1", "h-2", ""]),
    labels=st.builds(
        Labels, classification=st.sampled_from(KINDS), tags=st.frozensets(st.sampled_from(TAGS), max_size=2)
    ),
    approvals=st.frozensets(persons, max_size=4),
    break_glass=st.sampled_from(["", "", "the roof leaks"]),
)
times = st.integers(0, 72).map(lambda hours: datetime(2026, 11, 25, tzinfo=UTC) + timedelta(hours=hours))


def effects(rules: Rules, effect: str, request: Request) -> list[str]:
    return [rule.name for rule in rules.rules if rule.effect == effect and fits(rule, rules, request)]


@settings(max_examples=300, deadline=None)
@given(policies, requests, times)
def test_what_is_allowed_is_permitted_and_not_forbidden(rules: Rules, request: Request, now: datetime) -> None:
    decision = decide(rules, request, now)
    if decision.verdict is Verdict.ALLOWED:
        permitted = effects(rules, "permit", request)
        assert decision.rule == f'permit "{permitted[0]}"'
        assert not effects(rules, "forbid", request)
        assert all(step.passed for step in decision.steps if step.check is not Check.BREAK_GLASS)
        if request.source_site == rules.site:
            assert OperatorRole.OPERATOR in rules.roles_of(request.requester)
    else:
        assert decision.reason
        assert not decision.steps[0].passed
    assert decision == decide(rules, request, now)


@settings(max_examples=200, deadline=None)
@given(policies, requests, times)
def test_another_rule_that_forbids_never_allows_more(rules: Rules, request: Request, now: datetime) -> None:
    all_of_it = {"name": "everything", "effect": "forbid"}
    stricter = Rules.model_validate(
        {**{name: getattr(rules, name) for name in Rules.model_fields}, "rules": (*rules.rules, _rule(all_of_it))}
    )
    assert decide(stricter, request, now).verdict is Verdict.REFUSED
    assert not in_scope(stricter, request).passed


def _rule(entry: dict[str, str]) -> object:
    return Rules.model_validate({"site": "fra", "trust_domain": "example.org", "rules": [entry]}).rules[0]


@settings(max_examples=200, deadline=None)
@given(policies, requests, times, persons)
def test_approvals_only_ever_turn_waiting_into_yes(
    rules: Rules, request: Request, now: datetime, another: Identity
) -> None:
    before = decide(rules, request, now)
    after = decide(rules, replace(request, approvals=request.approvals | {another}), now)
    if before.verdict is not Verdict.APPROVAL:
        assert after.verdict is before.verdict
    else:
        assert after.verdict in {Verdict.APPROVAL, Verdict.ALLOWED}


@settings(max_examples=200, deadline=None)
@given(policies, requests, times)
def test_who_asks_never_counts_as_one_who_approves(rules: Rules, request: Request, now: datetime) -> None:
    others = replace(request, approvals=request.approvals - {request.requester})
    themselves = replace(request, approvals=request.approvals | {request.requester})
    assert decide(rules, others, now) == decide(rules, themselves, now)


@settings(max_examples=200, deadline=None)
@given(policies, requests, times)
def test_the_glass_overrides_freezes_and_approvals_and_nothing_else(
    rules: Rules, request: Request, now: datetime
) -> None:
    plain = decide(rules, replace(request, break_glass=""), now)
    glass = decide(rules, replace(request, break_glass="the roof leaks"), now)
    may = any(each.fits(request.requester, rules.here) for each in rules.break_glass.who)
    soft = {Check.FREEZE, Check.FOUR_EYES}
    if plain.verdict is not Verdict.ALLOWED and plain.steps[0].check in soft and may:
        assert glass.verdict is Verdict.ALLOWED
        assert glass.glass_broken
    elif request.source_site == rules.site and not may:
        assert glass.verdict is Verdict.REFUSED
    else:
        assert (glass.verdict, glass.rule, glass.glass_broken) == (plain.verdict, plain.rule, False)

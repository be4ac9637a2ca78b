"""gateway/authorization/decide.py and cases.py: which rule decides, and why."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from gateway.authorization import cases
from gateway.authorization.decide import Check, Decision, Step, Verdict, called, decide, grounds, in_scope, may_approve
from gateway.authorization.request import Grounds, Labels
from gateway.authorization.rules import parse
from landbridge.errors import ConfigError
from tests.unit.policies import HEAD, NOON, PERMIT, people, request, rules, who

ABROAD = """\
[[rules]]
name = "no payroll abroad"
effect = "forbid"
tags = ["payroll"]
to = ["country:US"]
"""
FREEZE = """\
[[freezes]]
name = "year end"
timezone = "Europe/Berlin"
begins = 2026-12-20T00:00:00
ends = 2027-01-04T06:00:00
vms = ["web-*"]
"""
NIGHTS = """\
[[freezes]]
name = "nights"
timezone = "America/New_York"
days = ["wed"]
begins = 22:00:00
ends = 06:00:00
"""
TWO = '[[four_eyes]]\nname = "two"\napprovals = 2\n'
GLASS = '[break_glass]\nwho = ["alice"]\n'
PAYROLL = """\
[[transfers]]
name = "payroll"
tags = ["payroll"]
purpose = "salaries are paid from there"
legal_basis = "contract"
transfer_mechanism = "scc-eu"
"""
REST = """\
[[transfers]]
name = "rest"
purpose = "running the shop"
legal_basis = "legitimate-interests"
transfer_mechanism = "adequacy"
"""
WHY = '[[transfers]]\nname = "why"\nvms = ["web-*"]\nto = ["nyc"]\ndemand_purpose = true\n'
XMAS = datetime(2026, 12, 24, 18, 0, tzinfo=UTC)


def told(decision: Decision) -> tuple[Verdict, str]:
    return decision.verdict, decision.rule


# Permit and forbid


def test_what_a_rule_permits_is_allowed_by_it() -> None:
    decision = decide(rules(), request(), NOON)
    assert told(decision) == (Verdict.ALLOWED, 'permit "web"')
    assert decision.reason == ""
    assert not decision.glass_broken
    assert decision.steps == (
        Step(Check.ROLE, "operator", True, "alice is an operator of site fra"),
        Step(Check.FORBID, "", True, "no rule forbids it"),
        Step(Check.RESIDENCY, "", True, "the policy says nothing of residency"),
        Step(Check.PERMIT, "web", True, 'the rule "web" permits it'),
        Step(Check.FREEZE, "", True, "no freeze holds it now"),
        Step(Check.FOUR_EYES, "", True, "nobody else has to approve"),
    )


@pytest.mark.parametrize(
    "asked",
    [
        request(vm="db-1"),
        request(source="ams/ams-1", requester=who("alice", "ams")),
        request(destination="lon/lon-1"),
        request(requester=who("alice", "ams"), source="ams/ams-1", destination="fra/fra-1"),
    ],
)
def test_what_no_rule_permits_is_refused_by_default(asked: object) -> None:
    decision = decide(rules(), asked, NOON)  # type: ignore[arg-type]  # a Request
    assert told(decision) == (Verdict.REFUSED, "default deny")
    assert decision.reason.startswith("no rule permits ")


def test_a_refusal_by_default_says_what_was_asked_for() -> None:
    said = "no rule permits alice to move db-1 from fra/fra-1 to ams/ams-1"
    assert decide(rules(), request(vm="db-1"), NOON).steps[0] == Step(Check.PERMIT, "", False, said)
    to_any_host = decide(rules(), request(vm="db-1", destination="ams"), NOON)
    assert to_any_host.reason == "no rule permits alice to move db-1 from fra/fra-1 to ams"


def test_who_is_no_operator_moves_nothing_whatever_a_rule_permits() -> None:
    decision = decide(rules(permit=PERMIT.replace('"bob"', '"vera"')), request(requester=who("vera")), NOON)
    assert told(decision) == (Verdict.REFUSED, 'role "operator"')
    assert decision.reason == "vera is no operator of site fra"


def test_of_two_rules_that_permit_the_first_is_named() -> None:
    second = PERMIT.replace('"web"', '"also web"')
    assert decide(rules(second), request(), NOON).rule == 'permit "web"'


def test_what_a_rule_forbids_is_refused_though_another_permits_it() -> None:
    asked = request(destination="nyc/nyc-1", tags=frozenset({"payroll"}))
    decision = decide(rules(ABROAD), asked, NOON)
    assert told(decision) == (Verdict.REFUSED, 'forbid "no payroll abroad"')
    assert decision.reason == 'the rule "no payroll abroad" forbids it'
    # The deciding step first, and all others after it.
    assert [step.check for step in decision.steps][:2] == [Check.FORBID, Check.ROLE]
    assert any(step.check is Check.PERMIT and step.passed for step in decision.steps)


def test_a_rule_that_forbids_holds_only_where_all_that_it_says_fits() -> None:
    assert decide(rules(ABROAD), request(destination="nyc/x"), NOON).verdict is Verdict.ALLOWED
    at_home = request(tags=frozenset({"payroll"}))
    assert decide(rules(ABROAD), at_home, NOON).verdict is Verdict.ALLOWED


@pytest.mark.parametrize(
    ("condition", "fits", "fits_not"),
    [
        ('who = ["bob"]', request(requester=who("bob")), request()),
        ('vms = ["web-1", "x"]', request(), request(vm="web-2")),
        ('owners = ["hr"]', request(owner="hr"), request(owner="it")),
        ('owners = ["hr"]', request(owner="hr"), request()),
        ('tags = ["a", "b"]', request(tags=frozenset("bc")), request(tags=frozenset("c"))),
        ('classifications = ["secret"]', request(classification="secret"), request(classification="public")),
        ('classifications = ["unclassified"]', request(), request(classification="public")),
        ('from = ["fra/fra-1"]', request(), request(source="fra/fra-2")),
        ('from = ["country:DE"]', request(), None),
        ('from = ["country:NL"]', None, request()),
        ('to = ["zone:eu"]', request(), request(destination="nyc/x")),
        ('to = ["ams/ams-1", "nyc"]', request(), request(destination="ams/ams-2")),
        ("", request(), None),
        ("vms = []", None, request()),
    ],
)
def test_each_condition_of_a_rule_fits_what_it_says(condition: str, fits: object, fits_not: object) -> None:
    read = rules(f'[[rules]]\nname = "no"\neffect = "forbid"\n{condition}')
    if fits is not None:
        assert decide(read, fits, NOON).rule == 'forbid "no"'  # type: ignore[arg-type]  # a Request
    if fits_not is not None:
        assert decide(read, fits_not, NOON).verdict is Verdict.ALLOWED  # type: ignore[arg-type]  # a Request


def test_what_the_file_says_of_a_vm_comes_before_what_the_vm_says() -> None:
    read = rules(ABROAD, '[[vms]]\nnames = ["web-1"]\ntags = ["payroll"]')
    lying = request(destination="nyc/nyc-1", tags=frozenset({"harmless"}))
    assert decide(read, lying, NOON).rule == 'forbid "no payroll abroad"'
    assert not in_scope(read, lying).passed


# Residency


RESIDENCY = (
    '[residency]\nrestricted = ["DE"]\ninternal = ["eu", "US"]\nopen = ["*"]\nnowhere = []\nboth = ["DE", "NL"]\n'
)


@pytest.mark.parametrize(
    ("kind", "destination", "verdict", "said"),
    [
        ("restricted", "ams/a", Verdict.REFUSED, "web-1 is restricted and may be in DE, and ams is in NL, eu"),
        ("internal", "ams/a", Verdict.ALLOWED, "internal VMs may be in eu"),
        ("both", "nyc/a", Verdict.REFUSED, "web-1 is both and may be in DE, NL, and nyc is in US"),
        ("internal", "nyc/a", Verdict.ALLOWED, "internal VMs may be in US"),
        ("open", "nyc/a", Verdict.ALLOWED, "open VMs may be anywhere"),
        ("nowhere", "nyc/a", Verdict.REFUSED, "web-1 is nowhere and may be in no place, and nyc is in US"),
        ("odd", "ams/a", Verdict.REFUSED, "web-1 is odd, and [residency] does not say where such VMs may be"),
        ("", "ams/a", Verdict.REFUSED, "web-1 is unclassified, and [residency] does not say where such VMs may be"),
        ("internal", "lon/a", Verdict.REFUSED, "web-1 is internal, and [sites] does not say where lon is"),
    ],
)
def test_a_vm_may_be_where_its_classification_may(kind: str, destination: str, verdict: Verdict, said: str) -> None:
    read = rules(RESIDENCY, permit=PERMIT.replace('"nyc"]', '"nyc", "lon"]'))
    decision = decide(read, request(classification=kind, destination=destination), NOON)
    assert decision.verdict is verdict
    (step,) = (step for step in decision.steps if step.check is Check.RESIDENCY)
    assert step == Step(Check.RESIDENCY, kind or "unclassified", verdict is Verdict.ALLOWED, said)
    if verdict is Verdict.REFUSED:
        assert decision.rule == f'residency "{kind or "unclassified"}"'


def test_a_site_that_the_file_names_without_a_place_is_nowhere() -> None:
    read = rules(RESIDENCY, "[sites.lon]", permit=PERMIT.replace('"nyc"]', '"nyc", "lon"]'))
    decision = decide(read, request(classification="internal", destination="lon/a"), NOON)
    assert decision.reason == "web-1 is internal, and [sites] does not say where lon is"


def test_a_policy_without_residency_says_so() -> None:
    decision = decide(rules(), request(classification="secret"), NOON)
    assert Check.RESIDENCY in {step.check for step in decision.steps if step.sentence.endswith("nothing of residency")}


# Freezes


@pytest.mark.parametrize(
    ("at", "verdict"),
    [
        ("2026-12-19T22:59:59+00:00", Verdict.ALLOWED),
        ("2026-12-19T23:00:00+00:00", Verdict.REFUSED),
        ("2027-01-04T04:59:59+00:00", Verdict.REFUSED),
        ("2027-01-04T05:00:00+00:00", Verdict.ALLOWED),
    ],
)
def test_a_freeze_lasts_from_its_beginning_to_its_end_by_its_own_clock(at: str, verdict: Verdict) -> None:
    assert decide(rules(FREEZE), request(), datetime.fromisoformat(at)).verdict is verdict


def test_a_freeze_that_holds_is_named_with_its_end() -> None:
    decision = decide(rules(FREEZE), request(), XMAS)
    assert told(decision) == (Verdict.REFUSED, 'freeze "year end"')
    assert decision.reason == 'the freeze "year end" lasts until 2027-01-04 06:00 CET'
    assert decision.steps[0] == Step(Check.FREEZE, "year end", False, decision.reason)


@pytest.mark.parametrize(
    ("at", "verdict"),
    [
        ("2026-11-26T02:59:59+00:00", Verdict.ALLOWED),  # Wednesday, 21:59:59 in New York
        ("2026-11-26T03:00:00+00:00", Verdict.REFUSED),
        ("2026-11-26T10:59:59+00:00", Verdict.REFUSED),
        ("2026-11-26T11:00:00+00:00", Verdict.ALLOWED),
        ("2026-11-27T03:00:00+00:00", Verdict.ALLOWED),  # Thursday
    ],
)
def test_a_freeze_of_each_week_crosses_midnight(at: str, verdict: Verdict) -> None:
    assert decide(rules(NIGHTS), request(), datetime.fromisoformat(at)).verdict is verdict


def test_a_freeze_holds_only_what_it_means() -> None:
    read = rules(FREEZE, permit=PERMIT.replace("web-*", "*"))
    assert decide(read, request(vm="db-1"), XMAS).verdict is Verdict.ALLOWED
    theirs = rules(FREEZE + 'who = ["bob"]\nto = ["country:NL"]')
    assert decide(theirs, request(requester=who("bob")), XMAS).rule == 'freeze "year end"'
    assert decide(theirs, request(), XMAS).verdict is Verdict.ALLOWED


# Four-eyes


@pytest.mark.parametrize(
    ("approvers", "verdict"),
    [
        ((), Verdict.APPROVAL),
        (("carol",), Verdict.APPROVAL),
        (("carol", "dave"), Verdict.ALLOWED),
        (("carol", "dave", "bob"), Verdict.ALLOWED),
        (("carol", "alice"), Verdict.APPROVAL),  # who asks
        (("carol", "vera"), Verdict.APPROVAL),  # no approver
        (("carol", "mallory"), Verdict.APPROVAL),  # nobody
    ],
)
def test_two_approvers_that_are_not_who_asks_must_approve(approvers: tuple[str, ...], verdict: Verdict) -> None:
    decision = decide(rules(TWO), request(approvals=people(*approvers)), NOON)
    assert decision.verdict is verdict
    assert decision.rule == ('permit "web"' if verdict is Verdict.ALLOWED else 'four-eyes "two"')


def test_an_approver_who_asks_cannot_approve_it_themselves() -> None:
    asked = request(requester=who("bob"), approvals=people("bob", "carol"))
    decision = decide(rules(TWO), asked, NOON)
    assert decision.verdict is Verdict.APPROVAL
    assert decision.reason == '"two" takes 2 approvals, and has 1 (by carol)'


def test_one_approval_is_said_as_one() -> None:
    read = rules(TWO.replace("2", "1") + 'by = ["carol", "d*"]')
    assert decide(read, request(), NOON).reason == '"two" takes 1 approval of carol, d*, and has 0'


def test_only_those_who_are_named_count() -> None:
    read = rules(TWO + 'by = ["carol", "bob"]')
    assert decide(read, request(approvals=people("carol", "dave")), NOON).verdict is Verdict.APPROVAL
    assert decide(read, request(approvals=people("carol", "bob")), NOON).verdict is Verdict.ALLOWED


def test_people_of_another_site_count_only_where_they_are_named() -> None:
    theirs = {who("erin", "ams"), who("frank", "ams")}
    assert decide(rules(TWO), request(approvals=theirs), NOON).verdict is Verdict.APPROVAL
    named = rules(TWO + 'by = ["ams/*"]')
    assert decide(named, request(approvals=theirs), NOON).verdict is Verdict.ALLOWED
    assert decide(named, request(approvals={who("erin", "ams")}), NOON).verdict is Verdict.APPROVAL


def test_every_rule_of_four_eyes_that_fits_must_be_content() -> None:
    read = rules(TWO, '[[four_eyes]]\nname = "dave too"\napprovals = 1\nby = ["dave"]\nvms = ["web-1"]')
    assert decide(read, request(approvals=people("carol", "bob")), NOON).rule == 'four-eyes "dave too"'
    assert decide(read, request(approvals=people("carol", "dave")), NOON).verdict is Verdict.ALLOWED


def test_a_rule_of_four_eyes_holds_only_what_it_means() -> None:
    read = rules(TWO + 'who = ["bob"]\nto = ["country:NL"]')
    assert decide(read, request(requester=who("bob")), NOON).verdict is Verdict.APPROVAL
    assert may_approve(read, request(requester=who("bob")), who("carol"))
    assert decide(read, request(), NOON).verdict is Verdict.ALLOWED
    assert not may_approve(read, request(), who("carol"))


def test_a_freeze_comes_before_an_approval() -> None:
    assert decide(rules(FREEZE, TWO), request(), XMAS).rule == 'freeze "year end"'


@pytest.mark.parametrize(
    ("name", "may"), [("carol", True), ("dave", True), ("vera", False), ("alice", False), ("mallory", False)]
)
def test_only_whose_approval_counts_may_approve(name: str, may: bool) -> None:
    assert may_approve(rules(TWO), request(), who(name)) is may


def test_nobody_has_to_approve_what_needs_no_approval() -> None:
    assert not may_approve(rules(), request(), who("carol"))
    assert not may_approve(rules(TWO + 'vms = ["db-*"]'), request(), who("carol"))


def test_whose_approval_counts_rests_on_what_the_file_says_of_the_vm() -> None:
    read = rules(TWO + 'tags = ["prod"]', '[[vms]]\nnames = ["web-1"]\ntags = ["prod"]')
    assert may_approve(read, request(), who("carol"))


# Breaking the glass


def test_who_may_break_the_glass_overrides_freezes_and_approvals() -> None:
    decision = decide(rules(FREEZE, TWO, GLASS), request(break_glass="the roof leaks"), XMAS)
    assert told(decision) == (Verdict.ALLOWED, 'permit "web"')
    assert decision.glass_broken
    assert [step.sentence for step in decision.steps if step.check in {Check.FREEZE, Check.FOUR_EYES}] == [
        'the freeze "year end" lasts until 2027-01-04 06:00 CET; overridden',
        '"two" takes 2 approvals, and has 0; overridden',
    ]
    assert all(step.passed for step in decision.steps)
    assert "alice may break the glass" in {step.sentence for step in decision.steps}


def test_only_what_would_have_refused_is_overridden() -> None:
    decision = decide(rules(FREEZE, GLASS), request(break_glass="the roof leaks"), XMAS)
    assert decision.steps[-2:] == (
        Step(Check.FREEZE, "year end", True, 'the freeze "year end" lasts until 2027-01-04 06:00 CET; overridden'),
        Step(Check.FOUR_EYES, "", True, "nobody else has to approve"),
    )


def test_glass_over_nothing_is_not_broken() -> None:
    decision = decide(rules(FREEZE, TWO, GLASS), request(break_glass="why", approvals=people("carol", "dave")), NOON)
    assert (decision.verdict, decision.glass_broken) == (Verdict.ALLOWED, False)
    assert not any("overridden" in step.sentence for step in decision.steps)


def test_who_may_not_break_the_glass_is_refused_for_trying() -> None:
    decision = decide(rules(FREEZE, TWO, GLASS), request(requester=who("bob"), break_glass="why"), NOON)
    assert told(decision) == (Verdict.REFUSED, 'break-glass "break_glass"')
    assert decision.reason.startswith("bob may not break the glass here")
    assert not decision.glass_broken


@pytest.mark.parametrize(
    ("asked", "rule"),
    [
        (request(break_glass="why", vm="db-1"), "default deny"),
        (request(break_glass="why", destination="nyc/a", tags=frozenset({"payroll"})), 'forbid "no payroll abroad"'),
        (request(break_glass="why", classification="restricted"), 'residency "restricted"'),
    ],
)
def test_no_glass_overrides_what_is_forbidden_or_not_permitted_or_against_residency(asked: object, rule: str) -> None:
    read = rules(ABROAD, RESIDENCY + 'unclassified = ["*"]', GLASS, TWO)
    decision = decide(read, asked, NOON)  # type: ignore[arg-type]  # a Request
    assert told(decision) == (Verdict.REFUSED, rule)


# At the destination

THERE = HEAD.replace('site = "fra"', 'site = "ams"', 1)
TAKES = PERMIT.replace('["alice", "bob"]', '["fra/*"]')


def test_the_destination_judges_by_its_own_rules_and_cannot_know_roles_elsewhere() -> None:
    decision = decide(rules(head=THERE, permit=TAKES), request(), NOON)
    assert told(decision) == (Verdict.ALLOWED, 'permit "web"')
    assert Check.ROLE not in {step.check for step in decision.steps}
    assert decide(rules(head=THERE), request(), NOON).rule == "default deny"  # its own alice is another one


def test_anothers_glass_counts_only_for_those_whom_the_destination_names() -> None:
    asked = request(break_glass="the roof leaks")
    deaf = rules(FREEZE, head=THERE, permit=TAKES)
    assert told(decide(deaf, asked, NOON)) == (Verdict.ALLOWED, 'permit "web"')
    assert told(decide(deaf, asked, XMAS)) == (Verdict.REFUSED, 'freeze "year end"')
    hears = rules(FREEZE, '[break_glass]\nwho = ["fra/alice"]', head=THERE, permit=TAKES)
    assert decide(hears, asked, XMAS).glass_broken


def test_the_destinations_own_approvers_count_there() -> None:
    read = rules(TWO, head=THERE, permit=TAKES)
    local = {who("carol", "ams"), who("dave", "ams")}
    assert decide(read, request(approvals=local), NOON).verdict is Verdict.ALLOWED
    assert decide(read, request(approvals=people("carol", "dave")), NOON).verdict is Verdict.APPROVAL


def test_people_are_called_as_the_file_writes_them() -> None:
    read = rules(head=THERE, permit=TAKES)
    assert called(read, who("carol", "ams")) == "carol"
    assert called(read, who("alice")) == "fra/alice"
    assert called(read, who("alice", "ams", "else.where")) == "spiffe://else.where/site/ams/operator/alice"


# Scope


def test_who_may_move_a_vm_may_have_to_do_with_its_migration_at_any_time() -> None:
    read = rules(FREEZE, TWO, RESIDENCY)
    assert in_scope(read, request()).passed
    assert in_scope(read, request()).rule == "web"
    assert not in_scope(read, request(requester=who("vera"))).passed
    assert not in_scope(read, request(vm="db-1")).passed


def test_who_is_forbidden_a_move_is_out_of_its_scope() -> None:
    step = in_scope(rules(ABROAD), request(destination="nyc/a", tags=frozenset({"payroll"})))
    assert (step.check, step.rule, step.passed) == (Check.FORBID, "no payroll abroad", False)


# Grounds


def test_why_and_by_what_right_is_of_each_what_the_first_entry_says_that_fits() -> None:
    half = '[[transfers]]\nname = "half"\ntags = ["payroll"]\nlegal_basis = "consent"\n'
    payroll = request(destination="nyc/a", tags=frozenset({"payroll"}))
    assert grounds(rules(PAYROLL, REST), payroll) == Grounds("salaries are paid from there", "contract", "scc-eu")
    assert grounds(rules(PAYROLL, REST), request(destination="nyc/a")) == Grounds(
        "running the shop", "legitimate-interests", "adequacy"
    )
    assert grounds(rules(half, REST), payroll) == Grounds("running the shop", "consent", "adequacy")
    assert grounds(rules(), payroll) == Grounds()
    assert decide(rules(PAYROLL), payroll, NOON).grounds == grounds(rules(PAYROLL), payroll)
    # Also of what is refused, so that its entry has them.
    assert decide(rules(PAYROLL, ABROAD), payroll, NOON).grounds.legal_basis == "contract"


def test_what_the_policy_file_says_of_a_vm_chooses_its_grounds() -> None:
    tagged = '[[vms]]\nnames = ["web-*"]\ntags = ["payroll"]\n'
    assert grounds(rules(tagged, PAYROLL), request(destination="nyc/a")).legal_basis == "contract"


def test_within_one_country_there_is_no_mechanism_and_where_that_is_not_known_there_is() -> None:
    here = HEAD.replace('country = "NL"', 'country = "DE"')
    assert grounds(rules(REST, head=here), request()) == Grounds("running the shop", "legitimate-interests", "")
    assert grounds(rules(REST), request()).transfer_mechanism == "adequacy"
    nowhere = HEAD.replace('country = "NL"\n', "").replace('country = "DE"\n', "")
    assert grounds(rules(REST, head=nowhere), request()).transfer_mechanism == "adequacy"
    unknown = HEAD.replace('[sites.ams]\ncountry = "NL"\nzone = "eu"\n', "")
    assert grounds(rules(REST, head=unknown), request()).transfer_mechanism == "adequacy"


@pytest.mark.parametrize("purpose", ["", " ", "\t"])
def test_who_gives_no_purpose_where_one_is_demanded_is_refused(purpose: str) -> None:
    decision = decide(rules(WHY, PAYROLL), request(destination="nyc/a", purpose=purpose), NOON)
    assert told(decision) == (Verdict.REFUSED, 'purpose "why"')
    assert decision.reason == '"why" demands a purpose, and none is given: say why with --purpose'


def test_a_purpose_that_is_demanded_and_given_lets_it_pass_and_the_policys_own_does_not() -> None:
    asked = request(destination="nyc/a", purpose="the cooling has failed")
    assert told(decide(rules(WHY), asked, NOON)) == (Verdict.ALLOWED, 'permit "web"')
    assert told(decide(rules(WHY, REST), request(destination="nyc/a"), NOON))[0] is Verdict.REFUSED
    assert told(decide(rules(WHY), request(), NOON))[0] is Verdict.ALLOWED  # to ams, nobody demands one


def test_a_broken_glass_does_not_replace_a_purpose() -> None:
    asked = request(destination="nyc/a", break_glass="the roof leaks")
    assert told(decide(rules(WHY, GLASS), asked, NOON)) == (Verdict.REFUSED, 'purpose "why"')


def test_a_destination_demands_a_purpose_of_what_comes_too() -> None:
    there = HEAD.replace('site = "fra"', 'site = "nyc"', 1)
    takes = PERMIT.replace('who = ["alice", "bob"]', 'who = ["fra/*"]')
    hears = rules(WHY, head=there, permit=takes)
    assert told(decide(hears, request(destination="nyc/a"), NOON)) == (Verdict.REFUSED, 'purpose "why"')
    assert told(decide(hears, request(destination="nyc/a", purpose="why not"), NOON))[0] is Verdict.ALLOWED


# Tests that a file carries

CASE = """\
[[tests]]
name = "it moves"
who = "alice"
vm = "web-1"
from = "fra"
to = "ams/ams-1"
at = 2026-12-24T18:00:00+01:00
"""


@pytest.mark.parametrize(
    ("more", "wrong"),
    [
        ('expect = "refused"', ""),
        ('expect = "refused"\nrule = "year end"', ""),
        ('expect = "refused"\nrule = \'freeze "year end"\'', ""),
        ('expect = "refused"\nrule = "two"', "expected 'two' to decide, and it was freeze \"year end\""),
        (
            'expect = "allowed"',
            'expected allowed, and it is refused by freeze "year end": the freeze "year end" lasts until 2027-01-04 06:00 CET',
        ),
        ('expect = "allowed"\nbreak_glass = true', ""),
        ('expect = "refused"\nbreak_glass = true', 'expected refused, and it is allowed by permit "web"'),
    ],
)
def test_a_case_says_what_is_not_as_it_has_it(more: str, wrong: str) -> None:
    (outcome,) = cases.run(rules(FREEZE, TWO, GLASS, CASE + more))
    assert outcome.wrong == wrong


def test_a_case_may_say_all_there_is_to_say_of_a_request() -> None:
    text = CASE.replace('"alice"', '"spiffe://example.org/site/fra/operator/bob"').replace(
        "at = 2026-12-24", "at = 2026-11-24"
    )
    full = 'classification = "secret"\nowner = "hr"\ntags = ["t"]\napproved_by = ["carol", "fra/dave"]\nexpect = "approval"'
    permit = PERMIT + 'owners = ["hr"]\ntags = ["t"]\nclassifications = ["secret"]\n'
    read = rules(TWO.replace("2", "3"), text + full, permit=permit)
    (outcome,) = cases.run(read)
    assert outcome.wrong == ""
    assert outcome.decision.reason.endswith("and has 2 (by carol, dave)")


def test_a_file_without_freezes_has_cases_without_a_time() -> None:
    (outcome,) = cases.run(rules(CASE.replace("at = 2026-12-24T18:00:00+01:00\n", "") + 'expect = "allowed"'))
    assert outcome.wrong == ""


def test_a_case_may_name_hosts() -> None:
    hosts = PERMIT.replace('["fra"]', '["fra/fra-1"]').replace('["ams", "nyc"]', '["ams/ams-1"]')
    case = '[[tests]]\nname = "{}-{}"\nwho = "alice"\nvm = "web-1"\nfrom = "fra/{}"\nto = "ams/{}"\nexpect = "{}"\n'
    ways = [("fra-1", "ams-1", "allowed"), ("fra-2", "ams-1", "refused"), ("fra-1", "ams-2", "refused")]
    outcomes = cases.run(rules(*(case.format(a, b, a, b, expected) for a, b, expected in ways), permit=hosts))
    assert [outcome.wrong for outcome in outcomes] == ["", "", ""]


def test_a_policy_that_fails_its_own_tests_is_wrong() -> None:
    cases.check(rules(FREEZE, CASE + 'expect = "refused"'), "p")
    with pytest.raises(
        ConfigError, match=r"^the policy p fails its own test 'it moves': expected allowed, and it is refused"
    ):
        cases.check(rules(FREEZE, CASE + 'expect = "allowed"'), "p")
    with pytest.raises(ConfigError, match=r"lasts until 2027-01-04 06:00 CET; see `landbridge policy test`$"):
        cases.check(rules(FREEZE, CASE + 'expect = "allowed"'), "p")
    two = CASE + 'expect = "allowed"\n' + CASE.replace("it moves", "again") + 'expect = "approval"'
    with pytest.raises(ConfigError, match=r"\(and 1 more\); see `landbridge policy test`$"):
        cases.check(rules(FREEZE, two), "p")


def test_a_case_that_names_nobody_is_wrong() -> None:
    with pytest.raises(ConfigError, match="the test 'it moves' of the policy names nobody: 'A l' is no valid name"):
        cases.run(rules(CASE.replace('"alice"', '"A l"') + 'expect = "allowed"'))


def test_people_are_named_in_three_ways() -> None:
    read = rules()
    assert cases.named("alice", read) == who("alice")
    assert cases.named("ams/alice", read) == who("alice", "ams")
    assert cases.named(str(who("alice", "ams", "else.where")), read) == who("alice", "ams", "else.where")


def test_a_vm_without_labels_has_none() -> None:
    assert parse(HEAD, "p").labels("web", Labels()) == Labels()


@pytest.mark.parametrize("first", [True, False])
def test_a_rule_that_wants_the_disks_compared_has_them_so_wherever_it_stands(first: bool) -> None:
    wants = PERMIT.replace('"web"', '"proved"').replace('["web-*"]', '["web-1"]') + "verify_disks = true\n"
    both = wants + PERMIT if first else PERMIT + wants
    assert decide(rules(permit=both), request(vm="web-1"), NOON).verify_disks
    assert not decide(rules(permit=both), request(vm="web-2"), NOON).verify_disks


def test_what_waits_for_approvals_says_already_that_its_disks_are_compared() -> None:
    eyes = '[[four_eyes]]\nname = "two"\napprovals = 1\n'
    decision = decide(rules(eyes, permit=PERMIT + "verify_disks = true\n"), request(), NOON)
    assert (decision.verdict, decision.verify_disks) == (Verdict.APPROVAL, True)

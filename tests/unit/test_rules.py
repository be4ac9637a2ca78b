"""gateway/authorization/rules.py: what is right is read, and each mistake is one sentence with its line and key."""

from __future__ import annotations

import re

import pytest

from gateway.authorization import rules as module
from gateway.authorization.request import Labels
from gateway.authorization.roles import OperatorRole
from gateway.authorization.rules import parse
from landbridge.errors import ConfigError
from tests.unit.policies import HEAD, PERMIT, rules, who

FREEZE = """\
[[freezes]]
name = "year end"
timezone = "Europe/Berlin"
begins = 2026-12-20T00:00:00
ends = 2027-01-04T06:00:00
"""
NIGHTS = """\
[[freezes]]
name = "nights"
timezone = "Europe/Berlin"
days = ["mon"]
begins = 22:00:00
ends = 06:00:00
"""
EYES = """\
[[four_eyes]]
name = "two"
approvals = 2
"""
CASE = """\
[[tests]]
name = "it moves"
who = "alice"
vm = "web-1"
from = "fra"
to = "ams"
expect = "allowed"
"""


@pytest.mark.parametrize(
    ("text", "line", "key", "said"),
    [
        (HEAD.replace('"fra"', '"FRA"', 1), 1, "", "'FRA' is no valid site name"),
        (HEAD.replace('site = "fra"', "", 1), 1, "site", "is missing"),
        (HEAD.replace('"example.org"', "5", 1), 2, "trust_domain", "must be text, in quotes"),
        (HEAD.replace("[sites.ams]", '[sites."ams"]').replace('"NL"', '"a=b"'), 13, "sites.ams.country", "'a=b' is no"),
        (
            HEAD.replace("[sites.ams]", "[sites.'ams']").replace('country = "NL"', "'country' = 7"),
            13,
            "sites.ams.country",
            "7",
        ),
        (HEAD + FREEZE.replace('"Europe/Berlin"', "7"), 19, "freezes[1].timezone", "'7' is no time zone known here"),
        (HEAD + FREEZE.replace('"Europe/Berlin"', '""'), 19, "freezes[1].timezone", "'' is no time zone known here"),
        ("colour = 1\n" + HEAD, 1, "colour", "is no key that is known here"),
        (HEAD + 'boss = ["x"]', 17, "sites.nyc.boss", "is no key that is known here"),
        (HEAD.replace("auditor", "boss"), 7, "roles.boss", "'viewer', 'operator', 'approver', 'auditor' or 'admin'"),
        (HEAD.replace('"bob"]', '"B b"]', 1), 5, "roles.operator[2]", "'B b' names nobody"),
        (HEAD.replace('"NL"', '"nl"'), 13, "sites.ams.country", "'nl' is no country"),
        (HEAD.replace('"eu"', '"EU"', 1), 11, "sites.fra.zone", "'EU' is no zone"),
        (HEAD + PERMIT.replace('effect = "permit"', 'effect = "allow"'), 19, "rules[1].effect", "'permit' or 'forbid'"),
        (HEAD + PERMIT.replace('who = ["alice", "bob"]\n', ""), 17, "rules[1]", "add who; * is for all"),
        (HEAD + PERMIT.replace('who = ["alice", "bob"]', "who = []"), 17, "rules[1]", "add who"),
        (HEAD + PERMIT.replace('from = ["fra"]\n', ""), 17, "rules[1]", "add from"),
        (HEAD + PERMIT.replace('to = ["ams", "nyc"]\n', ""), 17, "rules[1]", "add to"),
        (
            HEAD + PERMIT.replace('vms = ["web-*"]\n', ""),
            17,
            "rules[1]",
            "add vms (or owners, tags or classifications)",
        ),
        (HEAD + PERMIT + PERMIT, 1, "", "two of [[rules]] are called 'web'"),
        (HEAD + PERMIT + PERMIT.replace("web", "b").replace('"nyc"', '"x y"'), 30, "rules[2].to[2]", "is no place"),
        (HEAD + FREEZE.replace("Berlin", "Atlantis"), 19, "freezes[1].timezone", "is no time zone known here"),
        (HEAD + FREEZE.replace("00:00:00", "00:00:00Z", 1), 17, "freezes[1]", "leave the offset out"),
        (HEAD + FREEZE.replace("06:00:00", "06:00:00Z", 1), 17, "freezes[1]", "leave the offset out"),
        (HEAD + FREEZE.replace("2027", "2025"), 17, "freezes[1]", "it ends before it begins"),
        (HEAD + FREEZE.replace("2026-12-20T00:00:00", "2027-01-04T06:00:00"), 17, "freezes[1]", "it ends before"),
        (HEAD + FREEZE.replace("2027", "2200"), 17, "freezes[1]", "years 2000 to 2199"),
        (HEAD + FREEZE.replace("2026", "1999"), 17, "freezes[1]", "years 2000 to 2199"),
        (HEAD + FREEZE.replace("2027-01-04T06", "06"), 17, "freezes[1]", "both a date with a time, or both a time"),
        (HEAD + FREEZE.replace("2026-12-20T00", "00"), 17, "freezes[1]", "both a date with a time, or both a time"),
        (HEAD + FREEZE + 'days = ["mon"]', 17, "freezes[1]", "with days, begins and ends are times"),
        (HEAD + NIGHTS.replace('days = ["mon"]\n', ""), 17, "freezes[1]", "say on which days"),
        (HEAD + NIGHTS.replace('"mon"', '"monday"'), 20, "freezes[1].days[1]", "'monday' is no day: write mon, tue"),
        (HEAD + NIGHTS.replace('"mon"', ""), 20, "freezes[1].days", "must have at least 1 item, not 0"),
        (HEAD + FREEZE + FREEZE, 1, "", "two of [[freezes]] are called"),
        (HEAD + EYES.replace("2", "0"), 19, "four_eyes[1].approvals", "greater than or equal to 1"),
        (HEAD + EYES.replace("2", "17"), 19, "four_eyes[1].approvals", "less than or equal to 16"),
        (HEAD + EYES + 'by = ["carol"]', 17, "four_eyes[1]", "2 approvals cannot come from 1 people"),
        (HEAD + EYES + 'by = ["carol", "carol"]', 17, "four_eyes[1]", "2 approvals cannot come from 1 people"),
        (HEAD + EYES + EYES, 1, "", "two of [[four_eyes]] are called"),
        (HEAD + '[residency]\nsecret = ["FR"]', 1, "", "residency.secret allows 'FR', where no site of [sites] is"),
        (HEAD + '[residency]\nsecret = ["Fr"]', 18, "residency.secret[1]", "'Fr' is neither a country"),
        (HEAD + "[approvals]\nexpire_hours = 0", 18, "approvals.expire_hours", "greater than 0"),
        (HEAD + "[approvals]\nexpire_hours = 745", 18, "approvals.expire_hours", "less than or equal to 744"),
        (
            HEAD + '[[transfers]]\nname = "a"\nvms = ["*"]',
            17,
            "transfers[1]",
            "it says nothing: add purpose, legal_basis",
        ),
        (
            HEAD + '[[transfers]]\nname = "a"\nlegal_basis = "adequacy"',
            19,
            "transfers[1].legal_basis",
            "'consent', 'contract'",
        ),
        (
            HEAD + '[[transfers]]\nname = "a"\ntransfer_mechanism = "scc"',
            19,
            "transfers[1].transfer_mechanism",
            "'scc-eu'",
        ),
        (HEAD + '[[transfers]]\nname = "a"\npurpose = "x"\n' * 2, 1, "", "two of [[transfers]] are called"),
        (HEAD + '[break_glass]\nwho = "alice"', 18, "break_glass.who", "must be a list, in [ ]"),
        (HEAD + "[[vms]]\nnames = []", 18, "vms[1].names", "must have at least 1 item, not 0"),
        (HEAD + CASE.replace('"allowed"', '"yes"'), 23, "tests[1].expect", "'allowed', 'refused' or 'approval'"),
        (HEAD + CASE + "at = 2026-12-24T18:00:00", 17, "tests[1]", "write it with its offset"),
        (HEAD + CASE + "at = 1999-12-24T18:00:00Z", 17, "tests[1]", "`at` is an instant"),
        (HEAD + FREEZE + CASE, 1, "", "with freezes, each test says when: add `at` to 'it moves'"),
        (HEAD + CASE + CASE, 1, "", "two of [[tests]] are called"),
    ],
)
def test_a_mistake_is_one_sentence_with_its_line_and_key(text: str, line: int, key: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(text, "policy.toml")
    where = f"line {line}, {key}" if key else f"line {line}"
    assert re.match(f"the policy policy.toml is wrong at {re.escape(where)}(:| is| must) ", error.value.message)
    assert said in error.value.message
    assert "\n" not in error.value.message
    assert all(word not in error.value.message for word in ("Value error", "Input", "String", "Tuple"))
    assert "(and 0 more" not in error.value.message


def test_what_is_not_toml_is_said_with_its_line() -> None:
    with pytest.raises(ConfigError, match=r"the policy p is not TOML: .*line 1"):
        parse("[roles\n", "p")


def test_a_table_that_nests_too_deep_is_not_toml() -> None:
    with pytest.raises(ConfigError, match="is not TOML"):
        parse("a = " + "[" * 100_000, "p")


def test_further_mistakes_are_counted() -> None:
    with pytest.raises(ConfigError, match=r"\(and 1 more mistakes\)$"):
        parse(HEAD + PERMIT.replace('"permit"', '"allow"').replace('"fra"', '"F"'), "p")


def test_a_file_that_is_too_long_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_CHARACTERS", len(HEAD))
    assert parse(HEAD, "p").site == "fra"
    with pytest.raises(ConfigError, match="at most"):
        parse(HEAD + "#", "p")


def test_a_list_that_is_too_long_is_a_mistake() -> None:
    names = ", ".join(['"a"'] * 1001)
    with pytest.raises(ConfigError, match="at most 1000 items"):
        parse(HEAD.replace('["vera"]', f"[{names}]"), "p")


def test_a_policy_that_says_all_there_is_to_say_is_read() -> None:
    read = rules(
        FREEZE, NIGHTS, EYES + 'by = ["c*"]', '[residency]\nsecret = ["DE"]\nunclassified = ["*"]', "[approvals]"
    )
    assert (read.here.trust_domain, read.here.site) == ("example.org", "fra")
    assert [freeze.name for freeze in read.freezes] == ["year end", "nights"]
    assert read.freezes[1].days == (0,)
    assert read.approvals.expire_hours == 24.0
    assert read.residency == {"secret": ("DE",), "unclassified": ("*",)}
    assert rules().residency is None


def test_a_freeze_may_last_to_the_last_day_of_the_years() -> None:
    assert rules(FREEZE.replace("2027-01-04", "2199-12-31").replace("2026-12-20", "2000-01-01")).freezes


def test_what_an_approver_says_can_be_had_if_patterns_or_enough_names_are_given() -> None:
    assert rules(EYES + 'by = ["carol", "dave"]').four_eyes[0].approvals == 2
    assert rules(EYES + 'by = ["c*"]').four_eyes[0].approvals == 2
    assert rules(EYES).four_eyes[0].by is None


def test_people_of_this_site_are_what_the_file_says() -> None:
    read = rules()
    assert read.roles_of(who("bob")) == {OperatorRole.OPERATOR, OperatorRole.APPROVER}
    assert read.roles_of(who("vera")) == {OperatorRole.VIEWER}
    assert read.roles_of(who("mallory")) == frozenset()


def test_nobody_of_another_site_is_anything_here_whatever_the_file_says() -> None:
    read = rules(head=HEAD.replace('"alice", "bob"', '"*/*", "spiffe://*/site/*/operator/*"'))
    assert read.roles_of(who("alice")) == {OperatorRole.OPERATOR}
    assert read.roles_of(who("alice", "ams")) == frozenset()
    assert read.roles_of(who("alice", "fra", "else.where")) == frozenset()


VMS = """\
[[vms]]
names = ["hr-*", "payroll"]
classification = "restricted"
[[vms]]
names = ["*-db"]
classification = "internal"
owner = "dba"
tags = ["db"]
"""


def test_what_a_vm_is_comes_from_the_first_entry_that_says_it_then_from_itself() -> None:
    own = Labels("me", "public", frozenset({"mine"}))
    read = rules(VMS)
    assert read.labels("web", own) == own
    assert read.labels("payroll", own) == Labels("me", "restricted", frozenset({"mine"}))
    assert read.labels("hr-db", own) == Labels("dba", "restricted", frozenset({"db"}))
    assert read.labels("x-db", own) == Labels("dba", "internal", frozenset({"db"}))


def test_tags_of_the_file_replace_those_of_the_vm_also_if_there_are_none() -> None:
    read = rules('[[vms]]\nnames = ["web-*"]\ntags = []\nowner = "ops"')
    assert read.labels("web-1", Labels(tags=frozenset({"mine"}))) == Labels("ops")


def test_the_lines_of_keys_in_quotes_and_of_later_tables_are_found() -> None:
    text = HEAD + PERMIT + PERMIT.replace("web", "b") + PERMIT.replace('"web"', '"c"').replace("effect", '"effect"')
    with pytest.raises(ConfigError, match=r"line 33, rules\[3\]\.effect"):
        parse(text[::-1].replace('"timrep"', '"timrap"', 1)[::-1], "p")

"""The tests that a policy file carries: what it is to decide, and what it does. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from certs.identity import Identity, Role
from gateway.authorization.decide import Decision, decide
from gateway.authorization.request import Labels, Request, operator
from gateway.authorization.rules import Case, Rules
from landbridge.errors import ConfigError, IdentityError

# For a file without freezes, to which every instant is the same.
_ANY_TIME = datetime(2000, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Outcome:
    """What came of a case."""

    case: Case
    decision: Decision
    # What is not as the case has it, in one sentence; empty if all is.
    wrong: str


def run(rules: Rules) -> list[Outcome]:
    """Every case of the file, in its order. Raises ConfigError for one that names nobody."""
    return [_run(rules, case) for case in rules.tests]


def _run(rules: Rules, case: Case) -> Outcome:
    own = Labels(case.owner, case.classification, frozenset(case.tags))
    source, _, source_host = case.source.partition("/")
    destination, _, destination_host = case.destination.partition("/")
    try:
        request = Request(
            named(case.who, rules),
            case.vm,
            source,
            source_host,
            destination,
            destination_host,
            own,
            frozenset(named(each, rules) for each in case.approved_by),
            "a test" if case.break_glass else "",
            case.purpose,
        )
    except IdentityError as error:
        raise ConfigError(f"the test {case.name!r} of the policy names nobody: {error.message}") from error
    decision = decide(rules, request, case.at or _ANY_TIME)
    return Outcome(case, decision, _wrong(case, decision))


def _wrong(case: Case, decision: Decision) -> str:
    if decision.verdict != case.expect:
        why = f": {decision.reason}" if decision.reason else ""
        return f"expected {case.expect}, and it is {decision.verdict} by {decision.rule}{why}"
    if case.rule is not None and case.rule not in {decision.rule, decision.rule.partition('"')[2].removesuffix('"')}:
        return f"expected {case.rule!r} to decide, and it was {decision.rule}"
    return ""


def named(text: str, rules: Rules) -> Identity:
    """An operator as people write them: NAME, SITE/NAME or a SPIFFE ID. Raises IdentityError."""
    if "://" in text:
        return operator(text)
    site, slash, name = text.rpartition("/")
    return Identity(rules.trust_domain, site if slash else rules.site, Role.OPERATOR, name)


def check(rules: Rules, file: str) -> None:
    """Raises ConfigError unless every case holds: a policy that fails its own tests is not in force."""
    failed = [outcome for outcome in run(rules) if outcome.wrong]
    if failed:
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        raise ConfigError(
            f"the policy {file} fails its own test {failed[0].case.name!r}: {failed[0].wrong}{more}; see `landbridge policy test`"
        )

"""What the sites' policies have decided, for people."""

from collections.abc import Iterable, Iterator

import click

from gateway.cli import output, words
from landbridge.v1.decision_pb2 import VERDICT_ALLOWED, VERDICT_APPROVAL, VERDICT_REFUSED, Decision, Labels, Verdict
from landbridge.v1.types_pb2 import Migration

_STYLES = {VERDICT_ALLOWED: "green", VERDICT_APPROVAL: "yellow", VERDICT_REFUSED: "red"}
_SAID = {VERDICT_ALLOWED: "allowed", VERDICT_APPROVAL: "waits for approval", VERDICT_REFUSED: "refused"}
_HASH = 12  # characters: enough to tell two files apart
_MARGIN = 17  # "  yes  " and the longest check, "break-glass"


def pairs(decisions: Iterable[Decision]) -> Iterator[tuple[str, str]]:
    """A line for each site's."""
    for decision in decisions:
        yield f"policy of {words.safe(decision.site)}", _verdict(decision)


def show(decisions: Iterable[Decision]) -> None:
    """Print each with all that was looked at; on a terminal in lines that fit."""
    console = output.terminal()
    for decision in decisions:
        verdict = click.style(_verdict(decision), fg=_STYLES.get(decision.verdict))
        whose = words.safe(decision.site)
        if decision.action not in {"", "migrate"}:
            whose = f"{whose}, {words.safe(decision.action)} by {words.safe(decision.requester)}"
        click.echo(f"{whose}: {verdict}")
        for step in decision.steps:
            mark = "yes" if step.passed else "no"
            lines = output.wrapped(words.safe(step.sentence), _MARGIN + 2, console)
            click.echo(f"  {mark:<3}  {words.safe(step.check):<{_MARGIN - 5}}{lines[0]}")
            for line in lines[1:]:
                click.echo(" " * (_MARGIN + 2) + line)


def _verdict(decision: Decision) -> str:
    said = _SAID.get(decision.verdict) or words.word(Verdict.DESCRIPTOR, decision.verdict)
    by = f" by {words.safe(decision.rule)}" if decision.rule else ""
    glass = f"; the glass was broken: {words.safe(decision.break_glass)}" if decision.break_glass else ""
    request = f"; request {words.safe(decision.request)}" if decision.request else ""
    policy = f" (policy {words.safe(decision.policy_sha256[:_HASH])})" if decision.policy_sha256 else ""
    return f"{said}{by}{glass}{request}{policy}"


def grounds(asked: Migration) -> Iterator[tuple[str, str]]:
    """Why it is asked for, and by what right; what nobody says is left out."""
    said, policy = asked.grounds, f"by the policy of site {asked.source_site}"
    found = (
        ("purpose", asked.purpose, "as who asks says"),
        ("purpose", said.purpose, policy),
        ("legal basis", said.legal_basis, policy),
        ("transferred by", said.transfer_mechanism, policy),
    )
    # Who says so: an approver of the destination is not to take it for the word of their own policy.
    return ((name, words.safe(f"{value} ({who})")) for name, value, who in found if value)


def labels(said: Labels) -> str:
    """What a VM is, on one line."""
    parts = [said.classification, f"owner {said.owner}" if said.owner else "", *(f"tag {tag}" for tag in said.tags)]
    return ", ".join(words.safe(part) for part in parts if part)

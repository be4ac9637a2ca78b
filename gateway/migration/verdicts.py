"""What decisions of the sites' policies are among preflight's findings. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.authorization.request import digest
from landbridge.errors import ProtocolError
from landbridge.v1.decision_pb2 import Decision, Verdict
from landbridge.v1.types_pb2 import Finding, Migration, Severity

REFUSED = "policy-refused"
APPROVAL = "approval-needed"
GLASS = "glass-broken"
UNREACHABLE = "site-unreachable"


def told_by_destination(decision: Decision, migration: Migration) -> Decision:
    """What the destination has answered, as its own word on what it was asked. Raises ProtocolError if it speaks for another site."""
    if decision.site != migration.destination_site:
        raise ProtocolError(
            f"site {migration.destination_site} answers in the name of site {decision.site[:80]!r}: that is refused"
        )
    kept = Decision()
    kept.CopyFrom(decision)
    kept.action, kept.requester, kept.request_sha256 = "migrate", migration.requested_by, digest(migration)
    return kept


def findings(decisions: Sequence[Decision]) -> list[Finding]:
    """A finding for each that is no plain yes."""
    return [found for decision in decisions if (found := _finding(decision)) is not None]


def _finding(decision: Decision) -> Finding | None:
    why = decision.steps[0].sentence if decision.steps else "no reason is given"
    if decision.verdict == Verdict.VERDICT_ALLOWED:
        if not decision.break_glass:
            return None
        return Finding(
            code=GLASS,
            severity=Severity.SEVERITY_WARNING,
            message=f"the glass is broken at site {decision.site}: what its policy holds against this is overridden",
            remedy="expect to be asked about it: it is recorded with the reason",
        )
    if decision.verdict == Verdict.VERDICT_APPROVAL:
        return Finding(
            code=APPROVAL,
            severity=Severity.SEVERITY_WARNING,
            message=f"the policy of site {decision.site} has others approve it first: {why}",
            remedy="ask for the migration: that makes a request, which approvers see with `landbridge requests`",
        )
    return Finding(
        code=REFUSED,
        severity=Severity.SEVERITY_ERROR,
        message=f"the policy of site {decision.site} refuses it by {decision.rule or 'no rule'}: {why}",
        remedy="see all of it with `landbridge policy explain`; who may change the policy is for that site to say",
    )


def unreachable(site: str, why: str) -> Finding:
    """That the other site could not be asked."""
    return Finding(
        code=UNREACHABLE,
        severity=Severity.SEVERITY_ERROR,
        message=f"site {site} cannot be reached: {why}",
        remedy="see whether its gateway runs, and whether the WAN is up (landbridge sites)",
    )

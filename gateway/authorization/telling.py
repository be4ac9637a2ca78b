"""What the audit log is told of a migration and of decisions about it, in the fields of entries. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC

from gateway.audit.canonical import Value
from gateway.audit.fields import LIST_ITEMS, digest, stamp
from landbridge.v1.decision_pb2 import Approval, Decision, Grounds, Verdict
from landbridge.v1.types_pb2 import Migration

_DECISIONS = {
    Verdict.VERDICT_ALLOWED: "permit",
    Verdict.VERDICT_REFUSED: "deny",
    Verdict.VERDICT_APPROVAL: "approval",
}


def about(migration: Migration, country: Callable[[str], str]) -> dict[str, Value]:
    """Which VM, from where to where; `country` says where a site is, "" if that is not known."""
    found: dict[str, Value] = {
        "source": _end(migration.source_site, migration.source_host, country),
        "destination": _end(migration.destination_site, migration.destination_host, country),
        "vm": _without_empty(
            {
                "name": migration.vm,
                "uuid": migration.vm_uuid,
                "xml_sha256": _digest(migration.domain_sha256),
                "owner": migration.labels.owner,
                "data_classes": [migration.labels.classification] if migration.labels.classification else "",
            }
        ),
    }
    return {name: value for name, value in found.items() if value}


def _end(site: str, host: str, country: Callable[[str], str]) -> Value:
    return _without_empty({"site": site, "host": host, "country": country(site) if site else ""})


def asked(
    migration: Migration, country: Callable[[str], str], bound: dict[str, Value], claimed_by: str
) -> tuple[dict[str, Value], dict[str, Value]]:
    """What is seen of a request, `bound` among it, and what is claimed: all that another site, if it is of one, says."""
    said, facts = purpose(migration), about(migration, country) | grounds(migration.grounds)
    return (bound, facts | said) if claimed_by else (facts | bound, said)


def purpose(migration: Migration) -> dict[str, Value]:
    """Why it is asked for, which nobody but who asks knows: a claim, at both sites."""
    return {"request": {"purpose": migration.purpose}} if migration.purpose else {}


def grounds(said: Grounds) -> dict[str, Value]:
    """Why it moves, and by what right, as a policy has it: a fact to the site whose policy it is, and a claim to the other."""
    return _without_empty(
        {"purpose": said.purpose, "legal_basis": said.legal_basis, "transfer_mechanism": said.transfer_mechanism}
    )


def policy(decision: Decision) -> dict[str, Value]:
    """By which rule of which policy it was decided."""
    facts: dict[str, Value] = {"decision": _DECISIONS[decision.verdict]} if decision.verdict in _DECISIONS else {}
    if decision.rule:
        facts["ids"] = [decision.rule]
    if _digest(decision.policy_sha256):
        facts["bundle_sha256"] = decision.policy_sha256
    return {"policy": facts} if facts else {}


def approvers(approvals: Sequence[Approval]) -> dict[str, Value]:
    """Who has approved it, and when."""
    given: list[Value] = [{"id": each.approver} | _time(each) for each in approvals[:LIST_ITEMS] if each.approver]
    return {"approvers": given} if given else {}


def _time(approval: Approval) -> dict[str, Value]:
    try:
        return {"time": stamp(approval.at.ToDatetime(UTC))}
    except (ValueError, OverflowError):  # another site may say anything
        return {}


def claimed(requester: str, site: str) -> dict[str, Value]:
    """An actor that another site names."""
    return {"id": requester, "role": "operator", "method": f"as site {site} says"} if requester else {}


def sentence(decision: Decision) -> str:
    """Why it was decided so."""
    why = decision.steps[0].sentence if decision.steps else "no reason is given"
    return f"the policy of site {decision.site}, {decision.rule or 'no rule'}: {why}"


def _digest(text: str) -> str:
    """What is a digest; "" for anything else that another site may say."""
    return "" if digest(text) else text


def _without_empty(facts: dict[str, Value]) -> dict[str, Value]:
    return {name: value for name, value in facts.items() if value}

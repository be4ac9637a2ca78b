"""What is to be judged: one VM's move, asked for by one operator; and the hash that approvals are bound to. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field

from certs.identity import Identity, Role, parse
from landbridge.errors import IdentityError, UsageError
from landbridge.v1.agent_pb2 import Mapping
from landbridge.v1.decision_pb2 import Grounds as GroundsMessage
from landbridge.v1.decision_pb2 import Labels as LabelsMessage
from landbridge.v1.types_pb2 import Migration, Policy

# Of what another site says: more is refused.
MOST_APPROVALS = 64
MOST_TAGS = 64
MOST_CHARACTERS = 255
REASON_CHARACTERS = 500

# What the hash covers, so that no other hash of Landbridge's is ever taken for it; the number grows with the fields.
DOMAIN = "landbridge request 2"


@dataclass(frozen=True)
class Labels:
    """What a VM is, to those who write rules."""

    owner: str = ""
    classification: str = ""
    tags: frozenset[str] = frozenset()

    @classmethod
    def of(cls, message: LabelsMessage) -> Labels:
        """Read them. Raises UsageError for more than labels are."""
        texts = (message.owner, message.classification, *message.tags)
        if len(message.tags) > MOST_TAGS or any(len(text) > MOST_CHARACTERS for text in texts):
            raise UsageError(
                f"a VM has at most {MOST_TAGS} tags, and a label at most {MOST_CHARACTERS} characters: shorten them"
            )
        return cls(message.owner, message.classification, frozenset(message.tags))

    def message(self) -> LabelsMessage:
        """The same for others."""
        return LabelsMessage(owner=self.owner, classification=self.classification, tags=sorted(self.tags))


@dataclass(frozen=True)
class Grounds:
    """Why something is moved, and by what right, as a policy has it; what is empty, it does not say."""

    purpose: str = ""
    legal_basis: str = ""
    transfer_mechanism: str = ""

    def message(self) -> GroundsMessage | None:
        """The same for others; None for nothing."""
        said = GroundsMessage(
            purpose=self.purpose, legal_basis=self.legal_basis, transfer_mechanism=self.transfer_mechanism
        )
        return said if self != NOTHING_SAID else None


NOTHING_SAID = Grounds()


@dataclass(frozen=True)
class Request:
    """One move. At the destination, everything in it is a claim of the source's gateway, except which site that is."""

    requester: Identity
    vm: str
    source_site: str
    source_host: str
    destination_site: str
    destination_host: str
    labels: Labels = Labels()
    # Who has approved exactly this.
    approvals: frozenset[Identity] = field(default_factory=frozenset)
    # Why the glass is to be broken; empty: it is not.
    break_glass: str = ""
    # Why the VM is to move, as who asks says.
    purpose: str = ""


def request_of(migration: Migration, approvals: Iterable[Identity] = ()) -> Request:
    """What a migration asks for. Raises UsageError or IdentityError for one that cannot be judged."""
    claimed = [operator(approval.approver) for approval in migration.approvals[: MOST_APPROVALS + 1]]
    if len(claimed) > MOST_APPROVALS:
        raise UsageError(f"a request has at most {MOST_APPROVALS} approvals")
    names = (
        migration.vm,
        migration.source_site,
        migration.source_host,
        migration.destination_site,
        migration.destination_host,
    )
    if not all(names[:2]) or not names[3] or any(len(name) > MOST_CHARACTERS for name in names):
        raise UsageError(
            f"a request names its VM and both sites, each with at most {MOST_CHARACTERS} characters; this one does not"
        )
    if len(migration.break_glass) > REASON_CHARACTERS:
        raise UsageError(f"a reason for breaking the glass has at most {REASON_CHARACTERS} characters: shorten it")
    if len(migration.purpose) > REASON_CHARACTERS:
        raise UsageError(f"a purpose has at most {REASON_CHARACTERS} characters: shorten it")
    grounds = migration.grounds
    if any(len(text) > MOST_CHARACTERS for text in (grounds.purpose, grounds.legal_basis, grounds.transfer_mechanism)):
        raise UsageError(f"what a policy says of a purpose or a legal basis has at most {MOST_CHARACTERS} characters")
    return Request(
        operator(migration.requested_by),
        *names,
        Labels.of(migration.labels),
        frozenset({*claimed, *approvals}),
        migration.break_glass,
        migration.purpose,
    )


def operator(text: str) -> Identity:
    """An operator's identity. Raises IdentityError."""
    who = parse(text)
    if who.role is not Role.OPERATOR:
        raise IdentityError(f"{who} is no operator: only people ask for migrations and approve them")
    return who


def digest(migration: Migration) -> str:
    """SHA-256, as hex, of exactly what is asked for: who, which VM with which definition, from where to where, how, and on what grounds.

    "Where" is also in which pools and networks.

    The hash of canonical JSON (sorted keys, no spaces, ASCII), so that programs of others can make it too.
    """
    policy = migration.policy
    facts = {
        "domain": DOMAIN,
        "requester": migration.requested_by,
        "vm": migration.vm,
        "vm_uuid": migration.vm_uuid,
        "domain_sha256": migration.domain_sha256,
        "mapping_sha256": migration.mapping_sha256,
        "source": [migration.source_site, migration.source_host],
        "destination": [migration.destination_site, migration.destination_host],
        "labels": [migration.labels.owner, migration.labels.classification, sorted(migration.labels.tags)],
        "max_downtime_ms": policy.max_downtime_ms,
        "deadline_ms": policy.deadline_ms if policy.HasField("deadline_ms") else None,
        "on_no_convergence": policy.on_no_convergence,
        "break_glass": migration.break_glass,
    }
    # What follows only where it is said, so that all else has the hash that it had before there was this.
    if policy.verify_disks:
        facts["verify_disks"] = True
    if migration.purpose:
        facts["purpose"] = migration.purpose
    if migration.HasField("grounds"):
        grounds = migration.grounds
        facts["grounds"] = [grounds.purpose, grounds.legal_basis, grounds.transfer_mechanism]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def asked(migration: Migration) -> Migration:
    """What the hash covers of a migration, and nothing else that somebody may have put beside it."""
    policy, labels = migration.policy, migration.labels
    kept = Migration(
        requested_by=migration.requested_by,
        vm=migration.vm,
        vm_uuid=migration.vm_uuid,
        domain_sha256=migration.domain_sha256,
        mapping_sha256=migration.mapping_sha256,
        source_site=migration.source_site,
        source_host=migration.source_host,
        destination_site=migration.destination_site,
        destination_host=migration.destination_host,
        break_glass=migration.break_glass,
        purpose=migration.purpose,
    )
    if migration.HasField("labels"):
        kept.labels.CopyFrom(LabelsMessage(owner=labels.owner, classification=labels.classification, tags=labels.tags))
    if migration.HasField("grounds"):
        said = migration.grounds
        kept.grounds.CopyFrom(
            GroundsMessage(
                purpose=said.purpose, legal_basis=said.legal_basis, transfer_mechanism=said.transfer_mechanism
            )
        )
    if migration.HasField("policy"):
        kept.policy.CopyFrom(
            Policy(
                max_downtime_ms=policy.max_downtime_ms,
                deadline_ms=policy.deadline_ms if policy.HasField("deadline_ms") else None,
                on_no_convergence=policy.on_no_convergence,
                verify_disks=policy.verify_disks,
            )
        )
    return kept


def domain_digest(domain_xml: str) -> str:
    """SHA-256, as hex, of a VM's definition as its hypervisor gave it."""
    return hashlib.sha256(domain_xml.encode()).hexdigest()


def mapping_digest(mapping: Mapping) -> str:
    """SHA-256, as hex, of which pools and networks there stand for those here; of canonical JSON, as `digest`."""
    facts = {"networks": dict(mapping.networks), "pools": dict(mapping.pools)}
    return hashlib.sha256(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

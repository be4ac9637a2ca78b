"""The vocabulary of the audit log: every event, with a code that never changes and is never used again.

The last letter of a code says how it went: I as it should, W refused or disturbed, E failed.

`python -m landbridge.events` draws the table as docs/audit-events.md.
"""

from __future__ import annotations

import enum
import sys
from types import MappingProxyType
from typing import NamedTuple


class Severity(enum.StrEnum):
    """The last letter of a code."""

    INFORMATION = "I"
    WARNING = "W"
    ERROR = "E"


class Event(NamedTuple):
    """One kind of event. `name` is noun.verb; `meaning` is a sentence for people."""

    code: str
    name: str
    meaning: str

    @property
    def severity(self) -> Severity:
        """How it went."""
        return Severity(self.code[-1])


_EVENTS = (
    # The log itself.
    Event("L001I", "log.started", "The log was opened for writing."),
    Event("L002I", "log.stopped", "The log was closed in good order."),
    Event("L003I", "log.idle", "Nothing happened since the last entry."),
    Event("L004I", "log.read", "Somebody read the audit log."),
    Event("L005I", "log.exported", "Somebody exported a part of the audit log."),
    Event("L006I", "log.pruned", "Entries older than their retention were removed; proofs of all others stay valid."),
    Event("L007I", "log.cosigned", "A witness cosigned the log's checkpoint, or this site cosigned another's."),
    Event("L008E", "log.forked", "A log showed two histories that do not fit together."),
    # A migration, in its order.
    Event("M001I", "migration.requested", "An operator asked for a migration."),
    Event("M002I", "migration.checked", "Preflight found nothing that stands against a migration."),
    Event("M003W", "migration.refused", "Preflight refused a migration."),
    Event("M004I", "migration.permitted", "The policies of the sites permitted a migration."),
    Event("M005W", "migration.denied", "A policy denied a migration."),
    Event("M006I", "migration.approved", "An operator approved a migration."),
    Event("M007I", "migration.stepped", "A migration went on to its next state."),
    Event("M008I", "migration.limited", "The limit or the rule of a running migration was changed."),
    Event("M009W", "migration.held", "A migration was held: it waits, and nothing is lost."),
    Event("M010I", "migration.resumed", "A held migration goes on."),
    Event("M011I", "migration.admitted", "The firewall admitted the definition of an arriving VM."),
    Event("M012I", "migration.finished", "The firewall let the destination finish: all has arrived whole."),
    Event("M013I", "migration.delivered", "A channel ended; its digests say what was delivered."),
    Event("M014I", "migration.completed", "The VM runs at the destination."),
    Event("M015E", "migration.failed", "A migration failed; the reason says where the VM is."),
    Event("M016W", "migration.cancelled", "A migration was cancelled; the VM goes on at the source."),
    Event("M017W", "migration.returned", "A migration was rolled back; the VM goes on at the source."),
    Event("M018I", "migration.settled", "What was left of a migration was cleared away."),
    Event("M019I", "migration.receipted", "The receipt of a migration was made."),
    Event("M020I", "disk.verified", "The disks at both ends were compared as stored, and are equal."),
    Event("M021E", "disk.differs", "The disks at both ends were compared as stored, and differ."),
    Event("M022W", "disk.unproved", "The disks at both ends were to be compared, and could not be."),
    Event("M023I", "migration.left", "A source host that did not know it is told that the VM has left for good."),
    Event("M024E", "migration.doubled", "A VM was let run by somebody where it is not, and may run twice."),
    Event("M025W", "migration.forced", "An admin lets a VM run that has arrived whole; its source, they say, is lost."),
    # Who may do what.
    Event("S001W", "access.denied", "A caller was known, and not allowed to do what it asked for."),
    Event("S002W", "identity.refused", "A caller did not prove who it is."),
    Event("S003W", "call.refused", "The firewall refused a call of another host's hypervisor."),
    Event("S004I", "policy.changed", "A policy was changed."),
    Event("S005I", "role.changed", "A role or its members were changed."),
    Event("S006I", "key.changed", "A key or a certificate was issued, renewed or withdrawn."),
    Event("S007I", "configuration.changed", "The configuration of a program was changed."),
    Event("S008I", "trust.changed", "Another site is trusted, or not any more."),
    # What joins and leaves.
    Event("N001I", "agent.joined", "An agent connected to the gateway."),
    Event("N002W", "agent.left", "An agent does not answer any more."),
    Event("N003I", "tunnel.opened", "The tunnel to another site is up."),
    Event("N004I", "tunnel.closed", "The tunnel to another site was closed in good order."),
    Event("N005W", "outage.began", "Something that migrations need does not answer."),
    Event("N006I", "outage.ended", "What did not answer answers again."),
    Event("N007W", "clock.stepped", "The clock of this machine jumped."),
    Event(
        "N008I", "host.removed", "A host was taken out of service: it is revoked, and belongs to its site no longer."
    ),
    Event("N009I", "site.left", "This site and another one are joined no longer: trust in it has ended."),
)

BY_NAME = MappingProxyType({event.name: event for event in _EVENTS})
BY_CODE = MappingProxyType({event.code: event for event in _EVENTS})


def page() -> str:
    """The table as a page of the documentation."""
    rows = [f"| {event.code} | `{event.name}` | {event.meaning} |" for event in _EVENTS]
    head = [
        "# Events of the audit log",
        "",
        "Drawn by `python -m landbridge.events`. A code never changes its meaning.",
        "",
    ]
    return "\n".join([*head, "| code | event | |", "|---|---|---|", *rows]) + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())

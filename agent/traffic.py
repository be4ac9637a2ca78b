"""What the channels of a migration have in common at a host: how much they carry, how they end, and whether the VM may arrive."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog

from agent.stream.firewall import Firewall, Refusal
from agent.stream.libvirt_rpc import Message
from landbridge.v1.agent_pb2 import Delivered

if TYPE_CHECKING:  # each channel knows its migration's traffic, too
    from agent.relay import Carrier

log = structlog.get_logger()

KINDS = ("rpc", "ram", "disk")

# Seconds of silence that are told; an agent that is well is heard every two seconds (`landbridge.channel.KEEPALIVE`).
SILENCE = 5.0


@dataclass
class Traffic:
    """Of one migration. Owned by the event loop."""

    # Seconds for which the other agent may be silent.
    outage_limit: float = 900.0
    # Bytes per kind, read from and written to the local sockets.
    read: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    written: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    # Why the first channel was lost, if one was: the cause behind libvirt's "lost connection".
    failure: str | None = None
    # The kinds of channels whose local socket was closed on this host while the far end still had it open, or was to be answered.
    closed_here: set[str] = field(default_factory=set)
    # Every channel so far.
    carriers: list[Carrier] = field(default_factory=list)
    # Called when a channel was lost; its socket then stays open for LOST_GRACE, unless somebody closes it before.
    on_lost: Callable[[], None] | None = None
    # Called with the kind when the local socket of a channel has ended.
    on_close: Callable[[str], None] | None = None
    # Called with each message of an rpc channel: those that libvirtd has written before they go on, and those for libvirtd
    # after it was given them.
    on_message_from_libvirtd: Callable[[Message], None] | None = None
    on_message_to_libvirtd: Callable[[Message], None] | None = None
    # At the destination: what may be called on the migration's one rpc channel, and who is told what was refused.
    firewall: Firewall | None = None
    # At the destination: whether what has arrived of disks is on stable storage, None while that is not known; who sets it sees to it,
    # and the source's QEMU is told that it need not flush.
    is_stored: Callable[[], bool | None] | None = None
    on_refused: Callable[[Refusal], None] | None = None

    def silent(self, now: float) -> float | None:
        """For how many seconds the other agent has not been heard, if that is worth telling."""
        silences = [now - c.channel.heard_at for c in self.carriers if c.is_waiting]
        longest = max(silences, default=0.0)
        return longest if longest > SILENCE else None

    @property
    def has_reached_other_host(self) -> bool:
        """Whether a channel was accepted so far, by the other agent or by this one."""
        return any(carrier.channel.has_been_open for carrier in self.carriers)

    @property
    def repeated_bytes(self) -> int:
        """Bytes that this host has sent more than once."""
        return sum(carrier.channel.outgoing.repeated_bytes for carrier in self.carriers)

    @property
    def moved_bytes(self) -> int:
        """Bytes that the other host's sockets have taken, and that have come from there."""
        return sum(each.channel.outgoing.acknowledged + each.channel.incoming.received for each in self.carriers)

    def unhinted(self, kind: str) -> tuple[int, str]:
        """Bytes of a kind of channel without a hint, and why the first that was not understood was not."""
        hinters = [each.pages.hinter for each in self.carriers if each.kind == kind and each.pages is not None]
        why = next((hinter.not_understood for hinter in hinters if not hinter.understood), "")
        return sum(hinter.unhinted_bytes for hinter in hinters), why

    def fail(self, why: str) -> None:
        """Note a cause; the first one stays."""
        self.failure = self.failure or why

    def delivered(self, *, is_source: bool) -> list[Delivered]:
        """Of every direction of a channel that has ended: its bytes and their digest, as this end has seen them."""
        found = []
        for carrier in self.carriers:
            out, into = carrier.channel.outgoing, carrier.channel.incoming
            # The end counts as a byte of what comes.
            for sent, ended, size, digest in (
                (True, out.is_ended, out.position, out.digest),
                (False, into.is_ended, into.received - 1, into.digest),
            ):
                if ended:
                    what = Delivered(kind=carrier.kind, index=carrier.index, to_destination=sent is is_source)
                    what.sent, what.bytes, what.blake3 = sent, size, digest
                    found.append(what)
        return found

    # The gate

    def is_whole(self) -> bool | None:
        """Whether memory and disks have arrived unaltered; None while that is not known yet."""
        streams = [carrier for carrier in self.carriers if carrier.kind != "rpc"]
        if self.failure is not None or not streams or any(carrier.is_broken for carrier in streams):
            return False
        if not all(carrier.has_arrived for carrier in streams):
            return None
        return True if self.is_stored is None else self.is_stored()

    def look_at_gate(self) -> None:
        """Let a FINISH call that is held pass, if it is known by now as what."""
        whole = self.is_whole()
        for carrier in self.carriers:
            if carrier.calls is not None and carrier.calls.is_held and whole is not None:
                log.info("gate.open" if whole else "gate.cancel", reason=self.failure)
                carrier.pass_gate(whole)

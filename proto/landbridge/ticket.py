"""Tickets: what opens a channel at the destination's agent.

A ticket is HMAC-SHA256 of what the channel is, under a secret that the migration's coordinator gives both agents with the request
to prepare. It is bound to migration, kind, number, VM and both hosts, and good for one channel: an agent that has seen it lets the
channel go on on a new way for as long as it remembers it, and opens none for it ever again.
"""

from __future__ import annotations

import hashlib
import hmac
import struct

from landbridge.v1.channel_pb2 import ChannelOpen

SECRET_SIZE = 32
_LABEL = b"landbridge ticket 2"


def ticket(secret: bytes, opening: ChannelOpen) -> bytes:
    """The ticket of a channel; what `opening.ticket` holds is left aside."""
    source, destination = (
        (opening.source_site, opening.source_host),
        (opening.destination_site, opening.destination_host),
    )
    vm = (opening.vm_uuid, opening.vm_name)
    fields = (_LABEL, *(field.encode() for field in (opening.migration, *source, *destination, *vm)))
    message = b"".join(struct.pack("!I", len(field)) + field for field in fields)
    return hmac.digest(secret, message + struct.pack("!II", opening.kind, opening.index), hashlib.sha256)


def is_good(secret: bytes, opening: ChannelOpen) -> bool:
    """Whether a channel comes with its ticket."""
    return len(secret) == SECRET_SIZE and hmac.compare_digest(ticket(secret, opening), opening.ticket)

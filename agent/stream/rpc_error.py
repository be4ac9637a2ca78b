"""A refusal, as libvirt reads it: the reply of status ERROR to a call, with a virNetMessageError (src/rpc/virnetprotocol.x)."""

from __future__ import annotations

from agent.stream import xdr
from agent.stream.libvirt_rpc import Message, MessageType, Status, message
from landbridge.errors import ProtocolError

# virErrorNumber, virErrorDomain and virErrorLevel.
ACCESS_DENIED = 88
FROM_RPC = 7
LEVEL_ERROR = 2
# Bytes of the sentence: what an operator reads in one line or two.
MOST_BYTES = 600


def error_reply(call: Message, sentence: str) -> bytes:
    """The reply to a call that says why it was refused."""
    text = sentence.encode("utf-8", "replace")[:MOST_BYTES].decode("utf-8", "ignore").encode()
    none = xdr.optional(None)
    body = xdr.word(ACCESS_DENIED) + xdr.word(FROM_RPC) + xdr.optional(text) + xdr.word(LEVEL_ERROR)
    body += none + xdr.optional(text) + none + none  # the domain, and three strings
    body += xdr.word(-1) + xdr.word(-1) + none  # two numbers, and the network
    return message(
        call.program, call.procedure, MessageType.REPLY, call.serial, Status.ERROR, body, version=call.version
    )


def error_text(payload: bytes) -> str:
    """The sentence of an error reply; empty if it cannot be read."""
    reader = xdr.Reader(payload)
    try:
        reader.word(), reader.word()
        return reader.string() if reader.optional() else ""
    except ProtocolError:
        return ""

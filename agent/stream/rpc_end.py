"""One end of an `rpc` channel: what stands between libvirtd on this host, and the channel.

keepalive    Both daemons ping each other every 5 s, and close after 30 s without an answer (src/rpc/virkeepalive.c). A PING is
             answered here, and never goes on: a WAN that is silent for a while is no business of libvirt's.
whole        The daemon is given whole messages only, so that an answer to a PING never lands inside another message.
firewall     At the destination, each message passes the migration's `Firewall`, which answers those that it refuses.
the gate     The FINISH call that would let the guest arrive is held until somebody has seen that memory and disks arrived
             unaltered; else it becomes a call that cancels, and the guest goes on at the source. Whatever comes after it waits
             behind it.
"""

from __future__ import annotations

from collections import deque

from agent.stream.firewall import Action, Firewall, Refusal, Verdict
from agent.stream.libvirt_rpc import KEEPALIVE_PROGRAM, Keepalive, Message, MessageReader, keepalive
from agent.stream.rpc_calls import cancelling
from landbridge.errors import ProtocolError


class RpcEnd:
    """Messages for libvirtd queue here; whoever owns this takes them with `next_for_libvirtd`, and lets no more come than can wait."""

    def __init__(self, firewall: Firewall | None) -> None:
        """`firewall` at the destination, whose libvirtd is the one that is called."""
        # Bytes of messages that wait for libvirtd, or for the gate.
        self.waiting_bytes = 0
        # Whether a FINISH call waits for `open_gate` or `cancel_gate`.
        self.is_held = False
        # What the firewall has refused, for the owner to tell and to clear.
        self.refusals: list[Refusal] = []
        self._firewall = firewall
        self._for_libvirtd: deque[Message] = deque()
        self._answers: list[bytes] = []
        self._from_libvirtd = MessageReader()
        self._from_channel = MessageReader()
        self._held: deque[Message] = deque()

    def from_libvirtd(self, data: bytes | bytearray | memoryview) -> list[Message]:
        """Take bytes that libvirtd has written; returns the messages for the channel. Raises ProtocolError."""
        onward = []
        for message in self._from_libvirtd.receive_data(data):
            if message.program != KEEPALIVE_PROGRAM:
                if self._firewall is not None:
                    self._obey(self._firewall.reply(message))
                onward.append(message)
            elif message.procedure == Keepalive.PING:
                self._queue(self._for_libvirtd, _read(keepalive(Keepalive.PONG)))
        return onward

    def from_channel(self, data: bytes | bytearray | memoryview) -> None:
        """Take bytes that the other agent has sent. All of them may be acknowledged. Raises ProtocolError."""
        for message in self._from_channel.receive_data(data):
            if message.program == KEEPALIVE_PROGRAM:
                continue
            action = Action.PASS if self._firewall is None else self._obey(self._firewall.call(message))
            if action is Action.ANSWER:
                # What was held would let a guest of one who breaks the rules arrive.
                self.cancel_gate()
                continue
            self.is_held = self.is_held or action is Action.HOLD
            self._queue(self._held if self.is_held else self._for_libvirtd, message)

    def _obey(self, verdict: Verdict) -> Action:
        if verdict.refusal is not None:
            self.refusals.append(verdict.refusal)
            if verdict.action is Action.CLOSE:
                raise ProtocolError(f"{verdict.refusal.sentence}; the channel is closed")
        if verdict.action is Action.ANSWER:
            self._answers.append(verdict.reply)
        return verdict.action

    def take_answers(self) -> list[bytes]:
        """Whole messages for the channel: what the firewall says to whom it has refused."""
        answers, self._answers = self._answers, []
        return answers

    def next_for_libvirtd(self) -> Message | None:
        """Take the message that libvirtd is to be given next."""
        if not self._for_libvirtd:
            return None
        message = self._for_libvirtd.popleft()
        self.waiting_bytes -= len(message.raw)
        return message

    def _queue(self, queue: deque[Message], message: Message) -> None:
        queue.append(message)
        self.waiting_bytes += len(message.raw)

    def open_gate(self) -> None:
        """Let the FINISH call through as it is: the guest has arrived whole."""
        self._release()

    def cancel_gate(self) -> None:
        """Turn the FINISH call into one that cancels: the guest goes on at the source."""
        if self.is_held:
            self._held[0] = _read(cancelling(self._held[0]))
        self._release()

    def _release(self) -> None:
        self.is_held = False
        self._for_libvirtd.extend(self._held)
        self._held.clear()


def _read(raw: bytes) -> Message:
    return next(MessageReader().receive_data(raw))

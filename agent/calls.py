"""What an rpc channel carries: libvirt's messages, by way of an `RpcEnd`."""

from __future__ import annotations

from agent.stream.libvirt_rpc import Message
from agent.stream.rpc_end import RpcEnd
from agent.traffic import Traffic
from landbridge.channel import Channel, ChannelState
from landbridge.errors import PermissionDenied
from landbridge.estimator import LARGEST_SEGMENT
from landbridge.frame import Payload
from landbridge.link import POOL

# Bytes of messages that may wait for libvirtd before the other agent is held back: below `landbridge.receiving.CEILING`, so that
# the longest message can arrive behind them.
MOST_WAITING = 8 << 20


class Calls:
    """Between libvirtd's socket and its channel. Owned by the event loop."""

    # No message waits for its end where the socket is read.
    tail = b""

    def __init__(self, channel: Channel, traffic: Traffic) -> None:
        """Raises PermissionDenied where no calls are expected."""
        if not channel.opened_by_us and traffic.firewall is None:
            raise PermissionDenied("no calls of libvirt's are expected here; begin a new migration")
        self._rpc = RpcEnd(None if channel.opened_by_us else traffic.firewall)
        self._channel = channel
        self._traffic = traffic
        # The message that libvirtd is being given, and what is left of it.
        self._message: Message | None = None
        self._rest: Payload = b""
        # Bytes that were taken from the channel, and not said to be delivered.
        self._unsaid = 0

    @property
    def room(self) -> int:
        """Bytes that may be read from libvirtd. While there is no way, too: it hangs up if its PINGs are not answered for 30 s."""
        is_without_way = self._channel.state is ChannelState.OPENING and self._channel.has_been_open
        return self._channel.outgoing.room if is_without_way else self._channel.room

    def from_local(self, room: memoryview, length: int, now: float) -> bool:
        """Take what libvirtd has said, the first bytes of room of POOL; returns whether it may have been answered here.

        Raises ProtocolError for what cannot be followed.
        """
        try:
            onward = self._rpc.from_libvirtd(POOL.keep(room, length))
        finally:
            self._tell_refusals()
        for message in onward:
            if self._traffic.on_message_from_libvirtd is not None:
                self._traffic.on_message_from_libvirtd(message)
            self._send(message.raw, now)
        return True

    def from_channel(self, data: Payload, now: float) -> None:
        """Take what the other agent has sent. Raises ProtocolError, which ends the channel."""
        try:
            self._rpc.from_channel(data)
        finally:
            self._tell_refusals()
        for answer in self._rpc.take_answers():
            self._send(answer, now)
        self._unsaid += len(data)
        self._say_delivered()
        self._traffic.look_at_gate()

    def _send(self, raw: bytes, now: float) -> None:
        for start in range(0, len(raw), LARGEST_SEGMENT):
            self._channel.send_data(raw[start : start + LARGEST_SEGMENT], now)

    def _tell_refusals(self) -> None:
        refusals, self._rpc.refusals = self._rpc.refusals, []
        for refusal in refusals:
            if self._traffic.on_refused is not None:
                self._traffic.on_refused(refusal)

    def _say_delivered(self) -> None:
        # Before libvirtd has taken them: the end of a message may be on the way. But no more than wait here at most.
        if self._unsaid and self._rpc.waiting_bytes <= MOST_WAITING:
            self._channel.delivered(self._unsaid)
            self._unsaid = 0

    def next_for_local(self) -> Payload | None:
        """What libvirtd is to be given next; the same until it has taken all of it."""
        if self._message is None:
            self._message = self._rpc.next_for_libvirtd()
            if self._message is None:
                return None
            self._rest = self._message.raw
            self._say_delivered()
        return self._rest

    def written(self, count: int) -> None:
        """Note that libvirtd has taken so many bytes of it."""
        self._rest = memoryview(self._rest)[count:]
        if not self._rest and (message := self._message) is not None:
            self._message = None
            if self._traffic.on_message_to_libvirtd is not None:
                self._traffic.on_message_to_libvirtd(message)

    @property
    def is_held(self) -> bool:
        """Whether a FINISH call waits at the gate."""
        return self._rpc.is_held

    def pass_gate(self, whole: bool) -> None:
        """Let it go on to libvirtd, as it is or as one that cancels."""
        if whole:
            self._rpc.open_gate()
        else:
            self._rpc.cancel_gate()

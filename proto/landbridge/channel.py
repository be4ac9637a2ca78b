"""A channel, seen from one of its two ends: sans-I/O, the clock is an argument.

A channel is a reliable, ordered, two-way byte stream between two agents, made of frames that may be lost, repeated and reordered
on the way: a link, a gateway or the whole WAN may die at any moment, and come back. The I/O around it reads from a local socket
while `room` is positive and passes the bytes to `send_data`; it passes the frames that arrive to `receive_frame`, writes the bytes
of the Data events to its socket, and then says `delivered`. Whenever its link to a gateway takes another frame, it asks
`next_frame`; when `next_timeout` has come, it calls `timeout`.

Here is its life: how it is opened, and again when its way is lost, how long it waits, and how it ends. Its two directions are
`sending`, which knows what is lost, and `receiving`.

The end (theory):

An end is FINISHED when it has delivered all and everything of its own is delivered. The far end may not know that yet, for its
last acknowledgement can be lost, and with it the way: a finished end goes on to answer what is repeated. The end that opened says
CLOSE, and says it again, with an OPEN for a way that has forgotten the channel, until a CLOSE comes back, which the other end says
to each. Both then `may_be_forgotten`. An end that was RESET says so again, too, to whoever goes on.

As only one end can open a way, the other one may wait in vain for the end: while the opener `may_be_unknown`, which has finished or
given up and has heard no CLOSE or RESET since, it is to be kept, and given a link.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from landbridge.errors import ProtocolError
from landbridge.frame import Acknowledgement, Frame, FrameType, Payload, reason_of, reset
from landbridge.receiving import Data, EndOfData, Incoming
from landbridge.sending import Outgoing

# Seconds: bounds of the silence after which a PROBE or another OPEN is sent; see also `LOSS_DELAY`.
PROBE_DELAY = (0.5, 2.0)
# Seconds of silence after which a PROBE is sent although nothing is outstanding, so that `heard_at` tells of a way that is lost.
KEEPALIVE = 2.0

# Frames that an end which is over does not answer.
_LAST_WORDS = frozenset({FrameType.RESET, FrameType.UNKNOWN})


class ChannelState(Enum):
    """Where a channel is in its life, seen from this end."""

    # Waits for the far end: for the first time, or again after its way was lost.
    OPENING = "opening"
    OPEN = "open"
    # Ended well: all bytes of both directions are delivered. Repeated frames are still answered.
    FINISHED = "finished"
    # Over at once, for a reason.
    RESET = "reset"


@dataclass(frozen=True, slots=True)
class Accepted:
    """The far end is connected, for the first time."""


@dataclass(frozen=True, slots=True)
class Reset:
    """The channel is over at once, for this reason."""

    reason: str


Event = Accepted | Data | EndOfData | Reset


class Channel:
    """One end of a channel. Not thread-safe: owned by the loop that moves its bytes."""

    def __init__(self, identity: int, now: float, *, opening: bytes | None = None) -> None:
        """`identity` is the same at both ends; `opening` is the payload of OPEN at the end that opens, None at the other."""
        self.identity = identity
        self.state = ChannelState.OPENING
        self.outgoing = Outgoing()
        self.incoming = Incoming()
        # When the far end was last heard.
        self.heard_at = now
        # Whether this end opened it, and opens it again when its way is lost.
        self.opened_by_us = opening is not None
        self._opening = opening or b""
        # Whether the far end was connected once.
        self.has_been_open = False
        self._opened_at = float("-inf")
        # The RESET that this end has sent; and whether the other end has said that it knows of the end.
        self._farewell: Frame | None = None
        self._is_end_known = False
        self._has_said_open = False
        self._control: deque[Frame] = deque()
        # When to open again or to probe, if there is no progress; and how long to wait the next time.
        self._patience_ends: float | None = None
        self._patience = PROBE_DELAY[0]

    @property
    def may_be_forgotten(self) -> bool:
        """Whether it has ended well, and the far end knows."""
        return self.state is ChannelState.FINISHED and self._is_end_known

    @property
    def may_be_unknown(self) -> bool:
        """Whether the channel, which this end has opened, has ended here, and the other end may not know that."""
        has_given_up = self.state is ChannelState.RESET and self._farewell is not None
        is_over = has_given_up or self.state is ChannelState.FINISHED
        return is_over and self.opened_by_us and self._has_said_open and not self._is_end_known

    @property
    def room(self) -> int:
        """How many bytes may be read from the local socket now; 0 while the channel is not open or our direction has ended."""
        return self.outgoing.room if self.state is ChannelState.OPEN else 0

    # Verbs of the I/O around it

    def connect(self, now: float) -> None:
        """There is a link to a gateway, a new one: (re-)open the channel on it. Only at the end that opens."""
        is_over = self.state in {ChannelState.RESET, ChannelState.FINISHED}
        if not self.opened_by_us or (is_over and not self.may_be_unknown):
            return
        self._control.clear()
        self._reopen(now)

    def disconnect(self) -> None:
        """The link is gone; nothing more is known of what is under way."""
        if self.state is ChannelState.OPEN and self.opened_by_us:
            self.state = ChannelState.OPENING
        self._control.clear()
        self._rest()

    def accept(self, now: float) -> None:
        """Say that our local socket is connected, now or since long; at the end that does not open, after each OPEN."""
        if self.opened_by_us or self.state is ChannelState.RESET:
            return
        self._say(self.incoming.acknowledgement().frame(FrameType.ACCEPT, self.identity))
        if self.state is ChannelState.OPENING:
            self.state = ChannelState.OPEN
        self.has_been_open = True
        self.outgoing.overtake_all()
        self._heard(now)
        self._progressed(now)

    def send_data(self, data: Payload, now: float, hints: Payload = b"") -> None:
        """Send bytes that were read from the local socket, at most `room` of them, with hints to them (`landbridge.hints`).

        They must not be changed afterwards.
        """
        if data and self._takes:
            was_outstanding = self.outgoing.is_outstanding
            self.outgoing.take(data, hints)
            if not was_outstanding:
                self._progressed(now)

    def send_eof(self, now: float) -> None:
        """Say that the local socket gives no more bytes."""
        if self._takes:
            was_outstanding = self.outgoing.is_outstanding
            self.outgoing.take_end()
            if not was_outstanding:
                self._progressed(now)

    def delivered(self, length: int) -> None:
        """Say that `length` bytes of Data events were handed to the local socket: they are acknowledged now."""
        self.incoming.delivered += length
        self.incoming.owes_acknowledgement = True

    def delivered_eof(self, now: float) -> None:
        """Say that the local socket was told the end of the stream."""
        self.incoming.delivered += 1
        self.incoming.owes_acknowledgement = True
        self._finish_if_done(now)

    def reset(self, reason: str) -> None:
        """End the channel at once, in both directions."""
        if self.state not in {ChannelState.RESET, ChannelState.FINISHED}:
            self._end_at_once()
            self._farewell = reset(self.identity, reason)
            self._say(self._farewell)

    def receive_frame(self, frame: Frame, now: float) -> Sequence[Event]:
        """Take a frame of this channel. Raises ProtocolError if it breaks the rules; the caller then resets the channel."""
        if self.state is ChannelState.RESET:
            if frame.type is FrameType.RESET:
                self._end_is_known()
            if self._farewell is not None and frame.type not in _LAST_WORDS:
                self._say(self._farewell)
            return []
        match frame.type:
            case FrameType.DATA | FrameType.DATA_CHECKED | FrameType.FIN:
                self._heard(now)
                if self.state is ChannelState.OPENING and not self.opened_by_us:
                    return []  # there is no socket for them yet; they come again
                return self.incoming.receive(frame)
            case FrameType.ACK:
                self._acknowledged(frame, now)
            case FrameType.PROBE:
                self._heard(now)
                self.incoming.probe = frame.position & 0xFFFFFFFF
                self.incoming.owes_acknowledgement = True
            case FrameType.RESET:
                return self._was_reset(frame)
            case _ if self.opened_by_us:
                return self._heard_about_opening(frame, now)
            case _:
                self._heard_from_opener(frame, now)
        return []

    def next_frame(self, now: float) -> Frame | None:
        """The next frame for the link, or None if there is nothing to send. What it returns counts as sent."""
        if self._control:
            return self._control.popleft()
        if self.state is ChannelState.RESET or (self.state is ChannelState.OPENING and not self.has_been_open):
            return None
        if self.incoming.owes_acknowledgement:
            return self.incoming.acknowledgement().frame(FrameType.ACK, self.identity)
        if self.state is not ChannelState.OPEN:
            return None
        return self.outgoing.next_frame(self.identity, now)

    def next_timeout(self) -> float | None:
        """When to call `timeout`, if nothing happens before."""
        patience_ends, loss_at = self._patience_ends, self.outgoing.loss_at
        if patience_ends is None or loss_at is None:
            return loss_at if patience_ends is None else patience_ends
        return min(patience_ends, loss_at)

    def timeout(self, now: float) -> None:
        """Act on silence; may be called at any time."""
        if self.outgoing.loss_at is not None and self.outgoing.loss_at <= now:
            self.outgoing.find_lost(now)
        if self._patience_ends is None or self._patience_ends > now:
            return
        if (self.state is ChannelState.OPENING and self.opened_by_us) or self.may_be_unknown:
            self._open(now)
        elif self.state is ChannelState.OPEN:
            self.outgoing.probe()
            self._wait_longer(now)
        else:
            self._patience_ends = None

    # What is behind them

    @property
    def _takes(self) -> bool:
        return self.state in {ChannelState.OPEN, ChannelState.OPENING} and not self.outgoing.is_ended

    def _say(self, frame: Frame) -> None:
        # A newer one takes the place of one that was not sent yet: what waits here is bounded.
        if any(waiting.type is frame.type for waiting in self._control):
            self._control = deque(waiting for waiting in self._control if waiting.type is not frame.type)
        self._control.append(frame)

    def _rest(self) -> None:
        """Wait for nothing."""
        self._patience_ends = self.outgoing.loss_at = None

    def _reopen(self, now: float) -> None:
        self._patience = PROBE_DELAY[0]
        if self.state in {ChannelState.OPEN, ChannelState.OPENING}:
            self.state = ChannelState.OPENING
        self._open(now)

    def _open(self, now: float) -> None:
        self._has_said_open = True
        self._say(Frame(FrameType.OPEN, self.identity, 0, self._opening))
        # One that was given up is opened to be asked for, and answers that it is over.
        if self.state is ChannelState.FINISHED:
            self._say(Frame(FrameType.CLOSE, self.identity))
        self._wait_longer(now)

    def _heard_about_opening(self, frame: Frame, now: float) -> Sequence[Event]:
        match frame.type:
            case FrameType.ACCEPT:
                return self._accepted(frame, now)
            case FrameType.UNKNOWN:
                # Each of the frames that were under way may be answered so: what follows an ACCEPT at once is old.
                is_old = now - self._opened_at <= self.outgoing.estimator.loss_delay
                if self.state is not ChannelState.OPENING and not is_old and not self.may_be_forgotten:
                    self._reopen(now)
                return []
            case FrameType.CLOSE if self.state is ChannelState.FINISHED:
                self._end_is_known()
                return []
            case _:
                raise _misplaced(frame)

    def _heard_from_opener(self, frame: Frame, now: float) -> None:
        match frame.type:
            case FrameType.CLOSE:
                self._close(now)
            case FrameType.OPEN | FrameType.UNKNOWN:
                pass  # the caller answers the one with `accept`, and the end that opens answers the other with an OPEN
            case _:
                raise _misplaced(frame)

    def _was_reset(self, frame: Frame) -> Sequence[Event]:
        if self.state is ChannelState.FINISHED:
            # The other end had given up before it could hear that all was well, or remembers nothing any more.
            self._end_is_known()
            return []
        self._end_at_once()
        return [Reset(reason_of(frame))]

    def _end_is_known(self) -> None:
        self._is_end_known = True
        self._control.clear()
        self._rest()

    def _end_at_once(self) -> None:
        # Whoever has a record of the channel keeps none of its bytes.
        self.state = ChannelState.RESET
        self._rest()
        self.outgoing.forget_all()
        self.incoming.forget_all()

    def _accepted(self, frame: Frame, now: float) -> Sequence[Event]:
        if self.state is not ChannelState.OPENING:
            self._acknowledged(frame, now)  # an answer to an OPEN that was sent twice
            if self.may_be_unknown:
                self._say(Frame(FrameType.CLOSE, self.identity))
            return []
        self.state = ChannelState.OPEN
        is_first, self.has_been_open, self._opened_at = not self.has_been_open, True, now
        self._acknowledged(frame, now)
        self.outgoing.lose_all()
        self._progressed(now)
        # The other end waits for it, to know what it has to send again.
        self.incoming.owes_acknowledgement |= not is_first
        return [Accepted()] if is_first else []

    def _acknowledged(self, frame: Frame, now: float) -> None:
        self._heard(now)
        if self.outgoing.acknowledge(Acknowledgement.of(frame), now):
            self._progressed(now)
        self._finish_if_done(now)

    def _close(self, now: float) -> None:
        if not (self.outgoing.has_all_been_sent and self.incoming.has_all_been_delivered):
            raise ProtocolError("the other end closed the channel before its streams had ended")
        self._is_end_known = True
        self.outgoing.acknowledge_all()
        self._finish_if_done(now)
        self._say(Frame(FrameType.CLOSE, self.identity))

    def _finish_if_done(self, now: float) -> None:
        if not self.outgoing.is_ended or self.outgoing.is_outstanding or not self.incoming.has_all_been_delivered:
            return
        if self.state is ChannelState.OPEN:
            self.state = ChannelState.FINISHED
            self._rest()
            if self.opened_by_us:
                # After the last acknowledgement, which the other end need not wait for then.
                self._say(self.incoming.acknowledgement().frame(FrameType.ACK, self.identity))
                self._say(Frame(FrameType.CLOSE, self.identity))
                self._patience = PROBE_DELAY[0]
                self._wait_longer(now)

    def _heard(self, now: float) -> None:
        self.heard_at = now
        # While something is outstanding, only progress counts: the other direction may be busy when the last of ours is lost.
        if self.state is ChannelState.OPEN and not self.outgoing.is_outstanding:
            self._patience_ends = now + KEEPALIVE

    def _progressed(self, now: float) -> None:
        """Something outstanding has arrived, or is the first that is outstanding: be patient anew."""
        if self.state is not ChannelState.OPEN:
            return
        self._patience = PROBE_DELAY[0]
        least = min(2 * self.outgoing.estimator.longest, PROBE_DELAY[1])
        self._patience_ends = now + (max(self._patience, least) if self.outgoing.is_outstanding else KEEPALIVE)

    def _wait_longer(self, now: float) -> None:
        if self.state is ChannelState.OPEN and not self.outgoing.is_outstanding:
            self._patience_ends = now + KEEPALIVE
            return
        self._patience_ends = now + self._patience
        self._patience = min(self._patience * 2, PROBE_DELAY[1])


def _misplaced(frame: Frame) -> ProtocolError:
    return ProtocolError(f"a {frame.type.name} frame arrived where none may come; the channel is closed")

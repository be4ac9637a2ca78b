"""The only file that moves bytes on a host: between a local socket of libvirtd or QEMU, and a channel to the other host.

    local socket ── bytes ──> channel ── frames ──> link to a gateway          (asked for as the link takes them)
    local socket <── bytes ── channel <── frames ── link                       (acknowledged once the socket has them)

A `Carrier` is one channel with its socket. Its link may end and another take its place at any time: the channel goes on from what
the other agent has. It is given up when it is reset, when its bytes arrive altered, or when nothing was heard of the other agent
for longer than the migration's outage limit; its local socket is then closed (at the source after LOST_GRACE), so that libvirt
sees a lost connection and lets the guest run on at the source.

What waits on this host: at most `landbridge.receiving.CEILING` in each direction of a channel, and on an rpc channel MOST_WAITING
and one message of libvirt's.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import structlog

from agent.stream.firewall import Firewall, Refusal
from agent.stream.hinter import Hinter
from agent.stream.libvirt_rpc import Message
from agent.stream.nbd_flush import FlushHider
from agent.stream.rpc_end import RpcEnd
from landbridge.channel import Accepted, Channel, ChannelState, Event, Reset
from landbridge.errors import AlteredError, LandbridgeError, PermissionDenied, ProtocolError
from landbridge.estimator import LARGEST_SEGMENT
from landbridge.frame import Frame, FrameType, Payload, reason_of
from landbridge.link import POOL, Link
from landbridge.receiving import Data, EndOfData
from landbridge.v1.agent_pb2 import Delivered

log = structlog.get_logger()

KINDS = ("rpc", "ram", "disk")

# Seconds to have a new channel accepted by the destination.
ACCEPT_TIMEOUT = 20.0
# Seconds that libvirt gets to stop a move in good order after a channel was lost. If QEMU's connections break before it is
# told to stop, while the guest stands still for the switch-over, QEMU 7.2 goes on with a filter node that nobody owns on
# top of the disk, and refuses to copy this disk ever again ("Need a root block node").
LOST_GRACE = 3.0
# Seconds of silence that are told; an agent that is well is heard every two seconds (`landbridge.channel.KEEPALIVE`).
SILENCE = 5.0
# Seconds for which the end that was called waits, after a channel has ended well, to hear that the other end knows it.
LINGER = 30.0
# Seconds that the last frames of a channel have to leave before its link is closed.
FAREWELL = 0.5
# Seconds for which the end that opened a channel, which is over, tries to say so, unless the outage limit is shorter; and, where it was
# given up, since when it must have heard the other end for once to be enough.
TELLING = 60.0
HEARD_LATELY = 3.0
# Seconds between two looks at how long the other agent has been silent.
TICK = 0.5
# Seconds for which the beginning of a page waits for its end: QEMU writes a page in one piece, but a socket may hold a part of it.
TAIL_PATIENCE = 0.005
# Bytes of messages that may wait for libvirtd before the other agent is held back: below `landbridge.receiving.CEILING`, so that
# the longest message can arrive behind them.
MOST_WAITING = 8 << 20


@dataclass
class Traffic:
    """What one migration's channels carry at this host, and how they ended. Owned by the event loop."""

    # Seconds for which the other agent may be silent.
    outage_limit: float = 900.0
    # Bytes per kind, read from and written to the local sockets.
    read: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    written: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    # Why the first channel was lost, if one was: the cause behind libvirt's "lost connection".
    failure: str | None = None
    # The kinds of channels whose local socket was closed on this host while the far end still had it open.
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
    def repeated_bytes(self) -> int:
        """Bytes that this host has sent more than once."""
        return sum(carrier.channel.outgoing.repeated_bytes for carrier in self.carriers)

    def unhinted(self, kind: str) -> tuple[int, str]:
        """Bytes of a kind of channel without a hint, and why the first that was not understood was not."""
        hinters = [carrier.hinter for carrier in self.carriers if carrier.kind == kind and carrier.hinter is not None]
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
            if carrier.rpc is not None and carrier.rpc.is_held and whole is not None:
                log.info("gate.open" if whole else "gate.cancel", reason=self.failure)
                carrier.pass_gate(whole)


class Carrier:
    """Carries one channel. Owned by the event loop; all of it happens in callbacks."""

    def __init__(self, channel: Channel, kind: str, traffic: Traffic, *, name: str, index: int = 0) -> None:
        self.channel = channel
        self.kind = kind
        # Counts the channels of its kind, the same at both ends.
        self.index = index
        # For messages: "the ram channel to host west-1".
        self.name = name
        self.link: Link | None = None
        # The rules of libvirt's calls, on an rpc channel.
        self.rpc = _rpc_end(channel, traffic) if kind == "rpc" else None
        # What finds the pages, on the others.
        self.hinter = None if kind == "rpc" else Hinter(kind, is_client=channel.opened_by_us)
        # What keeps the source's QEMU from flushing.
        self.promise = FlushHider() if kind == "disk" and traffic.is_stored is not None else None
        # Set when the local socket has ended, in both directions; and when nothing more is to be said to the other agent.
        self.ended = asyncio.Event()
        self.over = asyncio.Event()
        # Why the way to the other agent does not work, by the last who knew.
        self.trouble = ""
        self._traffic = traffic
        channel.outgoing.on_released = POOL.give
        self._loop = asyncio.get_running_loop()
        self._local: socket.socket | None = None
        self._is_reading = False
        self._is_writing = False
        # What the local socket is to be given: bytes, or a whole message of which so many bytes are left.
        self._for_local: deque[Payload] = deque()
        self._message: Message | None = None
        self._far_end_closed = False
        self._has_read_all = False
        self._has_written_all = False
        # Whether the other agent has accepted it, if it was opened here.
        self._is_accepted = False
        # The beginning of a page, which goes on with its end; and how often the socket was read.
        self._tail = b""
        self._tail_timer: asyncio.TimerHandle | None = None
        self._reads = 0
        # Bytes of an rpc channel that were taken, and not said to be delivered.
        self._unsaid = 0
        self._began_at = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._grace: asyncio.TimerHandle | None = None
        self._leaving: asyncio.TimerHandle | None = None
        # Until when the other agent is told that the channel was given up; None until it is.
        self._tells_until: float | None = None
        self._telling: asyncio.TimerHandle | None = None
        self._ticker = self._loop.call_later(TICK, self._guarded, self._tick)
        traffic.carriers.append(self)

    # What others see

    @property
    def is_waiting(self) -> bool:
        """Whether the other agent should be heard from."""
        return self.channel.state in {ChannelState.OPEN, ChannelState.OPENING} and not self.over.is_set()

    @property
    def has_arrived(self) -> bool:
        """Whether the far end's stream has ended, unaltered, and the local socket has all of it."""
        incoming = self.channel.incoming
        return incoming.is_ended and incoming.delivered == incoming.received

    @property
    def is_broken(self) -> bool:
        """Whether it has ended before the far end's stream had arrived."""
        return self.channel.state is ChannelState.RESET and not self.has_arrived

    # The local socket

    def connect(self, local: socket.socket) -> None:
        """Carry this socket's bytes; it is closed in the end."""
        if self.ended.is_set():
            local.close()  # it was reset in the meantime
            return
        self._local = local
        self._write_local()
        self._after()

    def _after(self) -> None:
        """Something has changed: see what can go on."""
        self._read_if_there_is_room()
        if self.link is not None:
            self.link.kick()
        self._set_timer()

    @property
    def _room(self) -> int:
        # While there is no way, libvirtd is still heard: it hangs up if its PINGs are not answered for 30 s.
        if self.rpc is not None and self._is_accepted and self.channel.state is ChannelState.OPENING:
            return self.channel.outgoing.room
        return self.channel.room - len(self._tail)

    def _guarded(self, callback: Callable[..., None], *arguments: object) -> None:
        """Call what the event loop calls. A defect in it ends the channel: asyncio would call it again, and the move would hang."""
        try:
            callback(*arguments)
        except Exception as error:  # a defect: whatever it raises
            log.exception("channel.defect", channel=self.name)
            self.lost(
                f"a defect of the agent ended {self.name} ({type(error).__name__}): report it, with the agent's log"
            )

    def _read_if_there_is_room(self) -> None:
        local = self._local
        wants_reading = not self._has_read_all and self._room > 0
        if local is None or wants_reading is self._is_reading:
            return
        if wants_reading:
            self._loop.add_reader(local.fileno(), self._guarded, self._read_local)
        else:
            self._loop.remove_reader(local.fileno())
        self._is_reading = wants_reading

    def _read_local(self) -> None:
        room = self._room
        if self._local is None or room <= 0:
            self._read_if_there_is_room()
            return
        held = len(self._tail)
        buffer = POOL.take(min(room + held, LARGEST_SEGMENT))
        buffer[:held] = self._tail
        try:
            count = self._local.recv_into(buffer[held:])
        except (BlockingIOError, InterruptedError):
            POOL.give(buffer)
            return
        except OSError as error:
            self._local_broke(error)
            return
        if self.promise is not None:
            self.promise.edit(buffer[held : held + count])
        data, now = POOL.keep(buffer, held + count), self._loop.time()
        if count:
            self._reads += 1
            self._traffic.read[self.kind] += count
            try:
                self._take(data, now)
            except LandbridgeError as error:
                # What libvirt said on this host cannot be followed: better no move than one that nobody understands.
                self.lost(error.message)
                return
        else:
            self._has_read_all = True
            if not self._far_end_closed and self.channel.state is ChannelState.OPEN:
                self._traffic.closed_here.add(self.kind)
            self._send_tail(now)
            self.channel.send_eof(now)
            self._end_if_done()
        self._after()

    def _take(self, data: memoryview, now: float) -> None:
        if self.rpc is None:
            self._send(data, now)
            return
        try:
            onward = self.rpc.from_libvirtd(data)
        finally:
            self._tell_refusals(self.rpc)
        for message in onward:
            if self._traffic.on_message_from_libvirtd is not None:
                self._traffic.on_message_from_libvirtd(message)
            self._send_message(message.raw, now)
        self._write_local()  # an answer to a ping

    def _send_message(self, raw: bytes, now: float) -> None:
        for start in range(0, len(raw), LARGEST_SEGMENT):
            self.channel.send_data(raw[start : start + LARGEST_SEGMENT], now)

    def _tell_refusals(self, rpc: RpcEnd) -> None:
        refusals, rpc.refusals = rpc.refusals, []
        for refusal in refusals:
            if self._traffic.on_refused is not None:
                self._traffic.on_refused(refusal)

    def _send(self, data: memoryview, now: float) -> None:
        """Send whole pages, with hints to them, and keep the beginning of one for the next time."""
        if self.hinter is None:
            return
        hints, tail = self.hinter.hold(data)
        self._tail = bytes(data[len(data) - tail :])
        if tail == len(data):
            POOL.give(data)
        else:
            self.channel.send_data(data[: len(data) - tail], now, hints)
        if tail and self._tail_timer is None:
            self._tail_timer = self._loop.call_later(TAIL_PATIENCE, self._guarded, self._tail_waited, self._reads)

    def _tail_waited(self, reads: int) -> None:
        self._tail_timer = None
        if reads != self._reads and self._tail:
            self._tail_timer = self._loop.call_later(TAIL_PATIENCE, self._guarded, self._tail_waited, self._reads)
        elif self._tail:
            self._send_tail(self._loop.time())
            self._after()

    def _send_tail(self, now: float) -> None:
        """Nothing follows for now, and who wrote this may wait for an answer to it."""
        if self._tail and self.hinter is not None:
            self.hinter.give_up_tail()
            tail, self._tail = self._tail, b""
            self.channel.send_data(tail, now)

    def _give(self, data: Payload, now: float) -> None:
        if self.hinter is not None:
            self.hinter.pass_by(data)
        if self.rpc is None:
            self._for_local.append(data)
        else:
            try:
                self.rpc.from_channel(data)
            finally:
                self._tell_refusals(self.rpc)
            for answer in self.rpc.take_answers():
                self._send_message(answer, now)
            self._unsaid += len(data)
            self._say_delivered(self.rpc, now)
            self._traffic.look_at_gate()

    def _say_delivered(self, rpc: RpcEnd, now: float) -> None:
        # Before libvirtd has taken them: the end of a message may be on the way. But no more than wait here at most.
        if self._unsaid and rpc.waiting_bytes <= MOST_WAITING:
            self.channel.delivered(self._unsaid, now)
            self._unsaid = 0

    def pass_gate(self, whole: bool) -> None:
        """Let the FINISH call that is held go on to libvirtd, as it is or as one that cancels."""
        if self.rpc is not None and whole:
            self.rpc.open_gate()
        elif self.rpc is not None:
            self.rpc.cancel_gate()
        self._write_local()
        self._after()

    def _write_local(self) -> None:
        now = self._loop.time()
        local = self._local
        while local is not None and self._next_for_local():
            data = self._for_local[0]
            try:
                count = local.send(data)
            except (BlockingIOError, InterruptedError):
                break
            except OSError as error:
                self._local_broke(error)
                return
            self._for_local.popleft()
            if count < len(data):
                self._for_local.appendleft(memoryview(data)[count:])
            else:
                POOL.give(data)
            self._given(count, now)
            local = self._local
        if local is None:
            return
        wants_writing = bool(self._for_local)
        if wants_writing and not self._is_writing:
            self._loop.add_writer(local.fileno(), self._guarded, self._write_more)
        elif not wants_writing and self._is_writing:
            self._loop.remove_writer(local.fileno())
        self._is_writing = wants_writing
        if not wants_writing and self._far_end_closed and not self._has_written_all:
            self._end_local_writing(now)

    def _write_more(self) -> None:
        self._write_local()
        self._after()

    def _next_for_local(self) -> bool:
        if not self._for_local and self.rpc is not None and (message := self.rpc.next_for_libvirtd()) is not None:
            self._message = message
            self._for_local.append(message.raw)
            self._say_delivered(self.rpc, self._loop.time())
        return bool(self._for_local)

    def _given(self, count: int, now: float) -> None:
        self._traffic.written[self.kind] += count
        if self.rpc is None:
            self.channel.delivered(count, now)
        elif not self._for_local and (message := self._message) is not None:
            self._message = None
            if self._traffic.on_message_to_libvirtd is not None:
                self._traffic.on_message_to_libvirtd(message)

    def _end_local_writing(self, now: float) -> None:
        if self.rpc is not None and self.rpc.is_held:
            return  # what is held is still to be written
        self._has_written_all = True
        if self._local is not None:
            with contextlib.suppress(OSError):
                self._local.shutdown(socket.SHUT_WR)
        self.channel.delivered_eof(now)
        self._traffic.look_at_gate()
        self._end_if_done()

    def _local_broke(self, error: OSError) -> None:
        # EPIPE and ECONNRESET: libvirt or QEMU went away with bytes on the way. The reason is read at the far end.
        if self.channel.state is ChannelState.OPEN:
            self._traffic.closed_here.add(self.kind)
        self.channel.reset(f"the {self.kind} socket of the other host was closed: {error.strerror or error}")
        self._end_local()

    def _end_if_done(self) -> None:
        if self._has_read_all and self._has_written_all:
            self._end_local()

    def _end_local(self) -> None:
        """The local socket is of no more use."""
        if self._grace is not None:
            self._grace.cancel()
            self._grace = None
        if self._local is not None:
            self._loop.remove_reader(self._local.fileno())
            self._loop.remove_writer(self._local.fileno())
            self._local.close()
            self._local = None
        self._is_reading = self._is_writing = False
        self._for_local.clear()
        self._tail = b""
        self._cancel_timers(self._tail_timer)
        self._tail_timer = None
        if not self.ended.is_set():
            self.ended.set()
            if self._traffic.on_close is not None:
                self._traffic.on_close(self.kind)
        self._traffic.look_at_gate()
        self._after()
        self._leave_if_done()

    # The link

    def attach(self, link: Link) -> None:
        """Carry on with another link, which was started with this as its receiver."""
        former, self.link = self.link, link
        if former is not None:
            former.abort("another link has taken its place")
        self.channel.connect(self._loop.time())
        self._after()
        self._leave_if_done()

    def next_frame(self, link: Link) -> Frame | None:
        """What the link asks."""
        if link is not self.link:
            return None
        frame = self.channel.next_frame(self._loop.time())
        if frame is None:
            self._leave_if_done()
        elif not self._is_reading:
            self._read_if_there_is_room()
        return frame

    def frame_received(self, link: Link, frame: Frame) -> None:
        """A frame of the other agent, or of a gateway on the way, has come."""
        if link is not self.link:
            return
        now = self._loop.time()
        if frame.channel != self.channel.identity:
            raise ProtocolError(f"a frame of another channel came on the link for {self.name}")
        if frame.type is FrameType.UNKNOWN:
            self.trouble = reason_of(frame) or self.trouble
        elif frame.type is FrameType.OPEN and (self._local is not None or self.ended.is_set()):
            self.channel.accept(now)
        try:
            events = self.channel.receive_frame(frame, now)
            self._handle(events, now)
        except AlteredError as error:
            self.lost(
                f"bytes {error.start} to {error.end} of {self.name} arrived altered: somebody on the way changed them"
            )
            return
        except LandbridgeError as error:
            self.lost(error.message)
            return
        self._after()

    def _handle(self, events: Sequence[Event], now: float) -> None:
        for event in events:
            match event:
                case Data(data):
                    self._give(data, now)
                case EndOfData():
                    self._far_end_closed = True
                case Reset(reason):
                    self._gone(reason)
                    return
                case Accepted():
                    self._is_accepted = True
        if events:
            self._write_local()

    def link_closed(self, link: Link, reason: str) -> None:
        """The link is over; whoever opened the channel finds another."""
        if link is self.link:
            self.link = None
            self.trouble = reason
            self.channel.disconnect()
            self._set_timer()

    def _set_timer(self) -> None:
        at = None if self.link is None else self.channel.next_timeout()
        if self._timer is not None:
            if at is not None and self._timer.when() <= at:
                return  # it will be set anew then
            self._timer.cancel()
            self._timer = None
        if at is not None:
            self._timer = self._loop.call_at(at, self._timed)

    def _timed(self) -> None:
        self._timer = None
        self.channel.timeout(self._loop.time())
        self._after()

    # The end

    def _tick(self) -> None:
        self._ticker = self._loop.call_later(TICK, self._guarded, self._tick)
        now = self._loop.time()
        if not self.is_waiting:
            return
        if self.channel.opened_by_us and not self._is_accepted:
            if now - self._began_at > ACCEPT_TIMEOUT:
                why = f": {self.trouble}" if self.trouble else ""
                self.lost(f"{self.name} was not accepted within {ACCEPT_TIMEOUT:.0f} s{why}")
        elif now - self.channel.heard_at > self._traffic.outage_limit:
            why = f" ({self.trouble})" if self.trouble else ""
            self.lost(f"nothing was heard on {self.name} for {self._traffic.outage_limit:.0f} s{why}")

    def lost(self, reason: str) -> None:
        """Give the channel up, and tell the other agent why, if that can be told."""
        if self.ended.is_set():
            self.channel.reset(reason)
            self._after()
            self._leave_if_done()
            return
        log.warning("channel.lost", channel=self.name, reason=reason)
        self.channel.reset(reason)
        self._gone(reason)

    def _gone(self, reason: str) -> None:
        if self.ended.is_set():
            self._leave_if_done()
            return
        self._traffic.fail(reason)
        if self.rpc is None:
            self._for_local.clear()  # libvirtd is not left with half a message
        if self._traffic.on_lost is None:
            self._end_local()
        elif self._grace is None:
            self._grace = self._loop.call_later(LOST_GRACE, self._end_local)
            self._traffic.on_lost()
        self._after()

    def abandon(self) -> None:
        """This host wants no more of it."""
        self.channel.reset(f"the {self.kind} socket of the other host was closed")
        self._end_local()

    def _leave_if_done(self) -> None:
        """Close the link once the last frames had time to leave, and again if another one has come since."""
        if not self.ended.is_set() or self.channel.state not in {ChannelState.RESET, ChannelState.FINISHED}:
            return
        if self._goes_on_telling():
            return
        self.over.set()
        is_known = self.channel.state is ChannelState.RESET or self.channel.may_be_forgotten
        leave_at = self._loop.time() + (FAREWELL if is_known else LINGER)
        if self._leaving is None or leave_at < self._leaving.when():
            self._cancel_timers(self._leaving)
            self._leaving = self._loop.call_at(leave_at, self._leave)

    def _goes_on_telling(self) -> bool:
        """Whether the other agent, which would wait for as long as the outage limit, is still to hear that this is over."""
        if not self.channel.may_be_unknown:
            return False
        now = self._loop.time()
        if self._tells_until is None:
            was_given_up = self.channel.state is ChannelState.RESET
            if was_given_up and self.link is not None and now - self.channel.heard_at < HEARD_LATELY:
                self._tells_until = now
                return False
            self._tells_until = now + min(TELLING, self._traffic.outage_limit)
            self._telling = self._loop.call_at(self._tells_until, self._give_up_telling)
            if was_given_up and self.link is not None:
                self.channel.connect(now)
                self._after()
        return now < self._tells_until

    def _give_up_telling(self) -> None:
        log.warning("channel.end_not_told", channel=self.name)
        self._tells_until = self._loop.time()
        self._leave_if_done()

    def _leave(self) -> None:
        if self.link is not None:
            self.link.close()
        self._cancel_timers(self._ticker, self._timer, self._leaving, self._telling)
        self._timer = self._leaving = self._telling = None

    def _cancel_timers(self, *timers: asyncio.TimerHandle | None) -> None:
        for timer in timers:
            if timer is not None:
                timer.cancel()

    def close(self) -> None:
        """The agent stops: let go of everything now."""
        self.abandon()
        self.over.set()
        self._leave()


def _rpc_end(channel: Channel, traffic: Traffic) -> RpcEnd:
    if not channel.opened_by_us and traffic.firewall is None:
        raise PermissionDenied("no calls of libvirt's are expected here; begin a new migration")
    return RpcEnd(None if channel.opened_by_us else traffic.firewall)

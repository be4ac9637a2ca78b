"""The only file that moves bytes on a host: between a local socket of libvirtd or QEMU, and a channel to the other host.

    local socket ── bytes ──> channel ── frames ──> link to a gateway          (asked for as the link takes them)
    local socket <── bytes ── channel <── frames ── link                       (acknowledged once the socket has them)

A `Carrier` is one channel with its socket. Its link may end and another take its place at any time: the channel goes on from what
the other agent has. It is given up when it is reset, when its bytes arrive altered, or when nothing was heard of the other agent
for longer than the migration's outage limit; its local socket is then closed (at the source after LOST_GRACE), so that libvirt
sees a lost connection and lets the guest run on at the source.

What waits on this host: at most `landbridge.receiving.CEILING` in each direction of a channel, and on an rpc channel
`agent.calls.MOST_WAITING` and one message of libvirt's.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Sequence

import structlog

from agent.calls import Calls
from agent.disk import DestinationDisk, SourceDisk
from agent.farewell import Farewell
from agent.memory import Memory
from agent.pages import Pages
from agent.traffic import Traffic
from landbridge.channel import Channel, ChannelState, Event, Reset
from landbridge.errors import AlteredError, LandbridgeError, ProtocolError
from landbridge.estimator import LARGEST_SEGMENT
from landbridge.frame import Frame, FrameType, reason_of
from landbridge.link import POOL, Link
from landbridge.receiving import Data, EndOfData

log = structlog.get_logger()

# Seconds to have a migration's first channel accepted by the destination. Once that host was reached, a line that is cut just
# as another channel opens is an outage like any other.
ACCEPT_TIMEOUT = 20.0
# Seconds that libvirt gets to stop a move in good order after a channel was lost. If QEMU's connections break before it is
# told to stop, while the guest stands still for the switch-over, QEMU 7.2 goes on with a filter node that nobody owns on
# top of the disk, and refuses to copy this disk ever again ("Need a root block node").
LOST_GRACE = 3.0
# Seconds between two looks at how long the other agent has been silent.
TICK = 0.5
# Seconds for which the beginning of a page waits for its end: QEMU writes a page in one piece, but a socket may hold a part of it.
TAIL_PATIENCE = 0.005


def _content(channel: Channel, kind: str, traffic: Traffic) -> Calls | Pages:
    match kind:
        case "rpc":
            return Calls(channel, traffic)
        case "disk":
            return SourceDisk(channel) if channel.opened_by_us else DestinationDisk(channel)
        case _:
            return Memory(channel)


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
        # What it carries: messages of libvirt's, or a stream of QEMU's.
        self._content = _content(channel, kind, traffic)
        self.calls = self._content if isinstance(self._content, Calls) else None
        self.pages = self._content if isinstance(self._content, Pages) else None
        # Set when the local socket has ended, in both directions; and when nothing more is to be said to the other agent.
        self.ended = asyncio.Event()
        self._farewell = Farewell(channel, name, open_again=self._open_again, leave=self._leave)
        self.over = self._farewell.over
        # Why the way to the other agent does not work, by the last who knew.
        self.trouble = ""
        self._traffic = traffic
        channel.outgoing.on_released = POOL.give
        self._loop = asyncio.get_running_loop()
        self._local: socket.socket | None = None
        self._is_reading = False
        self._is_writing = False
        self._far_end_closed = False
        self._has_read_all = False
        self._has_written_all = False
        # How often the local socket was read, and when that is looked at, while the beginning of a page waits for its end.
        self._reads = 0
        self._tail_timer: asyncio.TimerHandle | None = None
        self._began_at = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._grace: asyncio.TimerHandle | None = None
        self._ticker = self._loop.call_later(TICK, self._guarded, self._tick)
        traffic.carriers.append(self)

    # What others see

    @property
    def is_waiting(self) -> bool:
        """Whether the other agent should be heard from."""
        return self.channel.state in {ChannelState.OPEN, ChannelState.OPENING} and not self.over.is_set()

    @property
    def has_arrived(self) -> bool:
        """Whether the far end's stream has ended, unaltered, and the local socket has all of it; QEMU's, and has taken it in."""
        return self.channel.incoming.has_all_been_delivered and not (self.pages is not None and self.pages.is_awaited)

    @property
    def is_broken(self) -> bool:
        """Whether it has ended before the far end's stream had arrived, or QEMU could not take that in."""
        if self.pages is not None and (self.pages.has_failed or (self._has_read_all and self.pages.is_awaited)):
            return True
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

    def _guarded(self, callback: Callable[..., None], *arguments: object) -> None:
        """Call what the event loop calls. A defect in it ends the channel: asyncio would call it again, and the move would hang."""
        try:
            callback(*arguments)
        except LandbridgeError as error:
            self.lost(error.message)
        except Exception as error:  # a defect: whatever it raises
            log.exception("channel.defect", channel=self.name)
            self.lost(
                f"a defect of the agent ended {self.name} ({type(error).__name__}): report it, with the agent's log"
            )

    def _read_if_there_is_room(self) -> None:
        local = self._local
        wants_reading = not self._has_read_all and self._content.room > 0
        if local is None or wants_reading is self._is_reading:
            return
        if wants_reading:
            self._loop.add_reader(local.fileno(), self._guarded, self._read_local)
        else:
            self._loop.remove_reader(local.fileno())
        self._is_reading = wants_reading

    def _read_local(self) -> None:
        room, tail = self._content.room, self._content.tail
        if self._local is None or room <= 0:
            self._read_if_there_is_room()
            return
        held = len(tail)
        buffer = POOL.take(min(room + held, LARGEST_SEGMENT))
        buffer[:held] = tail
        try:
            count = self._local.recv_into(buffer[held:])
        except (BlockingIOError, InterruptedError):
            POOL.give(buffer)
            return
        except OSError as error:
            self._local_broke(error)
            return
        now = self._loop.time()
        if count:
            self._reads += 1
            self._traffic.read[self.kind] += count
            try:
                if self._content.from_local(buffer, held + count, now):
                    self._write_local()
                    self._traffic.look_at_gate()
            except LandbridgeError as error:
                # What libvirt said on this host cannot be followed: better no move than one that nobody understands.
                self.lost(error.message)
                return
            if self._content.tail and self._tail_timer is None:
                self._tail_timer = self._loop.call_later(TAIL_PATIENCE, self._guarded, self._tail_waited, self._reads)
        else:
            self._has_read_all = True
            is_early = not self._far_end_closed or (
                self.pages is not None and (self.pages.is_awaited or self.pages.has_failed)
            )
            if is_early and self.channel.state is ChannelState.OPEN:
                self._traffic.closed_here.add(self.kind)
            POOL.give(buffer)
            self._send_tail(now)
            self.channel.send_eof(now)
            if self.pages is not None:
                self.pages.local_ended()
                self._write_local()
            self._end_if_done()
        self._after()

    def _tail_waited(self, reads: int) -> None:
        self._tail_timer = None
        if reads != self._reads and self._content.tail:
            self._tail_timer = self._loop.call_later(TAIL_PATIENCE, self._guarded, self._tail_waited, self._reads)
        elif self._content.tail:
            self._send_tail(self._loop.time())
            self._after()

    def _send_tail(self, now: float) -> None:
        if self.pages is not None:
            self.pages.send_tail(now)

    def pass_gate(self, whole: bool) -> None:
        """Let the FINISH call that is held go on to libvirtd, as it is or as one that cancels."""
        if self.calls is not None:
            self.calls.pass_gate(whole)
        self._write_local()
        self._after()

    def _write_local(self) -> None:
        local, wants_writing = self._local, False
        while local is not None and (data := self._content.next_for_local()) is not None:
            try:
                count = local.send(data)
            except (BlockingIOError, InterruptedError):
                wants_writing = True
                break
            except OSError as error:
                self._local_broke(error)
                return
            self._traffic.written[self.kind] += count
            self._content.written(count)
            local = self._local
        if local is None:
            return
        if wants_writing and not self._is_writing:
            self._loop.add_writer(local.fileno(), self._guarded, self._write_more)
        elif not wants_writing and self._is_writing:
            self._loop.remove_writer(local.fileno())
        self._is_writing = wants_writing
        if not wants_writing and self._far_end_closed and not self._has_written_all:
            self._end_local_writing()

    def _write_more(self) -> None:
        self._write_local()
        self._after()

    def _end_local_writing(self) -> None:
        if self._content.is_held:
            return  # what is held is still to be written
        self._has_written_all = True
        if self._local is not None:
            with contextlib.suppress(OSError):
                self._local.shutdown(socket.SHUT_WR)
        self.channel.delivered_eof(self._loop.time())
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
        if self.pages is not None:
            self.pages.forget_all()
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
                    self._content.from_channel(data, now)
                case EndOfData():
                    self._far_end_closed = True
                case Reset(reason):
                    self._gone(reason)
                    return
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
        if self.channel.opened_by_us and not self._traffic.has_reached_other_host:
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
        if self.pages is not None:  # while libvirtd is not left with half a message
            self.pages.forget_all()
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
        if self.ended.is_set() and self.channel.state in {ChannelState.RESET, ChannelState.FINISHED}:
            self._farewell.go_on(self._traffic.outage_limit, is_linked=self.link is not None)

    def _open_again(self) -> None:
        self.channel.connect(self._loop.time())
        self._after()

    def _leave(self) -> None:
        if self.link is not None:
            self.link.close()
        self._cancel_timers(self._ticker, self._timer)
        self._timer = None

    def _cancel_timers(self, *timers: asyncio.TimerHandle | None) -> None:
        for timer in timers:
            if timer is not None:
                timer.cancel()

    def close(self) -> None:
        """The agent stops: let go of everything now."""
        self.abandon()
        self._farewell.leave()

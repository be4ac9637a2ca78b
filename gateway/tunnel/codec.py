"""What this gateway and one gateway of another site have in common: a page log, and the coding of frames by it.

    DATA ── encode ──> CODED ══ tunnel ══> CODED ── decode ──> DATA        in the order in which they were given
                           <── LOG_ACK ──      so much of your log is here: you may refer to it
                           <── LOG_STATE ──>   at each new tunnel: which logs there are, and what of them is held
                           <── LOG_FORGET ──   a frame does not fit what is here: begin the logs anew

A frame refers only to what the other end has said to hold, so that each can be decoded on its own: links may lose, repeat and
reorder frames here as anywhere. A frame that cannot be decoded is lost like any other, and the agents send its bytes again.

One thread per codec encodes and decodes, for zstd and hashes leave the interpreter to others meanwhile; log and index belong to it
alone (`_Coder`). The event loop gives it jobs, and hears what came of them in the same order (`Codec`).
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import secrets
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import structlog

from gateway.stream.blob import MOST_TOGETHER
from gateway.stream.dedup import History
from gateway.stream.log_state import State
from gateway.stream.pipeline import Decoder, Encoder, Uncoded
from gateway.stream.ring import GENERATION
from gateway.stream.tally import Tally
from landbridge.errors import LandbridgeError, OutOfStep, ProtocolError
from landbridge.frame import CODED_TYPES, MAX_PAYLOAD, MAX_REASON, Frame, FrameType, reason_of
from landbridge.link import POOL

log = structlog.get_logger()

# Before what was coded: the beginnings of the generations of the sender's log and of the receiver's, and the type of the frame.
_TAG = 4
_PREFIX = struct.Struct(f"!{_TAG}s{_TAG}sB")
# In an acknowledgement, behind the beginning of the generation of the log that it is of.
_RANGE = struct.Struct("!QQ")
# Ranges of one acknowledgement: what has come in since the last one, in a few pieces.
MOST_RANGES = 64
# Pages that one may be of: far more than come in with one frame, and what the thread looks through in a millisecond.
MOST_ACKNOWLEDGED = 1 << 16
# What the other end has said that may wait for the thread: of acknowledgements, which are dropped then, as they may be lost anyway;
# and of all else, where nobody who keeps to the rules says so much. A state takes up to 0.3 MB, and to meet it up to a second.
MOST_HEARD, MOST_STATES = 256, 64
# Seconds between two attempts to tell the other end which logs there are.
SAY_AGAIN = 0.2
# Seconds for the thread to finish what it does.
PATIENCE = 5.0


@dataclass(frozen=True, slots=True)
class Subject:
    """Whose pages a channel carries: by which they are found again, and with whose they may be compared."""

    # A number for the VM, and one for its domain.
    vm: int
    domain: int


class Voice(Protocol):
    """What a codec speaks through: a tunnel to the other gateway."""

    def say(self, frame: Frame) -> None:
        """Send a frame about the page log."""
        ...


# Called on the event loop with the frame as it goes on, what became of its bytes, if it was coded, and the seconds it took.
Sent = Callable[[Frame, Tally | None, float], None]
# Called on the event loop with the frame as it was; None if it could not be decoded.
Received = Callable[[Frame | None], None]
_Answer = Callable[[], None]
_Job = Callable[["_Coder"], _Answer]


@dataclass(frozen=True, slots=True, eq=False)
class _Encoding:
    """A frame that is to be encoded."""

    frame: Frame
    subject: Subject
    level: int
    done: Sent

    def plain(self) -> Frame:
        """The frame as it goes if it is not coded."""
        return Frame(self.frame.type, self.frame.channel, self.frame.position, self.frame.payload)

    @property
    def shared(self) -> tuple[object, ...]:
        """What those have in common that can be encoded together."""
        return self.subject, self.level


@dataclass(frozen=True, slots=True, eq=False)
class _Decoding:
    """A frame that is to be decoded."""

    frame: Frame
    done: Received

    @property
    def shared(self) -> tuple[object, ...]:
        """Any can be decoded together."""
        return ()


_Like = TypeVar("_Like", _Encoding, _Decoding)
_Task = _Encoding | _Decoding | tuple[_Job, _Answer]


class Codec:
    """The loop's side. Owned by the event loop."""

    def __init__(self, name: str, open_history: Callable[[], History]) -> None:
        """`open_history` is called on the thread. Without a history nothing is coded, and migrations go on as they are."""
        # The other gateway, for messages.
        self.name = name
        # Whether the other end has told its state since the first tunnel came up; nothing is coded before.
        self.is_met = False
        # Frames that could not be decoded here.
        self.undecoded = 0
        self._loop = asyncio.get_running_loop()
        self._voices: list[Voice] = []
        # Jobs, and what is to be done if one fails.
        self._jobs: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._answers: deque[_Answer] = deque()
        # Jobs that are about what the other end has said of logs.
        self._heard = 0
        self._thread = threading.Thread(target=self._work, args=(open_history,), name=f"codec for {name}", daemon=True)
        self._thread.start()

    # Who is at the other end

    def attach(self, voice: Voice) -> None:
        """A tunnel to the other gateway has its first link: tell what is here."""
        if voice not in self._voices:
            self._voices.append(voice)
        self._jobs.put((lambda coder: self._saying_state(coder, voice.say), _nothing))

    def detach(self, voice: Voice) -> None:
        """A tunnel has lost its last link. The other end may be another process when it comes back."""
        if voice in self._voices:
            self._voices.remove(voice)
        if not self._voices:
            self.is_met = False

    def _say(self, frame: Frame) -> None:
        if self._voices:
            self._voices[-1].say(frame)

    def _say_all(self, frames: list[Frame]) -> None:
        for frame in frames:
            self._say(frame)

    # The way of a frame

    def encode(self, frame: Frame, subject: Subject, level: int, done: Sent) -> None:
        """Code a frame with bytes of a stream, if that is worth it; without its hints, which are of no use further on."""
        self._jobs.put(_Encoding(frame, subject, level, done))

    def _encode(self, coder: _Coder, those: list[_Encoding]) -> list[_Answer]:
        began = time.perf_counter()
        results = coder.encode([each.frame for each in those], those[0].subject, those[0].level)
        seconds = (time.perf_counter() - began) / len(those)

        def answer(each: _Encoding, result: tuple[Frame, Tally] | None) -> _Answer:
            return lambda: self._encoded(each, result, seconds)

        return [answer(each, result) for each, result in zip(those, results, strict=True)]

    def _encoded(self, each: _Encoding, result: tuple[Frame, Tally] | None, seconds: float) -> None:
        if result is None:
            each.done(each.plain(), None, seconds)
            return
        POOL.give(each.frame.payload)
        each.done(*result, seconds)

    def decode(self, frame: Frame, done: Received) -> None:
        """Undo that."""
        self._jobs.put(_Decoding(frame, done))

    def _decode(self, coder: _Coder, those: list[_Decoding]) -> list[_Answer]:
        try:
            results = coder.decode([each.frame for each in those])
        except (OutOfStep, ProtocolError) as error:
            if len(those) > 1:
                # Each for itself: it is one of them, and what is before that one is good. What was logged already is there already.
                return [answer for each in those for answer in self._decode(coder, [each])]
            reason, forgetting = error.message, self._forgetting(coder, error.message)
            return [lambda: self._refuse(reason, forgetting, those[0].done)]
        said = coder.take_acknowledgements() if any(results) else []
        if not all(results):
            said += coder.say_again(time.monotonic())

        def answer(each: _Decoding, result: Frame | None) -> _Answer:
            return lambda: self._decoded(each, result)

        decoded = [answer(*each) for each in zip(those, results, strict=True)]
        return [lambda: self._say_all(said), *decoded] if said else decoded

    def _decoded(self, each: _Decoding, result: Frame | None) -> None:
        POOL.give(each.frame.payload)
        if result is None:
            self._lose(each.done)
        else:
            each.done(result)

    def _lose(self, done: Received) -> None:
        self.undecoded += 1
        done(None)

    def pass_on(self, answer: _Answer) -> None:
        """Have something done when all that was given before has been."""
        self._jobs.put((lambda _: answer, answer))

    # What is said of logs

    def received(self, frame: Frame) -> None:
        """The other end speaks of logs. Raises ProtocolError."""
        if frame.type is FrameType.LOG_ACK:
            tag, ranges = _acknowledgement(bytes(frame.payload))
            if self._heard < MOST_HEARD:
                self._hear(lambda coder: coder.acknowledged(tag, ranges))
            return
        if self._heard >= MOST_HEARD + MOST_STATES:
            raise ProtocolError(
                "the other end says which page logs there are more often than it can be heard; the link is closed"
            )
        if frame.type is FrameType.LOG_STATE:
            state = State.decode(frame.payload)
            self._hear(lambda coder: self._meeting(coder, state))
        else:
            reason = f"the other end says: {reason_of(frame)}"
            self._hear(lambda coder: self._forgetting(coder, reason))

    def _hear(self, job: _Job) -> None:
        self._heard += 1

        def heard(answer: _Answer) -> None:
            self._heard -= 1
            answer()

        def counted(coder: _Coder) -> _Answer:
            answer = job(coder)
            return lambda: heard(answer)

        self._jobs.put((counted, lambda: heard(_nothing)))

    def _saying_state(self, coder: _Coder, say: Callable[[Frame], None]) -> _Answer:
        state = coder.state()
        return lambda: say(state)

    def _meeting(self, coder: _Coder, state: State) -> _Answer:
        coder.history.meet(state)
        if state.incoming.generation == coder.history.out_generation:
            return self._met
        # What we said before has not come yet, or came behind something older: frames of different links overtake each other.
        saying = self._saying_state(coder, self._say)

        def answer() -> None:
            self._met()
            saying()

        return answer

    def _met(self) -> None:
        self.is_met = bool(self._voices)

    def _forgetting(self, coder: _Coder, reason: str) -> _Answer:
        """Begin anew what is ours, and say so; the other end does the same."""
        coder.history.forget(secrets.token_bytes(GENERATION))
        log.warning("page_log.forgotten", peer=self.name, reason=reason)
        return self._saying_state(coder, self._say)

    def _refuse(self, reason: str, forgetting: _Answer, done: Received) -> None:
        self._say(Frame(FrameType.LOG_FORGET, 0, 0, reason.encode()[:MAX_REASON]))
        forgetting()
        self._lose(done)

    # The thread

    def _work(self, open_history: Callable[[], History]) -> None:
        try:
            coder: _Coder | None = _Coder(open_history())
        except (LandbridgeError, OSError) as error:
            log.warning("page_log.unusable", peer=self.name, reason=str(error))
            coder = None
        for job, otherwise in self._tasks():
            answers = otherwise
            if coder is not None:
                try:
                    answers = job(coder)
                except Exception:  # the thread is to live; the frame goes as it is, or is lost like any other
                    log.exception("page_log.failed", peer=self.name)
            self._answers += answers
            if len(self._answers) <= len(answers):
                with contextlib.suppress(RuntimeError):  # the loop has ended
                    self._loop.call_soon_threadsafe(self._deliver)
        if coder is not None:
            coder.history.close()

    def _tasks(self) -> Iterator[tuple[Callable[[_Coder], list[_Answer]], list[_Answer]]]:
        """Jobs, in order, and what is to be done if one fails; frames that wait one behind the other are done by one job."""
        held = deque[_Task | None]()
        while (task := held.popleft() if held else self._jobs.get()) is not None:
            match task:
                case _Encoding():
                    frames = self._together(task, held)
                    yield (
                        partial(self._encode, those=frames),
                        [partial(each.done, each.plain(), None, 0.0) for each in frames],
                    )
                case _Decoding():
                    coded = self._together(task, held)
                    yield partial(self._decode, those=coded), [partial(self._lose, each.done) for each in coded]
                case job, answer:
                    yield partial(_alone, job), [answer]

    def _together(self, task: _Like, held: deque[_Task | None]) -> list[_Like]:
        """A task, with those that wait right behind it and can be done with it; what was taken and is not goes to `held`."""
        those = [task]
        while not held and len(those) < MOST_TOGETHER and not self._jobs.empty():
            following = self._jobs.get()
            if isinstance(following, type(task)) and following.shared == task.shared:
                those.append(following)
            else:
                held.append(following)
        return those

    def _deliver(self) -> None:
        while self._answers:
            self._answers.popleft()()

    async def close(self) -> None:
        """Finish what is being done, and write the log to the disk."""
        self._jobs.put(None)
        await self._loop.run_in_executor(None, self._thread.join, PATIENCE)


class _Coder:
    """The thread's side."""

    def __init__(self, history: History) -> None:
        self.history = history
        self._encoder = Encoder(history)
        self._decoder = Decoder(history)
        self._said_at = 0.0

    def encode(self, frames: list[Frame], subject: Subject, level: int) -> list[tuple[Frame, Tally] | None]:
        """The frames, coded; None for one that should go as it is."""
        tags = self.history.out_generation[:_TAG], self.history.in_generation[:_TAG]
        given = [
            Uncoded(memoryview(frame.payload), memoryview(frame.hints), _PREFIX.pack(*tags, frame.type))
            for frame in frames
        ]
        coded = self._encoder.encode_many(given, vm=subject.vm, domain=subject.domain, level=level)
        return [
            None
            if each is None or len(each.blob) > MAX_PAYLOAD
            else (Frame(FrameType.CODED, frame.channel, frame.position, each.blob), each.tally)
            for frame, each in zip(frames, coded, strict=True)
        ]

    def decode(self, frames: list[Frame]) -> list[Frame | None]:
        """The frames as they were; None for one that was under way while a log was begun anew. Raises OutOfStep or ProtocolError."""
        tags = self.history.in_generation[:_TAG], self.history.out_generation[:_TAG]
        heads = [_prefix_of(frame) for frame in frames]
        good = [frame for frame, (theirs, ours, _) in zip(frames, heads, strict=True) if (theirs, ours) == tags]
        decoded = iter(self._decoder.decode_many([memoryview(frame.payload)[_PREFIX.size :] for frame in good]))
        return [
            Frame(FrameType(kind), frame.channel, frame.position, next(decoded).payload)
            if (theirs, ours) == tags
            else None
            for frame, (theirs, ours, kind) in zip(frames, heads, strict=True)
        ]

    def take_acknowledgements(self) -> list[Frame]:
        """What to say of that which has come since this was asked last."""
        tag, ranges = self.history.in_generation[:_TAG], self.history.take_received()
        parts = [ranges[start : start + MOST_RANGES] for start in range(0, len(ranges), MOST_RANGES)]
        return [Frame(FrameType.LOG_ACK, 0, 0, tag + b"".join(_RANGE.pack(*each) for each in part)) for part in parts]

    def say_again(self, now: float) -> list[Frame]:
        """What to say if the other end knows another log than there is."""
        if now - self._said_at < SAY_AGAIN:
            return []
        self._said_at = now
        return [self.state()]

    def acknowledged(self, tag: bytes, ranges: list[tuple[int, int]]) -> _Answer:
        """The other end has that."""
        if tag == self.history.out_generation[:_TAG]:
            self.history.acknowledged(ranges)
        return _nothing

    def state(self) -> Frame:
        """What to tell of the log."""
        return Frame(FrameType.LOG_STATE, 0, 0, self.history.state().encode())


def _prefix_of(frame: Frame) -> tuple[bytes, bytes, int]:
    """The sender's log and the receiver's, and the type of frame, as a coded frame says. Raises ProtocolError."""
    if len(frame.payload) < _PREFIX.size:
        raise ProtocolError("a coded frame ends within its head")
    theirs, ours, kind = _PREFIX.unpack_from(frame.payload)
    if kind not in CODED_TYPES:
        raise ProtocolError(f"a coded frame is of type {kind}, which is never coded")
    return theirs, ours, kind


def _alone(job: _Job, coder: _Coder) -> list[_Answer]:
    return [job(coder)]


def _nothing() -> None:
    """What there is to be done on the loop after most of what is said of logs."""


def _acknowledgement(payload: bytes) -> tuple[bytes, list[tuple[int, int]]]:
    rest = len(payload) - _TAG
    if rest < 0 or rest % _RANGE.size:
        raise ProtocolError(f"an acknowledgement of a page log of {len(payload)} bytes arrived; the link is closed")
    ranges = [(first, end) for first, end in _RANGE.iter_unpack(payload[_TAG:])]
    count = sum(end - first for first, end in ranges)
    if len(ranges) > MOST_RANGES or count > MOST_ACKNOWLEDGED or any(first >= end for first, end in ranges):
        raise ProtocolError("an acknowledgement of a page log contradicts itself; the link is closed")
    return payload[:_TAG], ranges

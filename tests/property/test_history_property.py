"""Two histories over a hostile wire: a reference that one end may use names the same bytes at the other end, or nothing there.

Frames, acknowledgements, states and words of a new generation are lost, repeated, late and in any order; gateways are killed,
closed, lose their power or their files, and forget. As links do not outlive a gateway, what was sent to it does not arrive after its
end, but what it has sent may: not so after a power failure.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from gateway.stream.dedup import History
from gateway.stream.log_state import State
from gateway.stream.page_log import HEAD, RECORD, Pages, pages_at
from gateway.stream.ring import Kept, Numbers
from landbridge.hints import PAGE
from tests.unit.page_logs import digests_of, generation, numbers, open_log, some_pages

CAPACITY = 24
PAGES = some_pages(*range(12))
DIGESTS = digests_of(PAGES)
SIDES = st.integers(0, 1)
CHOICE = st.integers(0, 1 << 16)


@dataclass
class Message:
    """What is on the wire."""

    state: bytes = b""
    acknowledged: list[tuple[int, int]] = field(default_factory=list)
    generation: bytes = b""
    first: int = 0
    pages: tuple[int, ...] = ()
    # References, and the bytes that their sender takes them for.
    references: Numbers = field(default_factory=numbers)
    meant: Pages = field(default_factory=lambda: PAGES[:0])


class Gateways(RuleBasedStateMachine):
    """Gateway 0 and gateway 1; wires[i] is what is on the way to gateway i."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.generations = 0
        self.boots = 0
        self.wires: list[list[Message]] = [[], []]
        self.ends: list[History] = []

    @initialize()
    def start(self) -> None:
        self.ends = [self.opened(0), self.opened(1)]
        self.speak(0)
        self.speak(1)

    def opened(self, side: int) -> History:
        return History(open_log(self.path(side), CAPACITY, self.a_number(), self.boots.to_bytes(16)))

    def path(self, side: int) -> Path:
        return self.directory / str(side)

    def a_number(self) -> int:
        self.generations += 1
        return self.generations

    def teardown(self) -> None:
        for end in self.ends:
            end.close()
        shutil.rmtree(self.directory)

    def send(self, side: int, message: Message) -> None:
        self.wires[1 - side].append(message)

    # What gateways do

    @rule(side=SIDES)
    def speak(self, side: int) -> None:
        self.send(side, Message(state=self.ends[side].state().encode()))

    @rule(side=SIDES, pages=st.lists(st.integers(0, len(PAGES) - 1), max_size=7))
    def code(self, side: int, pages: list[int]) -> None:
        end = self.ends[side]
        contents, digests = PAGES[pages], DIGESTS[pages]
        keys = np.array([page % 5 for page in pages], np.uint64)
        references = np.concatenate(end.known_many(1, digests, keys, contents))
        references = references[references != 0]
        meant = end.read_many(references)
        assert meant is not None
        first = end.append(contents, np.arange(len(pages)), digests, keys, 1) if pages else None
        self.send(side, Message(first=first or 0, pages=tuple(pages), references=references, meant=meant))
        if len(references) and pages:
            end.remember_many(keys[:1], references[:1])

    @rule(side=SIDES)
    def acknowledge(self, side: int) -> None:
        self.send(side, Message(acknowledged=self.ends[side].take_received()))

    @rule(side=SIDES)
    def forget(self, side: int) -> None:
        new = generation(self.a_number())
        self.ends[side].forget(new)
        self.send(side, Message(generation=new))

    # What the wire does

    @rule(side=SIDES, which=CHOICE, stays=st.booleans())
    def arrive(self, side: int, which: int, stays: bool) -> None:
        wire = self.wires[side]
        if wire:
            which %= len(wire)
            self.take(side, wire[which] if stays else wire.pop(which))

    @rule(side=SIDES, stays=st.booleans())
    def all_arrive(self, side: int, stays: bool) -> None:
        for message in list(self.wires[side]):
            self.take(side, message)
        if not stays:
            self.wires[side].clear()

    @rule(side=SIDES, which=CHOICE)
    def lose(self, side: int, which: int) -> None:
        if self.wires[side]:
            self.wires[side].pop(which % len(self.wires[side]))

    def take(self, side: int, message: Message) -> None:
        end = self.ends[side]
        if message.state:
            end.meet(State.decode(message.state))
        end.acknowledged(message.acknowledged)
        if message.generation:
            end.forget_from_peer(message.generation)
        for reference, meant in zip(message.references.tolist(), message.meant, strict=True):
            found = end.read_from_peer(reference)
            assert found is None or found == meant.data
        if message.first:
            pages = list(message.pages)
            keys = np.array([page % 5 for page in pages], np.uint64)
            end.store(message.first, [PAGES[pages]], DIGESTS[pages], keys, 1)

    # What befalls gateways

    @rule(side=SIDES)
    def close(self, side: int) -> None:
        self.ends[side].close()
        self.begin_again(side)

    @rule(side=SIDES)
    def kill(self, side: int) -> None:
        left = self.path(side).read_bytes()
        self.ends[side].close()
        self.path(side).write_bytes(left)
        self.begin_again(side)

    @rule(side=SIDES, seed=CHOICE)
    def lose_power(self, side: int, seed: int) -> None:
        """Some blocks of the disk are as they were when the power came, or at the last clean close."""
        chance = np.random.default_rng(seed)
        left = bytearray(self.path(side).read_bytes())
        self.ends[side].close()
        start = pages_at(CAPACITY)
        for slot in np.flatnonzero(chance.random(2 * CAPACITY) < 0.3).tolist():
            if chance.random() < 0.5:
                left[HEAD + slot * RECORD : HEAD + (slot + 1) * RECORD] = bytes(RECORD)
            else:
                at = start + slot * PAGE
                left[at : at + PAGE] = PAGES[chance.integers(len(PAGES))].tobytes()
        self.path(side).write_bytes(left)
        self.boots += 1
        self.begin_again(side)
        # More frames than MARGIN_SHARE allows for would be under way.
        self.wires[1 - side].clear()

    @rule(side=SIDES)
    def lose_file(self, side: int) -> None:
        self.ends[side].close()
        self.path(side).unlink()
        self.begin_again(side)

    def begin_again(self, side: int) -> None:
        self.ends[side] = self.opened(side)
        self.wires[side].clear()

    # What holds

    @invariant()
    def what_one_may_refer_to_the_other_reads_the_same_or_not_at_all(self) -> None:
        for end, peer in zip(self.ends, reversed(self.ends), strict=True):
            usable = self.usable(end)
            ours, theirs = end.read_many(usable), peer.read_many_from_peer(usable)
            assert ours is not None
            if theirs is not None:
                assert (ours == theirs).all()
                continue
            for reference, our in zip(usable.tolist(), ours, strict=True):
                their = peer.read_from_peer(reference)
                assert their is None or their == our.data

    @rule()
    def settle(self) -> None:
        """On a fair wire, after a meeting, what is acknowledged is usable, and all that is usable can be read."""
        for wire in self.wires:
            wire.clear()
        for _ in range(2):  # one that was set back says so only in its second word
            self.speak(0)
            self.speak(1)
            self.all_arrive(0, stays=False)
            self.all_arrive(1, stays=False)
        for side in (0, 1):
            self.code(side, list(range(side, side + 5)))
            self.all_arrive(1 - side, stays=False)
            self.acknowledge(1 - side)
            self.all_arrive(side, stays=False)
        for end, peer in zip(self.ends, reversed(self.ends), strict=True):
            assert peer.read_many_from_peer(self.usable(end)) is not None
        for side, end in enumerate(self.ends):
            some = slice(side, side + 5)
            equal, last = end.known_many(1, DIGESTS[some], np.arange(5, dtype=np.uint64), PAGES[some])
            assert equal.all()
            assert last.all()

    def usable(self, end: History) -> Numbers:
        log = end._log
        rings = enumerate((log.out, log.incoming))
        return numbers(*(2 * s + n for n, ring in rings for a, b in ring.ranges(Kept.COMMON) for s in range(a, b)))


Gateways.TestCase.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)
TestGateways = Gateways.TestCase

"""python -m tests.bench.codec: how quickly one core hints, encodes and decodes a migration's memory, and what is left of it.

    hint     agent.stream finds the pages in a stream
    code     gateway.stream encodes frames of 256 KiB and decodes them, at level 2, with page logs in files; beside zstd at its
             level 1 alone, in the same pieces. `encode` and `decode`, and the ratio: MOST_TOGETHER frames at a time, the most that are
             coded together where all wait for the codec; `single`: one at a time, as over links that it keeps up with

Streams (tests.bench.memory_stream), in frames as an agent makes them:

    first pass    pages as of a page cache, made from files of this machine
    zeros         the same, half of the guest's pages being zero
    changes       pages that the other gateway has, with 1 to 8 words changed in each
    known         pages that the other gateway has, unchanged, as on the way back
    random        pages of random bytes

Figures are MB (10^6 bytes) of the stream per second of CPU time of the thread that works. Ours and zstd's are taken in turns, a few
frames each, so that what else the machine does hits both; and of each few frames the best of all runs counts. Each run has new page
logs. `wire` is what is left, as a share.

With --json each row is an object, whose `type` is the section. `ok`: whether it meets `target`.

    hint     stream, mb_per_s
    code     stream, zstd_mb_per_s, encode_mb_per_s, ratio (of the two), single_mb_per_s, decode_mb_per_s, single_decode_mb_per_s,
             zstd_wire, wire
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

import click
import zstandard

from agent.stream.qemu import QemuStream
from gateway.stream.blob import MOST_TOGETHER
from gateway.stream.dedup import History
from gateway.stream.page_log import PageLog
from gateway.stream.pipeline import Decoder, Encoder, Uncoded
from landbridge import memory
from landbridge.hints import PAGE
from tests.bench.byte_path import MB
from tests.bench.memory_stream import (
    FRAME,
    HintedFrame,
    Record,
    among_zeros,
    changed,
    frames,
    in_a_row,
    page_cache,
    random_pages,
    stream,
)

LEVEL = 2
# Of zstd alone.
CODE_TARGET = 0.7
# MB/s: an agent's core has better things to do.
HINT_TARGET = 1500.0
# Frames that are coded before they are acknowledged: 2 MiB, which is 17 ms at 1 Gbit/s.
ACKNOWLEDGED_AFTER = 8
VM, DOMAIN = 1, 2


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    runs: int
    pages: int


FULL = Plan(5, 16384)
QUICK = Plan(3, 4096)


# Rows


@dataclass(frozen=True)
class Hint:
    """Finding the pages of one stream."""

    type: ClassVar = "hint"
    title: ClassVar = "hinting, MB/s of one core"
    columns: ClassVar = (("stream", 12), ("MB/s", 10))
    target: ClassVar = HINT_TARGET

    stream: str
    mb_per_s: float

    @property
    def ok(self) -> bool:
        """Whether the target is met."""
        return self.mb_per_s >= self.target

    def cells(self) -> list[str]:
        """As the table shows it."""
        return [self.stream, f"{self.mb_per_s:.0f}"]


@dataclass(frozen=True)
class Code:
    """Encoding and decoding one stream."""

    type: ClassVar = "code"
    title: ClassVar = "coding, MB/s of one core, encoding as a share of zstd 1 alone"
    columns: ClassVar = (
        ("stream", 12),
        ("zstd 1", 10),
        ("encode", 10),
        ("ratio", 10),
        ("single", 10),
        ("decode", 10),
        ("single", 10),
        ("wire: zstd 1", 16),
        ("ours", 10),
    )
    target: ClassVar = CODE_TARGET

    stream: str
    zstd_mb_per_s: float
    encode_mb_per_s: float
    ratio: float
    single_mb_per_s: float
    decode_mb_per_s: float
    single_decode_mb_per_s: float
    zstd_wire: float
    wire: float

    @property
    def ok(self) -> bool:
        """Whether the target is met."""
        return self.ratio >= self.target

    def cells(self) -> list[str]:
        """As the table shows it."""
        rates = [self.stream, f"{self.zstd_mb_per_s:.0f}", f"{self.encode_mb_per_s:.0f}", f"{self.ratio:.2f}"]
        others = (self.single_mb_per_s, self.decode_mb_per_s, self.single_decode_mb_per_s)
        rates += [f"{rate:.0f}" for rate in others]
        return [*rates, f"{self.zstd_wire:.4f}", f"{self.wire:.4f}"]


Row = Hint | Code


# Measuring


@dataclass(frozen=True)
class Story:
    """What is sent first, without being measured, and what is."""

    name: str
    before: list[Record]
    records: list[Record]


def stories(pages: int) -> Iterator[Story]:
    """All that is measured; `pages` is about how many each has."""
    cached = page_cache(pages)
    yield Story("first pass", [], in_a_row(cached))
    yield Story("zeros", [], among_zeros(cached))
    yield Story("changes", in_a_row(cached), changed(in_a_row(cached), 8))
    yield Story("known", in_a_row(cached), in_a_row(cached))
    yield Story("random", [], in_a_row(random_pages(pages)))


class Turn(NamedTuple):
    """A few frames."""

    # Of CPU time: zstd alone, encoding, decoding.
    seconds: tuple[float, float, float]
    # Bytes on the wire, of zstd alone and of ours.
    alone: int
    wire: int


class Gateways:
    """Two of them, with new page logs in a directory."""

    def __init__(self, directory: Path, size: int, together: int) -> None:
        """`together`: frames that are coded at a time."""
        self._together = together
        logs = [PageLog.open(directory / name, size, bytes(16), name.encode() * 4) for name in ("here", "away")]
        self.here, self.there = (History(log) for log in logs)
        self.here.meet(self.there.state())
        self.there.meet(self.here.state())
        self._encoder, self._decoder = Encoder(self.here), Decoder(self.there)

    def carry(self, sent: list[HintedFrame]) -> Iterator[Turn]:
        """Code the frames and decode them, a few at a time."""
        alone = zstandard.ZstdCompressor(level=1, write_checksum=False)
        for at in range(0, len(sent), ACKNOWLEDGED_AFTER):
            group = sent[at : at + ACKNOWLEDGED_AFTER]
            begun = time.thread_time()
            packed = [alone.compress(each.payload) for each in group]
            compressed = time.thread_time()
            coded = []
            for start in range(0, len(group), self._together):
                part = [Uncoded(memoryview(f.payload), f.hints) for f in group[start : start + self._together]]
                coded += self._encoder.encode_many(part, vm=VM, domain=DOMAIN, level=LEVEL)
            encoded = time.thread_time()
            blobs = [(f.payload, memoryview(c.blob)) for f, c in zip(group, coded, strict=True) if c]
            decoded = []
            for start in range(0, len(blobs), self._together):
                decoded += self._decoder.decode_many([blob for _, blob in blobs[start : start + self._together]])
            seconds = compressed - begun, encoded - compressed, time.thread_time() - encoded
            if any(each.payload != payload for (payload, _), each in zip(blobs, decoded, strict=True)):
                raise AssertionError("other bytes came out than went in")
            self.here.acknowledged(self.there.take_received())
            wire = sum(len(f.payload) if c is None else len(c.blob) for f, c in zip(group, coded, strict=True))
            yield Turn(seconds, sum(map(len, packed)), wire)

    def close(self) -> None:
        """Give the files back."""
        self.here.close()
        self.there.close()


def code(plan: Plan) -> Iterator[Code]:
    """A row for each story."""
    for story in stories(plan.pages):
        before, sent = list(frames(story.before)), list(frames(story.records))
        total = sum(len(each.payload) for each in sent)
        runs: dict[int, list[list[Turn]]] = {MOST_TOGETHER: [], 1: []}
        for number, turns in [*runs.items()] * plan.runs:
            with tempfile.TemporaryDirectory(prefix="lb-") as directory:
                gateways = Gateways(Path(directory), 8 * PAGE * len(story.before + story.records) + FRAME, number)
                for _ in gateways.carry(before):
                    pass
                turns.append(list(gateways.carry(sent)))
                gateways.close()
        together, single = (_best(each) for each in runs.values())
        rates = [round(total / seconds / MB, 1) for seconds in (*together, *single[1:])]
        ratio, first = round(together[0] / together[1], 3), runs[MOST_TOGETHER][0]
        by_zstd, wire = (round(size / total, 4) for size in (sum(t.alone for t in first), sum(t.wire for t in first)))
        yield Code(story.name, rates[0], rates[1], ratio, rates[3], rates[2], rates[4], by_zstd, wire)


def _best(runs: list[list[Turn]]) -> list[float]:
    """Seconds for all that was sent, of zstd alone, encoding and decoding: of each turn, those of the best run."""
    return [sum(min(turn.seconds[i] for turn in turns) for turns in zip(*runs, strict=True)) for i in range(3)]


def hint(plan: Plan) -> Iterator[Hint]:
    """A row for each stream with records of its own."""
    for story in stories(plan.pages):
        if story.before:
            continue
        whole = memoryview(stream(story.records))
        best = min(_hinted(QemuStream(), whole, len(story.records)) for _ in range(plan.runs))
        yield Hint(story.name, round(len(whole) / best / MB, 1))


def _hinted(hinter: QemuStream, whole: memoryview, records: int) -> float:
    """Seconds to hint a stream, as an agent does: a piece at a time, what is incomplete at its end once more with the next."""
    at, seconds = 0, 0.0
    while at < len(whole):
        started = time.thread_time()
        _, tail = hinter.feed(whole[at : at + FRAME])
        seconds += time.thread_time() - started
        at = min(at + FRAME, len(whole)) - tail
    if hinter.pages < records:
        raise AssertionError(f"{hinter.pages} of {records} pages were found")
    return seconds


# Telling


def as_object(row: Row) -> dict[str, object]:
    """What --json prints."""
    return {"type": row.type, **asdict(row), "target": row.target, "ok": row.ok}


def as_line(row: Row) -> str:
    """A line of its section's table."""
    cells = "".join(f"{cell:>{width}}" for cell, (_, width) in zip(row.cells(), row.columns, strict=True))
    return f"{cells}    {'ok' if row.ok else 'falls short'}"


def heading(row: Row) -> str:
    """The two lines above a section."""
    return f"{row.title}; target: at least {row.target:g}\n" + "".join(f"{n:>{width}}" for n, width in row.columns)


@click.command(help=(__doc__ or "").partition("\n")[0].partition(": ")[2])
@click.option("--quick", is_flag=True, help="Shorter streams, and fewer runs.")
@click.option("--only", multiple=True, type=click.Choice(["hint", "code"]), help="Sections; the default is all.")
@click.option("--json", "as_json", is_flag=True, help="One object per line and row.")
@click.option("--check", is_flag=True, help="Exit with 1 where a row falls short of its target.")
def main(quick: bool, only: tuple[str, ...], *, as_json: bool, check: bool) -> None:
    """Measure and tell."""
    # As the programs do that this is a part of.
    memory.keep_heap()
    measures: dict[str, Callable[[Plan], Iterator[Row]]] = {"hint": hint, "code": code}
    shown, short = "", 0
    for section in only or tuple(measures):
        for row in measures[section](QUICK if quick else FULL):
            short += not row.ok
            if as_json:
                click.echo(json.dumps(as_object(row)))
                continue
            if row.type != shown:
                click.echo(("\n" if shown else "") + heading(row))
                shown = row.type
            click.echo(as_line(row))
    if check and short:
        sys.stderr.write(f"bench: {short} row{'s fall' if short > 1 else ' falls'} short of the target\n")
        sys.exit(1)


if __name__ == "__main__":
    main()

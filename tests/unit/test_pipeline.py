"""What becomes of pages on their way through the encoder, and that the same bytes come out."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gateway.stream.blob import HEAD, MOST_BLOB, MOST_PAGES, MOST_TOGETHER, Column
from gateway.stream.classify import keys_of
from gateway.stream.compress import LEVELS
from gateway.stream.delta import SLIGHTLY_CHANGED
from gateway.stream.page_log import Pages
from gateway.stream.pipeline import Coded, Decoder, Encoder, Uncoded
from gateway.stream.ring import MARGIN_SHARE, Numbers
from gateway.stream.tally import Counts, Tally
from landbridge import hints
from landbridge.errors import OutOfStep, ProtocolError
from landbridge.frame import MAX_PAYLOAD
from landbridge.hints import PAGE, Kind, Run
from tests.unit.histories import FIRST, MemoryHistory
from tests.unit.page_logs import Pair

SPACE = hints.space(b"pc.ram")
CONTINUED_PAGE, CONTINUED_ZERO = 0x28, 0x22
VM, DOMAIN = 7, 11
chance = random.Random(4)


class Ends:
    """Two gateways, and the encoder and decoder at each."""

    def __init__(self) -> None:
        self.here, self.there = MemoryHistory(), MemoryHistory()
        self.encoder, self.decoder = Encoder(self.here), Decoder(self.there)
        self.encoder_back, self.decoder_back = Encoder(self.there), Decoder(self.here)

    def coded(self, payload: bytes, runs: list[Run], *, vm: int = VM, domain: int = DOMAIN, level: int = 2) -> Coded:
        coded = self.encoder.encode(memoryview(payload), hints.encode(runs), vm=vm, domain=domain, level=level)
        assert coded is not None, "not worth it"
        assert coded.tally.stream.total == len(payload)
        assert coded.tally.wire.total == len(coded.blob)
        return coded

    def sent(self, payload: bytes, runs: list[Run], *, vm: int = VM, domain: int = DOMAIN) -> Coded:
        """A frame that arrives and is acknowledged."""
        coded = self.coded(payload, runs, vm=vm, domain=domain)
        assert self.decoder.decode(memoryview(coded.blob)).payload == payload
        self.here.acknowledged(self.there)
        return coded


def page(address: int, contents: bytes) -> bytes:
    return (address | CONTINUED_PAGE).to_bytes(8) + contents


def zero(address: int) -> bytes:
    return (address | CONTINUED_ZERO).to_bytes(8) + b"\0"


def pages(numbers: list[int], contents: list[bytes]) -> tuple[bytes, list[Run]]:
    """Records of pages with these numbers, each with a run of its own."""
    payload = b"".join(page(number * PAGE, each) for number, each in zip(numbers, contents, strict=True))
    return payload, [Run(i * (8 + PAGE), 1, Kind.PAGE, SPACE | number) for i, number in enumerate(numbers)]


def text(seed: int) -> bytes:
    """A page that compresses."""
    return b" ".join(b"%d" % random.Random(seed * 1000 + i).randrange(5000) for i in range(1000)).ljust(PAGE)[:PAGE]


def noise() -> bytes:
    """A page that does not compress, and looks like that wherever one looks."""
    found = bytearray(chance.randbytes(PAGE))
    found[::16] = bytes(chance.sample(range(256), 256))
    return bytes(found)


@pytest.mark.parametrize("level", LEVELS)
def test_a_frame_of_everything_comes_out_as_it_went_in(level: int) -> None:
    ends = Ends()
    payload = b"head" + page(0, text(1)) + page(PAGE, noise()) + page(2 * PAGE, bytes(PAGE)) + b"between"
    runs = [Run(4, 3, Kind.PAGE, SPACE), Run(len(payload), 2, Kind.ZERO, SPACE | 9)]
    payload += zero(9 * PAGE) + zero(10 * PAGE)
    runs.append(Run(len(payload), 2, Kind.PLAIN, SPACE | 3))
    payload += text(1) + text(2) + b"tail"
    coded = ends.coded(payload, runs, level=level)
    assert ends.decoder.decode(memoryview(coded.blob)).payload == payload
    assert coded.tally.stream == Counts(
        zero=PAGE + 18, duplicate=PAGE, compressed=2 * PAGE, incompressible=PAGE, rest=4 + 24 + 7 + 4
    )
    assert coded.tally.wire.incompressible == PAGE
    assert 0 < coded.tally.wire.compressed < 2 * PAGE


def together(encoder: Encoder, *frames: tuple[bytes, list[Run]]) -> list[Coded]:
    given = [Uncoded(memoryview(payload), hints.encode(runs)) for payload, runs in frames]
    coded = [each for each in encoder.encode_many(given, vm=VM, domain=DOMAIN, level=2) if each is not None]
    assert len(coded) == len(frames), "not worth it"
    return coded


def some_frames() -> list[tuple[bytes, list[Run]]]:
    """A frame of each sort: of text, of noise, of zeros and repeats, of nothing but bytes, of both, and without a byte of a page."""
    return [
        pages(list(range(20)), [text(i) for i in range(20)]),
        pages(list(range(20, 40)), [noise() for _ in range(20)]),
        pages([50, 51, 52, 53], [text(50), bytes(PAGE), text(50), bytes(PAGE)]),
        (text(60) + text(61), []),
        pages(list(range(70, 90)), [noise() if i % 3 else text(i) for i in range(70, 90)]),
        (b"".join(zero(number * PAGE) for number in range(30)), [Run(0, 30, Kind.ZERO, SPACE)]),
    ]


def test_frames_that_are_encoded_together_become_what_each_becomes_alone() -> None:
    ends, others = Ends(), Ends()
    frames = some_frames()
    for _ in range(3):
        coded = together(ends.encoder, *frames)
        assert coded == [others.coded(*each) for each in frames]
        for end in (ends, others):
            for (payload, _), each in zip(frames, coded, strict=True):
                assert end.decoder.decode(memoryview(each.blob)).payload == payload
            end.here.acknowledged(end.there)
        # Next time some of the pages are known, and some have changed.
        frames = [(payload.replace(b"1", b"2", 30), runs) for payload, runs in frames]


def test_each_of_the_frames_that_are_encoded_together_is_decoded_without_the_others() -> None:
    ends = Ends()
    # The same pages in each: within a frame they would be repeats.
    frames = [pages([10 * n + 1, 10 * n + 2], [text(1), text(1)]) for n in range(4)]
    coded = together(ends.encoder, *frames)
    for (payload, _), each in reversed(list(zip(frames, coded, strict=True))):
        decoded = Decoder(MemoryHistory()).decode(memoryview(each.blob))
        assert decoded.payload == payload
        assert decoded.logged == 1
    assert [each.tally.stream.duplicate for each in coded] == [PAGE] * 4
    firsts = [ends.decoder.decode(memoryview(each.blob)).first for each in coded]
    assert firsts == list(range(FIRST, FIRST + 4))


def test_frames_that_are_decoded_together_become_what_each_becomes_alone_and_leave_the_same_log() -> None:
    ends, others = Ends(), Ends()
    frames = some_frames()
    for _ in range(3):
        coded = together(ends.encoder, *frames)
        assert coded == together(others.encoder, *frames)
        blobs = [memoryview(each.blob) for each in coded]
        # In another order than that in which they were encoded, as links bring them.
        turned = ends.decoder.decode_many(blobs[::-1])
        assert turned[::-1] == [others.decoder.decode(blob) for blob in blobs]
        assert [each.payload for each in turned[::-1]] == [payload for payload, _ in frames]
        assert ends.there.incoming == others.there.incoming
        for end in (ends, others):
            end.here.acknowledged(end.there)
        frames = [(payload.replace(b"1", b"2", 30), runs) for payload, runs in frames]


def test_what_is_decoded_together_and_follows_in_the_log_is_logged_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ends, stored = Ends(), list[tuple[int, int]]()
    store = MemoryHistory.store

    def counted(history: MemoryHistory, first: int, pages: Sequence[Pages], digests: Numbers, *rest: Any) -> None:
        stored.append((first - FIRST, len(digests)))
        store(history, first, pages, digests, *rest)

    monkeypatch.setattr(MemoryHistory, "store", counted)
    coded = together(ends.encoder, *(pages([n], [text(n)]) for n in range(5)))
    one, two, _, four, five = (memoryview(each.blob) for each in coded)
    ends.decoder.decode_many([five, two, four, one])
    assert stored == [(0, 2), (3, 2)]


def test_one_that_does_not_fit_among_those_that_are_decoded_together_is_an_error_of_all() -> None:
    ends = Ends()
    coded = together(ends.encoder, *some_frames())
    blobs = [bytearray(each.blob) for each in coded]
    blobs[3][12] ^= 1
    with pytest.raises(OutOfStep, match="another checksum"):
        ends.decoder.decode_many([memoryview(blob) for blob in blobs])
    assert ends.there.incoming == {}


def test_no_more_frames_are_encoded_at_once_than_the_log_has_room_for() -> None:
    ends = Ends()
    ends.here.margin = 2 * MOST_PAGES + 1
    frames = some_frames()
    coded = together(ends.encoder, *frames)
    assert ends.here.appended == [20 + 20, 1, 20]
    assert [ends.decoder.decode(memoryview(each.blob)).payload for each in coded] == [each for each, _ in frames]


def test_what_is_encoded_together_overwrites_nothing_that_it_refers_to_however_small_the_log(tmp_path: Path) -> None:
    pair = Pair(tmp_path, capacity=16 * MOST_PAGES)
    encoder, decoder = Encoder(pair.here), Decoder(pair.there)
    known = [chance.randbytes(PAGE) for _ in range(pair.capacity)]
    parts = [known[at : at + 64] for at in range(0, len(known), 64)]
    new = [[chance.randbytes(PAGE) for _ in range(64)] for _ in range(MOST_TOGETHER - 1)]
    # The oldest that can be referred to at first.
    oldest = known[pair.capacity // MARGIN_SHARE :][:64]
    for group in (*([part] for part in parts), [*new, oldest]):
        frames = [pages([1000 * n + i for i in range(len(contents))], contents) for n, contents in enumerate(group)]
        coded = together(encoder, *frames)
        assert [decoder.decode(memoryview(each.blob)).payload for each in coded] == [payload for payload, _ in frames]
        pair.here.acknowledged(pair.there.take_received())
    pair.close()


def test_a_frame_of_zero_records_becomes_a_hundred_bytes() -> None:
    payload = b"".join(zero(number * PAGE) for number in range(29_000))
    coded = Ends().sent(payload, [Run(0, 20_000, Kind.ZERO, SPACE), Run(180_000, 9_000, Kind.ZERO, SPACE | 20_000)])
    assert len(coded.blob) < 130
    assert coded.tally.stream == Counts(zero=len(payload))


def test_a_frame_of_random_pages_is_hardly_longer() -> None:
    payload, runs = pages(chance.sample(range(1 << 24), 64), [noise() for _ in range(64)])
    coded = Ends().sent(payload, runs)
    assert len(coded.blob) < 1.0025 * len(payload)
    assert coded.tally.stream.incompressible == 64 * PAGE


def test_random_pages_among_text_are_sent_as_they_are() -> None:
    contents = [text(i) if i % 3 else noise() for i in range(64)]
    coded = Ends().coded(*pages(list(range(64)), contents))
    assert coded.tally.stream.incompressible == coded.tally.wire.incompressible == 22 * PAGE


def test_pages_that_only_look_random_are_compressed_apart_from_the_others() -> None:
    ends = Ends()
    once = noise()
    contents = [once[:i] + bytes([once[i] ^ 1]) + once[i + 1 :] for i in range(40)]
    coded = ends.sent(*pages(list(range(40)), contents))
    assert coded.tally.stream.incompressible == 40 * PAGE
    assert coded.tally.wire.incompressible < 4 * PAGE


def test_random_bytes_without_hints_are_sent_as_they_are() -> None:
    assert Ends().encoder.encode(memoryview(chance.randbytes(262_144)), b"", vm=VM, domain=DOMAIN, level=4) is None
    assert Ends().encoder.encode(memoryview(b""), b"", vm=VM, domain=DOMAIN, level=2) is None


def test_bytes_without_hints_are_compressed() -> None:
    payload = b"".join(text(i) for i in range(20))
    coded = Ends().sent(payload, [])
    assert coded.tally.stream == Counts(rest=len(payload))
    assert len(coded.blob) < len(payload) / 2


def test_a_page_that_the_other_gateway_has_is_a_reference_whatever_its_key() -> None:
    ends = Ends()
    contents = [noise() for _ in range(64)]
    ends.sent(*pages(list(range(64)), contents))
    coded = ends.sent(*pages(chance.sample(range(1 << 24), 64), contents))
    assert coded.tally.stream.duplicate == 64 * PAGE
    assert len(coded.blob) < 64 * 8


def test_a_page_is_not_looked_for_in_another_domain() -> None:
    ends = Ends()
    contents = [noise()]
    ends.sent(*pages([1], contents))
    assert ends.coded(*pages([2], contents), domain=DOMAIN + 1).tally.stream.duplicate == 0


def one_word_changed(page: bytes) -> bytes:
    """One in which nothing was changed before, unless by chance."""
    at = chance.randrange(512) * 8
    return page[:at] + chance.randbytes(8) + page[at + 8 :]


def test_pages_with_one_more_changed_word_take_ten_bytes_more_until_they_are_logged_anew() -> None:
    ends = Ends()
    numbers, contents = chance.sample(range(1 << 24), 64), [noise() if i % 2 else text(i) for i in range(64)]
    ends.sent(*pages(numbers, contents))
    ends.here.appended.clear()
    # A word may be changed twice by chance: what is about to be logged is not looked at.
    for changed in (1, 2, 3, 4, 5, 6):
        contents = [one_word_changed(page) for page in contents]
        coded = ends.sent(*pages(numbers, contents))
        assert coded.tally.stream.delta == 64 * PAGE
        assert len(coded.blob) < 64 * (14 + 10 * changed)
        assert coded.tally.wire.delta < 64 * (10 + 10 * changed)
        assert ends.here.appended == []
    for _ in range(SLIGHTLY_CHANGED):
        contents = [one_word_changed(page) for page in contents]
        ends.sent(*pages(numbers, contents))
    assert sum(ends.here.appended) >= 64


def test_of_a_frame_pages_that_are_hardly_changed_are_logged_only_before_one_that_is_worth_it() -> None:
    ends = Ends()
    numbers, contents = list(range(12)), [text(number) for number in range(12)]
    ends.sent(*pages(numbers, contents))
    ends.here.appended.clear()
    changed = [one_word_changed(page) for page in contents]
    changed[4] = bytes(reversed(changed[4]))
    ends.sent(*pages(numbers, changed))
    assert ends.here.appended == [5]
    coded = together(
        ends.encoder,
        pages(numbers[:3], [one_word_changed(page) for page in changed[:3]]),
        pages([20, *numbers[5:8]], [noise(), *(one_word_changed(page) for page in changed[5:8])]),
        pages(numbers[8:10], [one_word_changed(page) for page in changed[8:10]]),
        pages([21], [noise()]),
    )
    assert ends.here.appended == [5, 2]
    decoded = ends.decoder.decode_many([memoryview(each.blob) for each in coded])
    assert [each.logged for each in decoded] == [0, 1, 0, 1]
    assert decoded[3].first == decoded[1].first + 1


def test_scattered_pages_do_not_send_their_addresses_twice() -> None:
    numbers = chance.sample(range(1 << 24), 64)
    ends = Ends()
    contents = [noise() for _ in numbers]
    ends.sent(*pages(numbers, contents))
    coded = ends.coded(*pages(numbers, contents))
    # 24 bits of each number, and nothing like the 8 bytes of its header.
    assert coded.tally.wire.rest < HEAD.size + 64 * 5


def test_the_same_vm_finds_its_pages_on_the_way_back_and_another_vm_does_not() -> None:
    ends = Ends()
    contents = text(1)
    ends.sent(*pages([5], [contents]))
    payload, runs = pages([5], [contents[:100] + b"!" + contents[101:]])
    for vm, deltas in ((VM + 1, 0), (VM, PAGE)):
        coded = ends.encoder_back.encode(memoryview(payload), hints.encode(runs), vm=vm, domain=DOMAIN, level=2)
        assert coded is not None
        assert coded.tally.stream.delta == deltas
        assert ends.decoder_back.decode(memoryview(coded.blob)).payload == payload


def test_what_was_not_acknowledged_is_not_referred_to() -> None:
    ends = Ends()
    payload, runs = pages([1, 2], [noise(), text(1)])
    ends.coded(payload, runs)
    coded = ends.coded(payload, runs)
    assert coded.tally.stream.duplicate == coded.tally.stream.delta == 0
    assert ends.decoder.decode(memoryview(coded.blob)).payload == payload


def test_a_page_that_became_the_same_as_another_is_the_base_of_its_next_change() -> None:
    ends = Ends()
    one, other = noise(), noise()
    ends.sent(*pages([1, 2], [one, other]))
    ends.sent(*pages([1], [other]))
    assert ends.sent(*pages([1], [b"?" + other[1:]])).tally.stream.delta == PAGE


def test_a_page_that_changed_a_lot_is_sent_whole() -> None:
    ends = Ends()
    ends.sent(*pages([1], [noise()]))
    assert ends.sent(*pages([1], [noise()])).tally.stream.incompressible == PAGE


def test_when_no_page_can_be_logged_frames_are_coded_all_the_same() -> None:
    ends = Ends()
    ends.here.is_full = True
    payload, runs = pages([1, 2, 3], [text(1), text(2), text(1)])
    coded = ends.sent(payload, runs)
    assert ends.decoder.decode(memoryview(coded.blob)).logged == 0
    assert not ends.there.incoming
    assert (
        ends.encoder.encode(memoryview(noise()), hints.encode([Run(0, 1, Kind.PLAIN, 0)]), vm=1, domain=1, level=1)
        is None
    )


def test_the_decoder_says_which_serials_came_and_logs_them() -> None:
    ends = Ends()
    payload, runs = pages([1, 2, 3], [text(1), bytes(PAGE), noise()])
    decoded = ends.decoder.decode(memoryview(ends.coded(payload, runs).blob))
    assert (decoded.first, decoded.logged) == (FIRST, 2)
    assert ends.there.incoming == ends.here.out


@pytest.mark.parametrize(
    "wrong",
    [
        [Run(1, 1, Kind.PAGE, SPACE)],
        [Run(0, 2, Kind.ZERO, SPACE)],
        [Run(0, 1, Kind.PAGE, SPACE | 77)],
        [Run(17, 2, Kind.PLAIN, SPACE)],
        [Run(0, 1, Kind.PAGE, SPACE), Run(8, 1, Kind.PLAIN, SPACE)],
        [Run(0, 1000, Kind.PLAIN, SPACE)],
    ],
)
def test_a_wrong_hint_costs_compression_only(wrong: list[Run]) -> None:
    payload, _ = pages([1, 2, 9], [text(1), text(1), text(2)])
    Ends().sent(payload, wrong)


def test_a_section_that_is_none_is_as_no_hints() -> None:
    ends = Ends()
    payload = text(1) + text(2)
    coded = ends.encoder.encode(memoryview(payload), b"seventeen bytes!!", vm=VM, domain=DOMAIN, level=2)
    assert coded is not None
    assert coded.tally.stream == Counts(rest=len(payload))


def test_a_zero_record_with_another_filling_is_not_taken_for_one() -> None:
    payload = zero(0) + zero(PAGE)[:8] + b"\1" + bytes(4000)
    assert Ends().sent(payload, [Run(0, 2, Kind.ZERO, SPACE)]).tally.stream.zero == 0


def test_a_lost_log_is_out_of_step_and_leaves_no_trace() -> None:
    ends = Ends()
    contents = [noise(), text(1)]
    ends.sent(*pages([1, 2], contents))
    changed = contents[1][:50] + b"#" + contents[1][51:]
    blobs = [ends.coded(*pages([n], [c])).blob for n, c in ((1, contents[0]), (2, changed))]
    ends.there.lose()
    for blob in blobs:
        with pytest.raises(OutOfStep, match="refers to pages that the page log does not have"):
            ends.decoder.decode(memoryview(blob))
    assert not ends.there.incoming


def test_a_log_that_has_other_pages_is_out_of_step_and_leaves_no_trace() -> None:
    ends = Ends()
    contents = noise()
    ends.sent(*pages([1], [contents]))
    coded = ends.coded(*pages([1, 2], [contents, noise()]))
    ends.there.incoming[FIRST] = noise()
    with pytest.raises(OutOfStep, match="another checksum"):
        ends.decoder.decode(memoryview(coded.blob))
    assert set(ends.there.incoming) == {FIRST}


def test_a_page_may_not_repeat_one_that_is_not_before_it() -> None:
    ends = Ends()
    payload, runs = pages([1, 2], [noise()] * 2)
    blob = bytearray(ends.coded(payload, runs).blob)
    head = HEAD.unpack_from(blob)
    at = HEAD.size + sum(head[-6:][: Column.DUPLICATES])
    assert blob[at] == 0
    for hostile in (1, 2, 255):
        blob[at] = hostile
        with pytest.raises(ProtocolError, match="repeat what is not before them"):
            ends.decoder.decode(memoryview(blob))


def test_a_bomb_is_refused_before_it_is_expanded() -> None:
    ends = Ends()
    blob = ends.coded(text(1) * 20, []).blob
    head = list(HEAD.unpack_from(blob))
    # The payload is said to be shorter than what the column becomes.
    head[5] -= 1
    with pytest.raises(ProtocolError, match="another size than 81919 bytes"):
        ends.decoder.decode(memoryview(HEAD.pack(*head) + blob[HEAD.size :]))


def test_a_frame_with_one_page_and_many_useless_hints_is_not_longer_than_the_most() -> None:
    payload, runs = pages([1], [noise()])
    for number in chance.sample(range(1 << 40), 1000):
        runs.append(Run(len(payload), 1, Kind.ZERO, chance.randrange(1 << 64)))
        payload += (number << 24 | CONTINUED_ZERO).to_bytes(8) + b"\0"
    filling = chance.randbytes(MAX_PAYLOAD - len(payload))
    coded = Ends().sent(payload + filling, runs)
    assert MAX_PAYLOAD < len(coded.blob) < MOST_BLOB


def test_a_blob_that_is_too_short_or_too_long_is_refused() -> None:
    for length in (0, HEAD.size - 1, MOST_BLOB + 1):
        with pytest.raises(ProtocolError, match=f"a coded frame of {length} bytes arrived, which cannot be"):
            Ends().decoder.decode(memoryview(bytes(length)))


def test_keys_of_vms_do_not_meet() -> None:
    keys = np.arange(1000, dtype=np.uint64)
    found = np.concatenate([keys_of(vm, keys) for vm in (0, 1, 2**64 - 1)])
    assert len(np.unique(found)) == 3000


def test_tallies_add_up() -> None:
    total = Tally(Counts(rest=5), Counts(rest=5)) + Tally(Counts(zero=1, delta=2), Counts(rest=3)).framed(7)
    assert total == Tally(Counts(zero=1, delta=2, rest=5), Counts(rest=12))
    assert (total.stream.total, total.wire.total) == (8, 12)

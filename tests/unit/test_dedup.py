"""The history of two gateways: what is found, what may be referred to, and how both come into step."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gateway.stream.dedup import MOST_RECEIVED, NONE, History
from gateway.stream.index import _MIX, _MOST_WAITING
from gateway.stream.log_state import MOST_BYTES, MOST_RANGES, RingState, State
from gateway.stream.ring import MARGIN_SHARE, SPAN, first_of
from landbridge.errors import ProtocolError
from tests.unit.page_logs import (
    ANOTHER_BOOT,
    DOMAIN,
    Pair,
    append,
    digests_of,
    find,
    generation,
    numbers,
    open_log,
    some_pages,
    store,
)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    found = Pair(tmp_path)
    yield found
    found.close()


def test_a_page_is_found_once_the_other_gateway_has_acknowledged_it(pair: Pair) -> None:
    first = append(pair.here, 5)
    assert first is not None
    assert find(pair.here, 5) is None
    store(pair.there, first, 5)
    assert find(pair.here, 5) is None
    pair.here.acknowledged(pair.there.take_received())
    reference = find(pair.here, 5)
    assert reference == first * 2
    assert pair.here.read(reference) == pair.there.read_from_peer(reference) == some_pages(5)[0].data


def test_what_was_received_may_be_referred_to_on_the_way_back(pair: Pair) -> None:
    first = pair.send(5, keys=(9,))
    reference = find(pair.there, 5)
    assert reference == first * 2 + 1 == pair.there.last(DOMAIN, 9)
    assert pair.here.read_from_peer(reference) == some_pages(5)[0].data


def test_many_are_found_at_once_and_only_those_that_are_there(pair: Pair) -> None:
    first = pair.send(1, 2, 3)
    pages = some_pages(3, 4, 1)
    references, last = pair.here.known_many(DOMAIN, digests_of(pages), numbers(2, 3, 9), pages)
    assert references.tolist() == [first * 2 + 4, NONE, first * 2]
    assert last.tolist() == [first * 2 + 2, first * 2 + 4, NONE]
    found = pair.here.read_many(references[[0, 2]])
    assert found is not None
    assert (found == pages[[0, 2]]).all()
    assert pair.here.read_many(references) is None


def test_a_page_with_the_digest_of_another_is_not_that_page(pair: Pair) -> None:
    pair.send(1)
    equal, _ = pair.here.known_many(DOMAIN, digests_of(some_pages(1)), numbers(9), some_pages(2))
    assert equal.tolist() == [NONE]


def test_a_page_of_another_domain_is_not_found(pair: Pair) -> None:
    pair.send(1, domain=1)
    assert find(pair.here, 1, domain=2) is None
    assert find(pair.there, 1, domain=2) is None
    assert find(pair.here, 1, domain=1) is not None
    assert pair.here.last(2, 1) is None
    assert pair.here.last(1, 1) is not None


def test_a_domain_that_the_index_cannot_tell_from_another_does_not_find_its_pages(pair: Pair) -> None:
    pair.send(1, domain=1)
    digest = int(digests_of(some_pages(1))[0])
    # A hash with the same set and tag: the next one of this set, as the index mixes and divides them.
    mixed = int(_MIX) * (digest ^ 1) + len(pair.here._index._entries)
    twin = mixed * pow(int(_MIX), -1, 1 << 64) % (1 << 64) ^ digest
    [rows, _] = pair.here._index.look(numbers(digest ^ twin))
    assert rows.tolist() == [0]
    assert find(pair.here, 1, domain=twin) is None


def test_the_last_acknowledged_version_stays_until_the_next_is_acknowledged(pair: Pair) -> None:
    old = pair.send(1, keys=(9,))
    new = append(pair.here, 2, keys=(9,))
    assert new is not None
    assert pair.here.last(DOMAIN, 9) == old * 2
    store(pair.there, new, 2, keys=(9,))
    pair.here.acknowledged(pair.there.take_received())
    assert pair.here.last(DOMAIN, 9) == new * 2


def test_a_version_that_was_sent_as_a_reference_is_remembered_by_both(pair: Pair) -> None:
    first = pair.send(1, 2, keys=(8, 9))
    pair.here.remember(9, first * 2)
    pair.there.remember_from_peer(9, first * 2)
    assert pair.here.last(DOMAIN, 9) == first * 2
    assert pair.there.last(DOMAIN, 9) == first * 2 + 1


def test_nothing_is_remembered_of_what_may_not_be_referred_to(pair: Pair) -> None:
    first = append(pair.here, 1)
    assert first is not None
    pair.here.remember(9, first * 2)
    assert pair.here.last(DOMAIN, 9) is None
    assert pair.here.read(first * 2) is None


def test_the_oldest_of_a_full_ring_are_not_referred_to_but_can_be_read(pair: Pair) -> None:
    references = [pair.send(page) * 2 for page in range(pair.capacity)]
    margin = pair.capacity // MARGIN_SHARE
    assert [find(pair.here, page) for page in range(pair.capacity)] == [None] * margin + references[margin:]
    assert all(pair.there.read_from_peer(reference) is not None for reference in references)


def test_a_page_that_was_overwritten_is_gone_at_both_ends(pair: Pair) -> None:
    first = pair.send(0)
    for page in range(1, 3 * pair.capacity):
        pair.send(page)
    assert find(pair.here, 0) is None
    assert pair.there.read_from_peer(first * 2) is None
    assert pair.here.last(DOMAIN, 0) is None


def test_a_frame_that_comes_again_is_acknowledged_again(pair: Pair) -> None:
    first = pair.send(1, 2)
    store(pair.there, first, 1, 2)
    assert pair.there.take_received() == [(first, first + 2)]
    assert pair.there.take_received() == []


def test_a_serial_that_comes_again_with_other_contents_is_trusted_no_more(pair: Pair) -> None:
    first = pair.send(1, 2)
    store(pair.there, first, 1, 3)
    assert pair.there.take_received() == [(first, first + 1)]
    assert pair.there.read_from_peer(first * 2) is not None
    assert pair.there.read_from_peer(first * 2 + 2) is None
    assert find(pair.there, 2) is None


def test_a_late_frame_does_not_overwrite_newer_pages(pair: Pair) -> None:
    late = append(pair.here, 99)
    assert late is not None
    newer = [pair.send(page) for page in range(pair.capacity)]
    store(pair.there, late, 99)
    assert pair.there.take_received() == []
    assert pair.there.read_from_peer(newer[-1] * 2) is not None
    assert pair.there.read_from_peer(late * 2) is None


def test_frames_of_another_generation_are_left_alone(pair: Pair) -> None:
    first = append(pair.here, 1)
    assert first is not None
    pair.here.forget(generation(3))
    pair.there.forget_from_peer(generation(3))
    store(pair.there, first, 1)
    assert pair.there.take_received() == []
    assert pair.there.read_from_peer(first * 2) is None


@pytest.mark.parametrize("first", [-1, 0, 1 << 62, 1 << 70])
def test_a_frame_with_serials_that_cannot_be_is_refused(pair: Pair, first: int) -> None:
    with pytest.raises(ProtocolError, match="which cannot be"):
        store(pair.there, first, 1)


def test_after_both_have_forgotten_they_go_on(pair: Pair) -> None:
    old = pair.send(1)
    pair.here.forget(generation(3))
    pair.there.forget_from_peer(generation(3))
    assert find(pair.here, 1) is None
    assert pair.here.read(old * 2) is pair.there.read_from_peer(old * 2) is None
    new = pair.send(1)
    assert new == first_of(generation(3))
    assert find(pair.here, 1) == new * 2
    pair.here.acknowledged([(old, old + 1)])
    assert pair.here.read(old * 2) is None


def test_acknowledgements_of_what_was_never_sent_change_nothing(pair: Pair) -> None:
    first = append(pair.here, 1)
    assert first is not None
    pair.here.acknowledged([(0, 0), (5, 3), (0, 1 << 30), (first + 1, 1 << 63)])
    assert find(pair.here, 1) is None
    pair.here.acknowledged([(0, 1 << 64)])
    assert find(pair.here, 1) == first * 2


def test_gateways_that_meet_again_know_what_was_lost_on_the_way(pair: Pair) -> None:
    kept = pair.send(1)
    lost = append(pair.here, 2)
    arrived = append(pair.here, 3)
    assert lost is not None
    assert arrived is not None
    store(pair.there, arrived, 3)
    pair.there.take_received()  # and the acknowledgement is lost
    pair.meet()
    assert find(pair.here, 1) == kept * 2
    assert find(pair.here, 2) is None
    assert find(pair.here, 3) == arrived * 2


def test_a_gateway_that_was_started_again_goes_on_after_the_meeting(pair: Pair) -> None:
    pair.send(1, keys=(9,))
    newest = pair.send(2, keys=(9,))
    pair.here.close()
    pair.here = History(open_log(pair.paths[0], pair.capacity, 5))
    assert find(pair.here, 2) is None
    assert append(pair.here, 7) is None
    pair.meet()
    assert find(pair.here, 2) == pair.here.last(DOMAIN, 9) == newest * 2
    assert pair.send(3) == newest + 1


def test_a_gateway_that_has_lost_its_file_starts_anew(pair: Pair) -> None:
    pair.send(1)
    pair.here.close()
    pair.paths[0].unlink()
    pair.here = History(open_log(pair.paths[0], pair.capacity, 5))
    pair.meet()
    assert find(pair.here, 1) is None
    assert find(pair.there, 1) is None
    assert pair.send(2) == first_of(generation(5))
    assert find(pair.here, 2) is not None


def test_a_gateway_whose_file_was_set_back_gives_out_no_serial_twice(pair: Pair) -> None:
    pair.send(1)
    pair.here.close()
    before = pair.paths[0].read_bytes()
    pair.here = History(open_log(pair.paths[0], pair.capacity))
    pair.meet()
    newest = pair.send(2, 3, 4)
    pair.here.close()
    pair.paths[0].write_bytes(before)
    pair.here = History(open_log(pair.paths[0], pair.capacity))
    pair.meet()
    assert pair.send(5) > newest + 2
    assert find(pair.here, 1) is not None
    assert find(pair.here, 2) is None


def test_gateways_with_logs_of_different_sizes_use_what_both_have_room_for(tmp_path: Path) -> None:
    pair = Pair(tmp_path, 16)
    pair.there.close()
    pair.paths[1].unlink()
    pair.there = History(open_log(pair.paths[1], 8, 7))
    pair.meet()
    references = [pair.send(page) * 2 for page in range(16)]
    found = [find(pair.here, page) for page in range(16)]
    assert found == [None] * 9 + references[9:]
    assert all(pair.there.read_from_peer(reference) is not None for reference in references[9:])
    pair.close()


def test_the_ranges_that_wait_to_be_acknowledged_are_bounded(tmp_path: Path) -> None:
    pair = Pair(tmp_path, 4 * MOST_RECEIVED)
    first = append(pair.here, 1)
    assert first is not None
    for number in range(MOST_RECEIVED + 10):
        store(pair.there, first + 2 * number, 1)
    received = pair.there.take_received()
    assert len(received) == MOST_RECEIVED
    assert received[-1][0] == first + 2 * (MOST_RECEIVED + 9)
    state = pair.there.state().encode()
    assert len(state) <= MOST_BYTES
    assert len(State.decode(state).incoming.ranges) == MOST_RANGES
    pair.close()


def test_a_state_comes_back_as_it_was(pair: Pair) -> None:
    pair.send(1, 2, 3)
    state = pair.there.state()
    assert state.incoming.ranges == ((first_of(generation(1)), first_of(generation(1)) + 3),)
    assert State.decode(state.encode()) == state


def test_half_a_state_and_one_with_more_behind_it_are_refused(pair: Pair) -> None:
    pair.send(1, 2, 3)
    raw = pair.there.state().encode()
    for length in range(len(raw)):
        with pytest.raises(ProtocolError):
            State.decode(raw[:length])
    with pytest.raises(ProtocolError, match="contradicts itself"):
        State.decode(raw + b"\0")
    with pytest.raises(ProtocolError, match="in version 2"):
        State.decode(b"\2" + raw[1:])


@pytest.mark.parametrize(
    ("following", "ranges"),
    [
        pytest.param(SPAN - 1, (), id="before the generation"),
        pytest.param(2 * SPAN + 1, (), id="behind the generation"),
        pytest.param(SPAN + 9, ((SPAN - 2, SPAN + 1),), id="a range that begins before the generation"),
        pytest.param(SPAN + 99, ((SPAN + 80, SPAN + 85),), id="a range that the ring cannot hold any more"),
        pytest.param(SPAN + 9, ((SPAN + 5, SPAN + 5),), id="an empty range"),
    ],
)
def test_a_state_that_names_serials_that_cannot_be_is_refused(
    following: int, ranges: tuple[tuple[int, int], ...]
) -> None:
    state = State(
        is_torn=False,
        capacity=16,
        out=RingState(generation(1), following, ranges),
        incoming=RingState(bytes(16), 0, ()),
    )
    with pytest.raises(ProtocolError, match="names serials that cannot be"):
        State.decode(state.encode())


def test_the_index_finds_nearly_all_of_a_full_log(tmp_path: Path) -> None:
    pair = Pair(tmp_path, 2048)
    pages = np.zeros((2048, 4096), np.uint8)
    pages.view(np.uint64)[:, 0] = np.arange(2048)
    digests, keys = digests_of(pages), np.arange(5000, 7048, dtype=np.uint64)
    first = pair.here.append(pages, np.arange(len(pages)), digests, keys, DOMAIN)
    assert first is not None
    pair.here.acknowledged([(first, first + 2048)])
    young = slice(2048 // MARGIN_SHARE, 2048)
    references = (np.arange(first, first + 2048, dtype=np.uint64) * np.uint64(2))[young]
    for _ in ("as they were acknowledged", "as the index was made anew"):
        for all_found in pair.here.known_many(DOMAIN, digests, keys, pages):
            found = all_found[young]
            assert np.isin(found, [NONE, *references]).all()
            assert np.count_nonzero(found == references) > 0.95 * len(found)
        pair.there.store(first, [pages], digests, keys, DOMAIN)
        pair.meet()
    assert pair.here.last(DOMAIN, 1) is None
    pair.close()


def test_what_came_is_found_whether_it_waits_to_be_entered_or_not_and_little_waits(tmp_path: Path) -> None:
    pair = Pair(tmp_path, 4096)
    waits = []
    for page in range(0, 1200, 40):
        pair.send(*range(page, page + 40))
        waits.append(sum(len(hashes) for hashes, _ in pair.there._index._waiting))
    assert max(waits) < _MOST_WAITING
    assert waits[-1] > 0
    assert all(find(pair.there, page) == pair.there.last(DOMAIN, page) is not None for page in range(0, 1200, 7))
    assert pair.there._index._waiting == []
    pair.close()


def test_a_log_that_was_begun_anew_is_not_found_in_what_waited(pair: Pair) -> None:
    pair.send(1)
    pair.there.forget_from_peer(generation(8))
    pair.here.forget(generation(8))
    pair.meet()
    assert find(pair.there, 1) is None
    assert pair.there.last(DOMAIN, 1) is None


def test_a_gateway_tells_of_a_power_failure_however_often_it_was_started_since(pair: Pair) -> None:
    assert not pair.here.state().is_torn
    pair.here.close()
    whole = pair.paths[0].read_bytes()
    pair.here = History(open_log(pair.paths[0], pair.capacity))
    torn = pair.paths[0].read_bytes()
    pair.here.close()
    assert whole != torn
    pair.paths[0].write_bytes(torn)
    for _ in range(3):
        pair.here = History(open_log(pair.paths[0], pair.capacity, boot=ANOTHER_BOOT))
        assert pair.here.state().is_torn
        pair.here.close()
    pair.here = History(open_log(pair.paths[0], pair.capacity, boot=ANOTHER_BOOT))

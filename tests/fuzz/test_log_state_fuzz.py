"""Fuzz target of the state of a page log: the documented errors and no other; and no state that a history cannot meet."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from gateway.stream.log_state import State
from landbridge.errors import ProtocolError
from tests.fuzz.test_frame_fuzz import mutated, rounds
from tests.unit.page_logs import Pair

ERRORS = (
    r"the state of a page log came in version \d+; update the older gateway",
    r"the state of a page log ends after \d+ bytes, before it is whole",
    r"the state of a page log contradicts itself",
    r"the state of a page log names serials that cannot be",
)


def test_states_are_decoded_or_refused_and_can_be_met(tmp_path: Path) -> None:
    pair = Pair(tmp_path, 64)
    for page in range(30):
        first = pair.send(page)
        if page % 3:
            pair.there._log.drop(
                pair.there._log.incoming.slots(pair.here._log.records(pair.here._log.out, first, first + 1)[:, 0]) + 64
            )
    seen: Counter[str] = Counter()
    seeds = [pair.here.state().encode(), pair.there.state().encode()]
    for seed, chance in rounds():
        raw = mutated(chance.choice(seeds), chance)
        try:
            state = State.decode(raw)
        except ProtocolError as error:
            [rule] = [rule for rule in ERRORS if re.fullmatch(rule, error.message)]
            seen[rule] += 1
            continue
        seen["decoded"] += 1
        assert State.decode(state.encode()) == state, seed
        pair.here.meet(state)
    assert set(seen) == {*ERRORS, "decoded"}
    pair.close()

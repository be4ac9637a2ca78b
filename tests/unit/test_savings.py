"""gateway/migration/savings.py"""

from __future__ import annotations

from gateway.migration.savings import added
from landbridge.v1.types_pb2 import Fate, Saving


def saving(kind: str, fate: Fate.ValueType, stream: int, wan: int) -> Saving:
    return Saving(kind=kind, fate=fate, bytes_stream=stream, bytes_wan=wan)


def test_what_several_gateways_have_counted_is_added_up() -> None:
    before = [saving("ram", Fate.FATE_ZERO, 100, 1), saving("disk", Fate.FATE_DELTA, 10, 5)]
    since = [saving("ram", Fate.FATE_ZERO, 50, 2), saving("ram", Fate.FATE_REST, 7, 7)]

    assert added(before, since) == [
        saving("ram", Fate.FATE_ZERO, 150, 3),
        saving("ram", Fate.FATE_REST, 7, 7),
        saving("disk", Fate.FATE_DELTA, 10, 5),
    ]


def test_nothing_saved_is_nothing() -> None:
    assert added([], []) == []

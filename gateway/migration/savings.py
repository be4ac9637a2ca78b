"""What a migration's bytes have become on the tunnel: a gateway counts what it carries, and goes on where another ended. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from landbridge.v1.types_pb2 import Fate, Saving


def added(before: Iterable[Saving], since: Iterable[Saving]) -> list[Saving]:
    """Both together, one for each kind and fate, memory first."""
    total: dict[tuple[str, Fate.ValueType], tuple[int, int]] = {}
    for saving in (*before, *since):
        stream, wan = total.get((saving.kind, saving.fate), (0, 0))
        total[saving.kind, saving.fate] = (stream + saving.bytes_stream, wan + saving.bytes_wan)
    order = sorted(total, key=lambda key: (key[0] != "ram", key))
    return [
        Saving(kind=kind, fate=fate, bytes_stream=total[kind, fate][0], bytes_wan=total[kind, fate][1])
        for kind, fate in order
    ]

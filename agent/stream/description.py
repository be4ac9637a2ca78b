"""Whether QEMU's migration stream is over: behind the states of devices, of which only they know the lengths, stands a description of them.

    end   a byte 0 (EOF), a byte 6 (VMDESCRIPTION), be32 length, and so many bytes of JSON, which nothing follows

A device's state could look like that, too, if what the guest has put there does, and if QEMU pauses exactly behind it; then the end is
seen too early. (QEMU: migration/savevm.c)
"""

from __future__ import annotations

import json

BEGINS = b"\0\6"
SIZE = 4
# Bytes at the end of a stream that are looked at: a small VM's description has 100,000.
MOST = 4 << 20


class Description:
    """Looks for it in what follows the end of memory. Never raises, whatever the bytes are."""

    def __init__(self) -> None:
        self._kept = bytearray()

    def is_whole(self, data: bytes | memoryview) -> bool:
        """Take what came next; returns whether a description ends with it."""
        self._kept += data
        if len(self._kept) > 2 * MOST:
            del self._kept[:-MOST]
        if not self._kept.endswith(b"}"):
            return False
        at = self._kept.find(BEGINS)
        while at >= 0:
            begin = at + len(BEGINS) + SIZE
            length = int.from_bytes(self._kept[at + len(BEGINS) : begin], "big")
            if begin + length == len(self._kept) and _is_object(self._kept[begin:]):
                return True
            at = self._kept.find(BEGINS, at + 1)
        return False


def _is_object(text: bytearray) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False

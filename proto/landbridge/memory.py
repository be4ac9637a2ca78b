"""What glibc's allocator is told by programs that move bytes."""

from __future__ import annotations

import contextlib
import ctypes

# malloc.h: how much free memory at the heap's end is given back to the kernel, by how much the heap grows at once, and from which
# size on a block is a mapping of its own.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
KEPT, STEP = 32 << 20, 8 << 20


def keep_heap() -> None:
    """Keep up to 32 MiB that were freed, instead of having the kernel clear them anew for each frame.

    With and without, `python -m tests.bench.tunnel` showed 5.0 and 5.4 s of CPU time per GB. Nothing happens without glibc.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, KEPT)
        mallopt(_M_TRIM_THRESHOLD, KEPT)
        mallopt(_M_TOP_PAD, STEP)

"""How hard a tunnel's frames are compressed: as hard as leaves the link the bottleneck. Sans-I/O, the clock is an argument.

Of each level it is known how quick it is (bytes of streams per second of the codec's thread) and what it makes of memory as it
usually is (bytes of streams by bytes on the wire). How much the present contents, and the present machine, differ from that is
measured on the level in use, and taken to be alike for all. What a level gets across in a second is min(speed, link rate * ratio):
below the crossing the thread is the bottleneck, above it the link. Every INTERVAL, that level is taken which gets most across, and
of those that hardly differ the cheapest.

Level 0 passes frames through, as quickly as the link takes them. It is taken where coding gets less across by far (WORTH): bytes
have their price, too. And where coding saves next to nothing, unless all waits for the links and the thread is idle anyway (IDLE):
what is coded is in the page log afterwards, and then changes to it are small.

What is not measured on level 0 is forgotten by and by, so that a level is tried again once the contents may have changed. While the
links starve and the thread does not rest, the rate of the links is not known but higher than it seems: it is taken for more and
more (DOUBT), until it is measured again.
"""

from __future__ import annotations

from math import exp

# Bytes per second, and ratio, of levels 1 to 3 before anything is known: zstd -5, 1 and 3 with all that stands around them
# (tests/bench/codec.py measures them).
FIRST = ((450e6, 2.2), (350e6, 2.6), (200e6, 2.8))
MOST = len(FIRST)
START = 2
# Of a second, how much the thread may work for one direction: it decodes as well.
SHARE = 0.8
# Of what a link takes as it is, how much coding must get across to be worth it; what counts as a saving; and how many times as much as
# the link takes the thread must be able to do to code what saves nothing.
WORTH = 0.7
SAVING = 1.1
IDLE = 2.0
# Seconds between two decisions; and time constants with which what is measured is followed, and forgotten.
INTERVAL = 0.25
FOLLOW = 0.25
FORGET = 60.0
# By how much another level must be better.
MARGIN = 1.05
# By how much the rate is taken for more with each decision, once it was measured, before that, and at most.
DOUBT = 1.05
UNKNOWN = 2.0
MOST_DOUBT = 1000.0


class Level:
    """The level of one tunnel. `now` is in seconds and never goes back."""

    def __init__(self, now: float, most: int = MOST) -> None:
        # From 0 to the most that is wished.
        self.now = min(START, most)
        self._most = most
        # By how much speeds differ from FIRST, and by how much that which is saved.
        self._speed = self._saving = 1.0
        # Bytes of streams that are coded per second, in the last INTERVAL.
        self.through = 0.0
        self._since = now
        self._stream = self._wire = 0
        self._busy = 0.0
        self._puts = self._full = 0
        self._doubt = 1.0

    def coded(self, stream: int, wire: int, busy: float) -> None:
        """A frame was coded: its bytes before and after, and the seconds that it took."""
        self._stream += stream
        self._wire += wire
        self._busy += busy

    def put(self, queued: int, limit: int) -> None:
        """A frame was put before the links, where so many bytes wait of so many that may."""
        self._puts += 1
        self._full += 2 * queued > limit

    def decide(self, now: float, rate: float, *, was_measured: bool) -> int:
        """The level from now on.

        `rate`: bytes per second that the links drain, as far as is known; `was_measured` once they have been full.
        """
        elapsed = now - self._since
        if elapsed < INTERVAL:
            return self.now
        if self.now and self._stream and self._busy > 0:
            speed, ratio = FIRST[self.now - 1]
            share = 1 - exp(-elapsed / FOLLOW)
            self._speed += (self._stream / self._busy / speed - self._speed) * share
            self._saving += ((self._stream / max(self._wire, 1) - 1) / (ratio - 1) - self._saving) * share
        elif not self.now:
            share = 1 - exp(-elapsed / FORGET)
            self._speed += (1 - self._speed) * share
            self._saving += (1 - self._saving) * share
        if self._puts:
            if 4 * self._full < self._puts and self._busy > SHARE * elapsed:
                self._doubt = min(self._doubt * (DOUBT if was_measured else UNKNOWN), MOST_DOUBT)
            elif 2 * self._full > self._puts:
                self._doubt = 1.0
            self.now = self._best(rate * self._doubt, is_full=2 * self._full > self._puts)
        self.through = self._stream / elapsed
        self._since = now
        self._stream = self._wire = self._puts = self._full = 0
        self._busy = 0.0
        return self.now

    def _best(self, rate: float, *, is_full: bool) -> int:
        if rate <= 0:
            return self.now
        best, across, ratio_then = 0, 0.0, 1.0
        for number, (speed, ratio) in enumerate(FIRST[: self._most], 1):
            would_save = 1 + (ratio - 1) * self._saving
            would = min(SHARE * speed * self._speed, rate * would_save)
            if would > across * MARGIN:
                best, across, ratio_then = number, would, would_save
        if ratio_then < SAVING:
            return 1 if is_full and self._most and SHARE * FIRST[0][0] * self._speed > IDLE * rate else 0
        return best if across > WORTH * rate else 0

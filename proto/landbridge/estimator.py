"""What a channel learns of its way from acknowledgements: how long it takes, how much it carries, and how large segments should be."""

from __future__ import annotations

from landbridge.frame import HEADER, RECORD

# Bytes of one DATA frame, chosen so that one takes SEGMENT_TIME at the present rate and a frame of another channel need not
# wait for long. With its header it fills whole records of TLS. Of these, 13 are what a UNIX socket of Linux holds (208 KiB): more
# does not come at once. At the upper end, the cost per frame in Python is a few percent of the cost of its bytes (docs/adr/0005).
SMALLEST_SEGMENT, LARGEST_SEGMENT = RECORD - HEADER.size, 13 * RECORD - HEADER.size
SEGMENT_TIME = 0.005
# Seconds: bounds of the loss delay. Much less than 0.5 s sends again what TCP is about to mend: on a line of 20 ms that loses 1 %,
# two round trips and 0.1 s took a third of the goodput. With 1 s, a move of 300 MB over 4 links sent 0 to 3 MB again instead of
# 3 to 21; but behind a link that has died, all would wait for so long.
LOSS_DELAY = (0.5, 10.0)
# Round trips that TCP may take to mend a link. Several links of BBR overfill a line together, and a frame then waits for the segments of
# frames before it, some of them lost twice. On a line of 200 Mbit/s, 100 ms and a queue of 50 ms, with four links, frames took 0.25
# to 0.53 s (smoothed), and with four deviations alone a tenth to a sixth of what the line carried had come before.
MENDING = 3.0
# Seconds over which the rate is measured that chooses the size of segments.
RATE_INTERVAL = 0.1


class Estimator:
    """Round trip and rate of a channel, from its acknowledgements."""

    def __init__(self) -> None:
        # Seconds; 0 until one was measured.
        self.round_trip = 0.0
        self._deviation = 0.0
        # Bytes per second that are delivered; 0 until known. And bytes that the next segment should have.
        self.rate = 0.0
        self.segment = SMALLEST_SEGMENT
        self._interval: tuple[float, int] | None = None

    @property
    def longest(self) -> float:
        """Seconds that hardly any round trip exceeds; 0 until one was measured."""
        return self.round_trip + 4 * self._deviation

    @property
    def loss_delay(self) -> float:
        """Seconds after which a segment that was overtaken counts as lost."""
        least, most = LOSS_DELAY
        return min(max(self.longest, MENDING * self.round_trip, least), most) if self.round_trip else 1.0

    def on_round_trip(self, sample: float) -> None:
        """Take a sample, in seconds, of a segment or a PROBE that was sent once (RFC 6298, section 2)."""
        if self.round_trip == 0.0:
            self.round_trip, self._deviation = sample, sample / 2
        else:
            self._deviation = 0.75 * self._deviation + 0.25 * abs(self.round_trip - sample)
            self.round_trip = 0.875 * self.round_trip + 0.125 * sample

    def on_delivered(self, position: int, now: float) -> None:
        """Note how many bytes of the stream were delivered by now."""
        if self._interval is None or now - self._interval[0] > 10 * RATE_INTERVAL:
            self._interval = (now, position)
        elif (elapsed := now - self._interval[0]) >= RATE_INTERVAL:
            sample = (position - self._interval[1]) / elapsed
            self.rate = sample if self.rate == 0.0 else (self.rate + sample) / 2
            self._interval = (now, position)
            size = int(self.rate * SEGMENT_TIME)
            self.segment = min(max(size - size % RECORD - HEADER.size, SMALLEST_SEGMENT), LARGEST_SEGMENT)

"""The verdict on a guest, from what the guest itself has printed. Pure: the recorder's log in, a Verdict out."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

BEAT = re.compile(r"B (\d+) m(\d+) d(\d+) w(\d+) k(\d+) e(\d+)(?: f(\d+))?$")
KERNEL_TROUBLE = re.compile(
    r"Oops|BUG:|Kernel panic|general protection|segfault|unable to handle|soft lockup|rcu_.*stall|EXT4-fs error"
)
# A pass that both began and ended after the arrival: the counter must come round twice.
PASSES = 2
# A guest that beats ten times a second and was not heard for so long (seconds) proves nothing about now.
SILENCE = 3.0


@dataclass
class Verdict:
    """What the guest's own words prove."""

    beats: int = 0
    host: str = ""
    moves: int = 0
    # Longest time between two consecutive beats by the host's clock, milliseconds, and the beat that ended it.
    longest_pause_ms: float = 0.0
    longest_pause_at: int = 0
    # The same, of the last change of host only; None if the guest never changed host.
    last_move_pause_ms: float | None = None
    # How long ago the last beat was heard, milliseconds; 0 if nobody asked.
    silent_ms: float = 0.0
    memory_verified: bool = False
    disk_verified: bool = False
    # None: the guest has no files.
    files_verified: bool | None = None
    # Everything that must not be, in sentences.
    problems: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Nothing is wrong, everything was verified since the last arrival, and the guest still beats."""
        verified = self.memory_verified and self.disk_verified and self.files_verified is not False
        return not self.problems and verified and self.beats > 0 and not self.is_silent

    @property
    def is_silent(self) -> bool:
        """It beat once and does so no more: paused, stuck or dead."""
        return self.silent_ms > SILENCE * 1000

    def sentence(self) -> str:
        """One line for people."""
        if not self.beats:
            return "no beat was heard"
        asked = (("memory", self.memory_verified), ("disk", self.disk_verified), ("files", self.files_verified))
        verified = " and ".join(
            f"{what} {'verified' if done else 'not verified yet'}" for what, done in asked if done is not None
        )
        gap = "without a gap" if not self.problems else "; ".join(self.problems[:3])
        if self.is_silent:
            gap += f", but silent for {self.silent_ms / 1000:.0f} s"
        return (
            f"{self.beats} beats {gap}; {verified} after arrival on {self.host}; "
            f"longest pause {self.longest_pause_ms:.0f} ms (before beat {self.longest_pause_at})"
        )


@dataclass
class _Beat:
    at: float
    host: str
    number: int
    memory_passes: int
    disk_passes: int
    file_passes: int | None


def judge(lines: Iterable[str], *, since: float = 0.0, now: float | None = None, has_disk: bool = True) -> Verdict:
    """Read a recorder's log; beats before `since` (monotonic seconds) count only for continuity, `now` tells silence."""
    verdict = Verdict()
    last: _Beat | None = None
    arrival: _Beat | None = None
    boots = 0
    for line in lines:
        stamp, _, host, _, text = (line.rstrip("\n").split(" ", 4) + [""] * 5)[:5]
        if match := BEAT.search(text):
            memory, disk, files = match[2], match[3], match[7]
            beat = _Beat(float(stamp), host, int(match[1]), int(memory), int(disk), int(files) if files else None)
            if int(match[6]) and not any("mismatch" in p for p in verdict.problems):
                verdict.problems.append(f"the guest counts {match[6]} mismatches at beat {beat.number}")
            if last is None:
                arrival = beat
            else:
                _continue(verdict, last, beat, since)
                if beat.host != last.host:
                    arrival = beat
                    verdict.moves += 1
                    verdict.last_move_pause_ms = (beat.at - last.at) * 1000
            last = beat
            verdict.beats += beat.at >= since
            verdict.host = beat.host
        elif text.startswith("lab: boot"):
            boots += 1
            if boots > 1:
                verdict.problems.append(f"the guest booted again on {host}")
        elif text.startswith("X "):
            verdict.problems.append(f"the guest reports on {host}: {text[2:]}")
        elif KERNEL_TROUBLE.search(text):
            verdict.problems.append(f"the guest's kernel is in trouble on {host}: {text.strip()[:120]}")
    if last is not None and arrival is not None:
        verdict.silent_ms = 0.0 if now is None else (now - last.at) * 1000
        verdict.memory_verified = last.memory_passes >= arrival.memory_passes + PASSES
        verdict.disk_verified = not has_disk or last.disk_passes >= arrival.disk_passes + PASSES
        if last.file_passes is not None:
            verdict.files_verified = last.file_passes >= (arrival.file_passes or 0) + PASSES
    return verdict


def _continue(verdict: Verdict, last: _Beat, beat: _Beat, since: float) -> None:
    if beat.number != last.number + 1:
        where = f"on {beat.host} after {last.number} on {last.host}"
        kind = "ran twice, or went back" if beat.number <= last.number else "lost beats"
        verdict.problems.append(f"the guest {kind}: beat {beat.number} {where}")
    pause = (beat.at - last.at) * 1000
    if beat.at >= since and pause > verdict.longest_pause_ms:
        verdict.longest_pause_ms = pause
        verdict.longest_pause_at = beat.number

"""What a migration was said to take, for people; and, when it has ended, how far off that was."""

from collections.abc import Callable, Iterator

from gateway.cli import words
from landbridge.v1.types_pb2 import RATE_SOURCE_LIMIT, RATE_SOURCE_MEASURED, Estimate, Range, Summary


def sentence(estimate: Estimate) -> str:
    """ "9.0 s to 14.1 s, 180 MiB to 220 MiB on the WAN, downtime 130 ms to 1.3 s; memory converges"."""
    parts = [
        _range(estimate, "total_ms", words.duration) or "time unknown",
        f"{_range(estimate, 'bytes_wan', words.size) or 'unknown bytes'} on the WAN",
    ]
    if estimate.cold:
        return ", ".join(parts)
    parts.append(f"downtime {_range(estimate, 'downtime_ms', words.duration) or 'unknown'}")
    verdict = "may or may not converge"
    if estimate.HasField("converges"):
        verdict = "converges" if estimate.converges else "does not converge by itself"
    return f"{', '.join(parts)}; memory {verdict}"


def basis(estimate: Estimate) -> str:
    """What it was made from: "line 23.8 MiB/s (measured), guest writes 8.0 MiB/s, 40 of 64 sampled pages are zeros"."""
    line = "the rate of the line is not known yet"
    if estimate.rate_source == RATE_SOURCE_MEASURED:
        line = f"line {words.rate(estimate.rate)} (measured)"
    elif estimate.rate_source == RATE_SOURCE_LIMIT:
        line = f"line {words.rate(estimate.rate)} at most (its limit)"
    measured = estimate.measurement
    parts = [line]
    if estimate.cold:
        parts.append("the VM is shut off and has no memory")
    elif measured.HasField("dirty_rate"):
        parts.append(f"guest writes {words.rate(measured.dirty_rate)}")
    else:
        parts.append("what the guest writes could not be measured")
    if measured.pages_sampled:
        parts.append(f"{measured.pages_zero} of {measured.pages_sampled} sampled pages are zeros")
    if measured.bytes_compressed:
        parts.append(f"the others compress {measured.bytes_sampled / measured.bytes_compressed:.1f} times")
    return ", ".join(parts)


def pairs(estimate: Estimate) -> Iterator[tuple[str, str]]:
    """The estimate and its basis, by their names."""
    yield "estimate", sentence(estimate)
    yield "based on", basis(estimate)


def error(estimate: Estimate, summary: Summary) -> str:
    """How far off it was, such as "time as estimated, WAN 12 % more than the most, downtime as estimated"."""
    parts = []
    for name, field, was in (
        ("time", "total_ms", summary.total_ms),
        ("WAN", "bytes_wan", summary.bytes_wan),
        ("downtime", "downtime_ms", summary.downtime_ms),
    ):
        if estimate.HasField(field):  # type: ignore[arg-type]  # one of the three names above
            parts.append(f"{name} {_off(getattr(estimate, field), was)}")
    return ", ".join(parts)


def _range(estimate: Estimate, field: str, word: Callable[[int], str]) -> str:
    if not estimate.HasField(field):  # type: ignore[arg-type]  # the name of a Range
        return ""
    found: Range = getattr(estimate, field)
    if not found.HasField("high"):
        return f"at least {word(found.low)}"
    return f"{word(found.low)} to {word(found.high)}"


def _off(said: Range, was: int) -> str:
    if was < said.low:
        return f"{(said.low - was) * 100 / said.low:.0f} % less than the least"
    if said.HasField("high") and was > said.high:
        return f"{(was - said.high) * 100 / said.high:.0f} % more than the most" if said.high else "more than the most"
    return "as estimated"

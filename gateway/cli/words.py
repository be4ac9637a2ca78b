"""How the command line says sizes, durations, moments and states. Pure.

Sizes and rates have binary units; limits are in bits, as what a line carries. Text that comes from a gateway
goes through `safe` before it reaches a terminal: a VM's name or a host's error message must not be able to
move the cursor.
"""

from datetime import datetime, timedelta

from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.timestamp_pb2 import Timestamp

from landbridge.v1 import types_pb2

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_BIT_UNITS = ("bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s")


def size(count: int) -> str:
    """Bytes as "0 B", "512 KiB", "1.9 GiB": three figures are enough."""
    amount, unit = float(count), 0
    while amount >= 999.5 and unit < len(_UNITS) - 1:
        amount, unit = amount / 1024, unit + 1
    whole = unit == 0 or amount >= 99.95
    return f"{amount:.0f} {_UNITS[unit]}" if whole else f"{amount:.1f} {_UNITS[unit]}"


def rate(count: int) -> str:
    """Bytes per second."""
    return f"{size(count)}/s"


def limit(count: int) -> str:
    """A limit, given in bytes per second, as "50 Mbit/s" or "1.25 Gbit/s"."""
    amount, unit = float(count * 8), 0
    while amount >= 999.95 and unit < len(_BIT_UNITS) - 1:
        amount, unit = amount / 1000, unit + 1
    return f"{amount:.4g} {_BIT_UNITS[unit]}"


def percent(done: int, total: int) -> int:
    """Whole percent, rounded down: 100 means all. Nothing to do is all done."""
    return min(100, max(0, done * 100 // total)) if total else 100


def duration(milliseconds: int) -> str:
    """ "87 ms", "12.3 s", "1 min 23 s", "2 h 05 min"."""
    if milliseconds < 1000:
        return f"{milliseconds} ms"
    if milliseconds < 59_950:
        return f"{milliseconds / 1000:.1f} s"
    seconds = round(milliseconds / 1000)
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02} s"
    return f"{seconds // 3600} h {seconds // 60 % 60:02} min"


def whole(milliseconds: int) -> str:
    """A duration that is still growing, without fractions: "42 s", "2 min 05 s"."""
    return f"{milliseconds // 1000} s" if milliseconds < 60_000 else duration(milliseconds // 1000 * 1000)


def clock(milliseconds: int) -> str:
    """Running time as "0:07", "12:41" or "1:02:03"."""
    seconds = milliseconds // 1000
    hours, rest = divmod(seconds, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"


def moment(timestamp: Timestamp) -> str | None:
    """RFC 3339 in UTC, to the second; None for one that is not set or lies outside RFC 3339."""
    if not timestamp.seconds:
        return None
    try:
        return f"{timestamp.ToDatetime():%Y-%m-%dT%H:%M:%SZ}"
    except (ValueError, OverflowError):
        return None


def age(timestamp: Timestamp, now: datetime) -> str:
    """How long ago, in one unit, such as "3 min"; a moment ahead of our clock is "now"."""
    try:
        gone = now - timestamp.ToDatetime(tzinfo=now.tzinfo)
    except (ValueError, OverflowError):
        return "?"
    for unit, name in ((timedelta(days=1), "d"), (timedelta(hours=1), "h"), (timedelta(minutes=1), "min")):
        if gone >= unit:
            return f"{gone // unit} {name}"
    return f"{gone.seconds} s" if gone > timedelta(0) else "now"


def word(enum: EnumDescriptor, number: int) -> str:
    """An enum's value as programs read it, such as "copying_memory"; an unknown number as its digits."""
    value = enum.values_by_number.get(number)
    if value is None:
        return str(number)
    prefix = enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return value.name.removeprefix(prefix).lower()


def state(number: int) -> str:
    """A migration's state as people read it: "copying memory"."""
    return word(types_pb2.MigrationState.DESCRIPTOR, number).replace("_", " ")


def place(site: str, host: str) -> str:
    """SITE/HOST, or what is known of it."""
    return "/".join(safe(part) for part in (site, host) if part) or "-"


def safe(text: str) -> str:
    """The text on one line, without control characters."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def sentence(text: str) -> str:
    """Safe, and with a full stop at its end."""
    text = safe(text).strip()
    return text if text.endswith((".", "!", "?", "…")) else f"{text}."

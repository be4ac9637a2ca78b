"""What became of a migration's bytes on the WAN, for people: a line, or a table."""

from collections.abc import Sequence

from gateway.cli import output, words
from landbridge.v1.types_pb2 import Fate, Saving

_COLUMNS = (
    output.Column("CHANNEL"),
    output.Column("BECAME"),
    output.Column("FROM THE GUEST", right=True),
    output.Column("ON THE WAN", right=True),
    output.Column("SHARE", right=True),
)


def sentence(savings: Sequence[Saving]) -> str:
    """ "512 MiB from the guest, 61.0 MiB on the WAN: zero 300 MiB, duplicate 80.0 MiB"; the most first, by what came from the guest."""
    by_fate: dict[int, int] = {}
    for saving in savings:
        by_fate[saving.fate] = by_fate.get(saving.fate, 0) + saving.bytes_stream
    parts = [
        f"{words.word(Fate.DESCRIPTOR, fate)} {words.size(count)}"
        for fate, count in sorted(by_fate.items(), key=lambda item: -item[1])
        if count
    ]
    stream, wan = (words.size(total) for total in _totals(savings))
    return f"{stream} from the guest, {wan} on the WAN: {', '.join(parts)}"


def show(savings: Sequence[Saving]) -> None:
    """A row for each kind and fate, and one for all of them."""
    rows = [
        _row(words.safe(saving.kind), words.word(Fate.DESCRIPTOR, saving.fate), saving.bytes_stream, saving.bytes_wan)
        for saving in savings
    ]
    output.table(_COLUMNS, [*rows, _row("all", "", *_totals(savings))], "")


def _totals(savings: Sequence[Saving]) -> tuple[int, int]:
    return sum(saving.bytes_stream for saving in savings), sum(saving.bytes_wan for saving in savings)


def _row(kind: str, fate: str, stream: int, wan: int) -> output.Row:
    share = f"{wan * 100 / stream:.1f} %" if stream else ""
    return output.Row((kind, fate, words.size(stream), words.size(wan), share))

"""JSON in its canonical form (RFC 8785), for the values that entries are made of: no fractions, and names in ASCII.

Under these two limits, what Python writes is canonical: only the spelling of fractions, and the order of names beyond
ASCII, would take more.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from landbridge.errors import EvidenceFailed, InternalError

Value: TypeAlias = "str | int | bool | Sequence[Value] | Mapping[str, Value] | None"

# RFC 8785, 3.2.2.3: larger integers are not the same number to every reader (IEEE 754 doubles).
MOST = (1 << 53) - 1
DEPTH = 8

_NAME = re.compile(r"[\x20-\x7e]{1,64}")


def encode(value: Value) -> bytes:
    """The canonical bytes, in UTF-8. InternalError for what has none here: fractions, large integers, lone surrogates."""
    _check(value, DEPTH)
    try:
        return _written(value).encode()
    except (TypeError, ValueError) as error:
        raise InternalError(f"a value has no canonical JSON: {error}") from error


def decode(raw: bytes) -> Value:
    """The value of canonical bytes. EvidenceFailed for bytes that are not the canonical spelling of any value."""
    try:
        value: Value = _read(raw)
        # Where there is nothing but plain ASCII, no name and no text can be one that has no canonical spelling.
        if not raw.isascii() or b"\\" in raw:
            _check(value, DEPTH)
        canonical = _written(value).encode()
    except InternalError as error:
        raise EvidenceFailed(error.message) from error
    except (ValueError, RecursionError) as error:
        raise EvidenceFailed("it is no JSON") from error
    if canonical != raw:
        raise EvidenceFailed("it is JSON, but not in the canonical form (RFC 8785): it has been written anew")
    return value


def _integer(text: str) -> int:
    value = int(text)
    if not -MOST <= value <= MOST:
        raise InternalError(f"the integer {text[:40]} has no canonical JSON: more than 53 bits")
    return value


def _fraction(text: str) -> int:
    raise InternalError(f"the number {text[:40]} has no canonical JSON here")


_written = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False).encode
_reader = json.JSONDecoder(parse_float=_fraction, parse_int=_integer, parse_constant=_fraction)


def _read(raw: bytes) -> Value:
    value: Value = _reader.decode(raw.decode())
    return value


def _check(value: Value, depth: int) -> None:
    if isinstance(value, str) or value is None or isinstance(value, bool):
        return
    if isinstance(value, int):
        if not -MOST <= value <= MOST:
            raise InternalError(f"the integer {str(value)[:40]} has no canonical JSON: more than 53 bits")
    elif not depth:
        raise InternalError(f"a value has more than {DEPTH} levels")
    elif isinstance(value, dict):
        for name, below in value.items():
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                raise InternalError(f"the name {ascii(name)[:80]} is not 1 to 64 printable ASCII characters")
            _check(below, depth - 1)
    elif isinstance(value, list | tuple):
        for below in value:
            _check(below, depth - 1)
    else:
        raise InternalError(f"a {type(value).__name__} has no canonical JSON here")

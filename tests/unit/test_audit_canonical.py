"""Canonical JSON: one spelling, and every other one is refused."""

from __future__ import annotations

import pytest

from gateway.audit import canonical
from landbridge.errors import EvidenceFailed, InternalError


def test_the_examples_of_rfc_8785_are_spelled_as_there() -> None:
    # RFC 8785, 3.2.2 and 3.2.3, without its fractions and names beyond ASCII.
    value = {
        "string": '€$\x0f\nA\'B"\\\\"/',
        "literals": [None, True, False],
        "1": "One",
        "\x20": "space",
        "numbers": [0, -7],
    }
    text = '{" ":"space","1":"One","literals":[null,true,false],"numbers":[0,-7],"string":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
    assert canonical.encode(value) == text.encode()
    assert canonical.decode(text.encode()) == value


def test_all_controls_have_the_short_spelling_or_lower_case_hex() -> None:
    assert canonical.encode("\b\t\n\f\r\x00\x1f\x7f") == b'"\\b\\t\\n\\f\\r\\u0000\\u001f\x7f"'


@pytest.mark.parametrize(
    "value",
    [1.5, 1 << 53, -(1 << 53), {"é": 1}, {"": 1}, {"n" * 65: 1}, [[[[[[[[[1]]]]]]]]], "\ud800", b"bytes", {1: "one"}],
)
def test_what_has_no_canonical_spelling_is_refused(value: object) -> None:
    with pytest.raises(InternalError):
        canonical.encode(value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b' {"a":1}',
        b'{"a": 1}',
        b'{"a":1}\n',
        b'{"b":1,"a":2}',
        b'{"a":1,"a":1}',
        b'{"a":1.0}',
        b'{"a":1e2}',
        b'{"a":NaN}',
        b'{"a":-0}',
        b'{"a":9007199254740993}',
        b'"\\u0041"',
        b'"\\u001F"',
        b'"\\/"',
        b'"\\ud800"',
        b"\xff",
        b"\xef\xbb\xbf1",
        '"a"'.encode("utf-16"),
        b"[" * 100_000,
        b"1" * 5000,
    ],
)
def test_every_other_spelling_is_refused(raw: bytes) -> None:
    with pytest.raises(EvidenceFailed):
        canonical.decode(raw)

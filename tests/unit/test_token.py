"""Enrolment tokens: one spelling, all parts, and no secret where it does not belong."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from certs import authority, token
from certs.identity import Site
from landbridge.config import Address
from landbridge.errors import UsageError

ROOT = authority.create(Site("example.org", "a"), datetime.now(UTC)).certificate
OTHER = authority.create(Site("example.org", "a"), datetime.now(UTC)).certificate
WHERE = [Address("10.1.0.1", 7446), Address("fd00::1", 7446)]


def test_a_token_survives_being_printed_and_knows_its_root() -> None:
    made = token.make(ROOT, WHERE)
    read = token.parse(f" {made}\n")
    assert read == made
    assert read.addresses == tuple(WHERE)
    assert (read.is_for(ROOT), read.is_for(OTHER)) == (True, False)


def test_no_two_tokens_are_alike_and_none_shows_its_secret() -> None:
    one, two = token.make(ROOT, WHERE), token.make(ROOT, WHERE)
    assert one.secret != two.secret
    assert one.id != two.id
    assert one.secret not in repr(one)
    assert one.secret.encode() not in token.secret_hash(one.secret)


def _part(index: int, change: Callable[[str], str]) -> Callable[[str], str]:
    def spoil(text: str) -> str:
        parts = text.split(".")
        parts[index] = change(parts[index])
        return ".".join(parts)

    return spoil


@pytest.mark.parametrize(
    "spoil",
    [
        lambda _: "",
        lambda _: "garbage",
        lambda text: text[:-40],
        lambda text: text + ".x",
        lambda text: text.replace("lb1", "lb2"),
        lambda text: text + "A" * 2000,
        _part(1, lambda part: part[:-1]),
        _part(2, lambda part: part + "AAAA"),
        _part(3, lambda part: part[:-1] + "ä"),
        _part(3, lambda part: part + "="),
        _part(4, lambda _: ""),
        _part(4, lambda _: "bm90LWFuLWFkZHJlc3M"),
        # The last letter of 32 bytes carries two bits that mean nothing: there is one spelling.
        _part(3, lambda part: part[:-1] + chr(ord(part[-1]) + 1)),
    ],
)
def test_what_is_no_token_is_refused_without_repeating_it(spoil: Callable[[str], str]) -> None:
    text = str(token.make(ROOT, WHERE))
    secret = text.split(".")[3]
    with pytest.raises(UsageError, match="That is no token") as caught:
        token.parse(spoil(text))
    assert secret[:10] not in caught.value.message

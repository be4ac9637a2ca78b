"""Any text as a policy file, and any message as a request: the documented errors, and no others."""

from __future__ import annotations

import tomllib
from datetime import UTC, datetime

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.authorization import cases
from gateway.authorization.decide import decide
from gateway.authorization.request import digest, request_of
from gateway.authorization.rules import parse
from landbridge.errors import ConfigError, IdentityError, UsageError
from landbridge.v1.types_pb2 import Migration
from tests.unit.policies import HEAD, PERMIT, rules

WHOLE = (
    HEAD
    + PERMIT
    + (
        '[[vms]]\nnames = ["a*"]\ntags = ["t"]\n[residency]\nunclassified = ["DE"]\n[[freezes]]\nname = "f"\n'
        'timezone = "Europe/Berlin"\nbegins = 08:00:00\nends = 06:00:00\ndays = ["mon"]\n[[four_eyes]]\nname = "e"\napprovals = 1\n'
        '[break_glass]\nwho = ["x"]\n[approvals]\nexpire_hours = 2\n[[tests]]\nname = "t"\nwho = "alice"\nvm = "w"\nfrom = "fra"\n'
        'to = "ams"\nat = 2026-12-24T18:00:00+01:00\nexpect = "refused"\n'
    )
)
TOKENS = [
    "[",
    "]",
    "[[",
    "=",
    '"',
    "\n",
    "'",
    "#",
    "{",
    "}",
    "\x00",
    "é",
    "2026-99-99",
    "1e999",
    "inf",
    "*",
    "spiffe://",
]
PIECES = sorted({*WHOLE.split(), *WHOLE.splitlines(), *TOKENS})

texts = st.one_of(
    st.text(max_size=200),
    st.lists(st.sampled_from(PIECES), max_size=40).map("\n".join),
    st.builds(
        lambda start, size, piece: WHOLE[:start] + piece + WHOLE[start + size :],
        st.integers(0, len(WHOLE)),
        st.integers(0, 20),
        st.sampled_from(PIECES) | st.text(max_size=5),
    ),
)


@settings(max_examples=400, deadline=None)
@given(texts)
def test_any_text_is_a_policy_or_one_sentence(text: str) -> None:
    said = ""
    try:
        read = parse(text, "p")
        cases.check(read, "p")
    except ConfigError as error:
        said = error.message
    if said:
        assert said.startswith("the ")
        assert len(said) < 2000
    else:
        assert tomllib.loads(text)["site"] == read.site


RULES = rules('[[four_eyes]]\nname = "e"\napprovals = 1\nby = ["ams/*"]')

bits = st.binary(max_size=400)


@settings(max_examples=300, deadline=None)
@given(bits)
def test_any_message_is_a_request_or_a_documented_error(data: bytes) -> None:
    migration = Migration()
    try:
        migration.MergeFromString(data)
    except Exception:  # noqa: BLE001 - what gRPC refuses before anybody sees it
        return
    _judge(migration)


messages = st.builds(
    Migration,
    vm=st.text(max_size=300),
    source_site=st.sampled_from(["fra", "", "x" * 300]),
    destination_site=st.sampled_from(["ams", ""]),
    requested_by=st.sampled_from(["spiffe://example.org/site/fra/operator/alice", "spiffe://x/site/y/host/z", ""]),
    break_glass=st.text(max_size=600),
)


@settings(max_examples=200, deadline=None)
@given(messages)
def test_a_request_that_is_nearly_right_is_judged_or_refused(migration: Migration) -> None:
    _judge(migration)


def _judge(migration: Migration) -> None:
    assert len(digest(migration)) == 64
    try:
        request = request_of(migration)
    except (UsageError, IdentityError):
        return
    decide(RULES, request, datetime(2026, 11, 26, tzinfo=UTC))

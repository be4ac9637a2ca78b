"""What a destination answers is its own word, on what it was asked."""

from __future__ import annotations

import pytest

from gateway.authorization.request import digest
from gateway.migration.verdicts import told_by_destination
from landbridge.errors import ProtocolError
from landbridge.v1.decision_pb2 import Decision, Verdict
from landbridge.v1.types_pb2 import Migration

ASKED = Migration(
    source_site="fra", destination_site="ams", vm="web-01", requested_by="spiffe://x/site/fra/operator/alice"
)


def test_a_destination_does_not_decide_in_the_name_of_the_source() -> None:
    with pytest.raises(ProtocolError, match="answers in the name of site 'fra'"):
        told_by_destination(Decision(site="fra", verdict=Verdict.VERDICT_ALLOWED), ASKED)


def test_it_says_nothing_of_another_action_person_or_request() -> None:
    told = Decision(site="ams", action="settle", requester="spiffe://x/site/fra/operator/bob", request_sha256="0" * 64)
    kept = told_by_destination(told, ASKED)
    assert (kept.action, kept.requester, kept.request_sha256) == ("migrate", ASKED.requested_by, digest(ASKED))

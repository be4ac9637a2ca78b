"""Fuzz targets of what strangers and other sites send of identities: tokens, requests, certificates, bundles and denials.

Each documented error, and no other. They run for FUZZ_SECONDS each, one if it is not set, from the seed FUZZ_SEED.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from certs import authority, token
from certs.identity import Identity, Role, Site
from certs.trust import Denial, TrustBundles, judge, load_certificates, pem_of
from landbridge.config import Address
from landbridge.errors import IdentityError, UsageError
from tests.fuzz.test_frame_fuzz import rounds

NOW = datetime(2030, 1, 1, tzinfo=UTC)
A = Site("example.org", "a")
ROOT = authority.create(A, NOW)
NEW, HANDOVER = authority.hand_over(ROOT, NOW, timedelta(days=30))
ISSUER = authority.make_issuer(ROOT, "gw1", NOW)
LEAF = authority.issue(ISSUER, Identity("example.org", "a", Role.HOST, "h1"), NOW)
TRUST = TrustBundles.of([ROOT.certificate])
BUNDLE = pem_of([ROOT.certificate, NEW.certificate, HANDOVER])
TOKEN = str(token.make(ROOT.certificate, [Address("10.1.0.1", 7446)]))
REQUEST = authority.request(authority.new_key())


def altered(chance: random.Random, data: bytes) -> bytes:
    """Some bytes changed, dropped, doubled or added."""
    spoilt = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(spoilt) + 1)
        match chance.randrange(4):
            case 0:
                spoilt[at : at + 1] = chance.randbytes(1)
            case 1:
                del spoilt[at : at + chance.randint(1, 40)]
            case 2:
                spoilt[at:at] = spoilt[at : at + chance.randint(1, 200)]
            case _:
                spoilt[at:at] = chance.randbytes(chance.randint(1, 40))
    return bytes(spoilt)


def read_token(data: bytes) -> None:
    text = data.decode("latin-1")
    # Addresses have several spellings; nothing else has.
    assert str(token.parse(text)).split(".")[:4] == text.strip().split(".")[:4]


def read_request(data: bytes) -> None:
    authority.requested_key(data)


def follow(data: bytes) -> None:
    followed = TRUST.follow(load_certificates(data), NOW)
    assert ROOT.certificate in followed.roots[A]
    assert set(followed.roots[A]) <= {ROOT.certificate, NEW.certificate}


def judge_chain(data: bytes) -> None:
    leaf, *issuers = load_certificates(data) or [LEAF.certificate]
    assert judge(leaf, TRUST, NOW, issuers).identity == LEAF.identity


def read_denial(data: bytes) -> None:
    Denial(data.decode("latin-1"), A, NOW)


@pytest.mark.parametrize(
    ("target", "good"),
    [
        (read_token, TOKEN.encode()),
        (read_request, REQUEST),
        (follow, BUNDLE),
        (judge_chain, LEAF.chain_pem),
        (read_denial, str(LEAF.identity).encode()),
        (read_denial, f"{LEAF.certificate.serial_number:x}".encode()),
    ],
    ids=["token", "request", "bundle", "chain", "identity", "serial"],
)
def test_whatever_comes_there_is_no_other_error(target: Callable[[bytes], None], good: bytes) -> None:
    target(good)
    refused = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of cryptography, about certificates that are not quite well-formed
        for seed, chance in rounds():
            try:
                target(altered(chance, good))
            except (IdentityError, UsageError):
                refused += 1
            except Exception as error:
                raise AssertionError(f"seed {seed}") from error
    assert refused

"""Properties of the SPIFFE parser and of the judge of certificates."""

import string
import warnings
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from certs import authority
from certs.identity import (
    Identity,
    Role,
    Site,
    dns_names,
    parse,
    parse_site,
)
from certs.trust import TrustBundles, judge
from landbridge.errors import IdentityError

NOW = datetime(2030, 1, 1, tzinfo=UTC)
CA = authority.create(Site("example.org", "a"), NOW)
TRUST = TrustBundles.of([CA.certificate])
WHO = Identity("example.org", "a", Role.HOST, "h1")
LEAF = authority.issue(CA, WHO, NOW).certificate.public_bytes(Encoding.DER)

ENDS = string.ascii_lowercase + string.digits
labels = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,18}[a-z0-9])?", fullmatch=True)
dotted = st.lists(labels, min_size=1, max_size=3).map(".".join)
identities = st.builds(Identity, dotted, labels, st.sampled_from(Role), dotted)
alphabet = st.sampled_from([*"aA0.-_%/:@?#\\ \n\x00é", "spiffe://", "/site/", "gateway", "operator", ".."])


@given(identities)
def test_every_identity_survives_its_spiffe_id(identity: Identity) -> None:
    assert parse(str(identity)) == identity
    assert parse_site(str(identity.home)) == identity.home


@given(st.one_of(st.text(), st.lists(alphabet).map("".join), st.lists(alphabet).map(lambda x: str(WHO) + "".join(x))))
def test_arbitrary_text_is_an_identity_error_or_exactly_canonical(text: str) -> None:
    for parser in (parse, parse_site):
        try:
            assert str(parser(text)) == text
        except IdentityError:
            continue


@given(identities, identities)
def test_different_servers_of_a_trust_domain_never_share_their_full_dns_name(one: Identity, two: Identity) -> None:
    if one.trust_domain == two.trust_domain and one != two and dns_names(one):
        assert dns_names(one)[0] not in dns_names(two)


@given(identities)
def test_dns_names_are_valid(identity: Identity) -> None:
    for name in dns_names(identity):
        assert len(name) <= 253
        assert all(0 < len(label) <= 63 and label[0] in ENDS and label[-1] in ENDS for label in name.split("."))


@given(st.integers(0, len(LEAF) - 1), st.integers(1, 255))
def test_no_flipped_byte_of_a_certificate_is_accepted(position: int, flip: int) -> None:
    forged = bytearray(LEAF)
    forged[position] ^= flip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # cryptography warns of odd encodings, which are what we make here
        with pytest.raises(IdentityError):
            judge(bytes(forged), TRUST, NOW)


@given(st.binary())
def test_arbitrary_bytes_are_an_identity_error(data: bytes) -> None:
    with pytest.raises(IdentityError):
        judge(data, TRUST, NOW)

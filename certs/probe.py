"""Who answers at an address, before anything of it is known: its chain is read from a handshake, and nothing is sent.

The other side has proved to have the leaf's key, and that is all: whether its root is the right one is for the caller to find out,
by the hash in a token, or by two people who read a fingerprint to each other.
"""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, datetime

from cryptography import x509

from certs import tls
from certs.identity import Role, site_of
from certs.trust import Credential, TrustBundles, judge
from landbridge.config import Address
from landbridge.errors import IdentityError, Unreachable

PATIENCE = 10.0


async def probe(address: Address) -> tuple[Credential, x509.Certificate]:
    """The gateway at an address, and its root, by what it shows. Raises Unreachable or IdentityError."""
    try:
        async with asyncio.timeout(PATIENCE):
            _, writer = await asyncio.open_connection(
                address.host, address.port, ssl=tls.probe_context(), server_hostname=address.host
            )
            try:
                shown = tls.shown_by(writer.get_extra_info("ssl_object"))
            finally:
                writer.close()
                with contextlib.suppress(OSError):  # the other side hangs up on who shows no certificate
                    await writer.wait_closed()
    except TimeoutError:
        raise Unreachable(f"Nobody answers at {address} within {PATIENCE:.0f} s: check the address.") from None
    except OSError as error:
        raise Unreachable(
            f"{address} cannot be reached over TLS 1.3 ({error.strerror or error}): check the address, and that a gateway runs there."
        ) from error
    return _read(shown, address)


def _read(shown: list[bytes], address: Address) -> tuple[Credential, x509.Certificate]:
    for each in shown[1:]:
        with contextlib.suppress(IdentityError, ValueError):
            root = x509.load_der_x509_certificate(each)
            site_of(root)
            credential = judge(shown[0], TrustBundles.of([root]), datetime.now(UTC), shown[1:])
            if credential.identity.role is Role.GATEWAY:
                return credential, root
    raise IdentityError(
        f"Whoever answers at {address} is no gateway of Landbridge that shows its root: check the address."
    )

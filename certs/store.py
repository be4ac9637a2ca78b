"""The two kinds of directory in which certificates and keys stand.

    <CA>/       ca.pem   ca.key
    <identity>/ cert.pem key.pem trust/<site>.pem ...      one for each site that we accept, our own included

Files are 0600, directories that we make 0700. A file appears whole or not at all: it is written under another
name, flushed to disk, renamed, and the directory is flushed. Each directory has one commit point, the
certificate, written last; a crash before it leaves a directory that loading refuses with a sentence that says
what to do.
"""

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from certs.authority import Authority, Leaf
from certs.identity import (
    CERTIFICATE_BYTES,
    Identity,
    Site,
    TrustBundles,
    authenticate,
    identity_of,
    load_certificate,
    site_of,
)
from landbridge.durable import sync_directory
from landbridge.errors import AlreadyExists, ConfigError, Conflict, IdentityError, NotFound

CA_CERTIFICATE, CA_KEY = "ca.pem", "ca.key"
CERTIFICATE, KEY, TRUST = "cert.pem", "key.pem", "trust"


@dataclass(frozen=True)
class StoredIdentity:
    """One identity directory, read and checked: everything that TLS needs."""

    directory: Path
    identity: Identity
    certificate: x509.Certificate
    certificate_pem: bytes
    key_pem: bytes
    trust: TrustBundles

    def __repr__(self) -> str:
        return f"StoredIdentity({str(self.identity)!r}, {str(self.directory)!r})"  # the key stays out of logs


# The CA.


def save_authority(directory: Path, authority: Authority) -> None:
    """Write a new CA; AlreadyExists if there is a CA, or a part of one: a CA is never overwritten."""
    _make_directory(directory)
    for name in (CA_CERTIFICATE, CA_KEY):
        if os.path.lexists(directory / name):
            raise AlreadyExists(f"{directory} already holds a {name}, never overwritten: use a new directory.")
    _write(directory / CA_KEY, _key_pem(authority.key), replace=False)
    # A crash here leaves a key that has signed nothing, and no CA.
    _write(directory / CA_CERTIFICATE, authority.certificate.public_bytes(Encoding.PEM), replace=False)


def load_authority(directory: Path) -> Authority:
    """Read a CA; NotFound, ConfigError or IdentityError say what is wrong with it."""
    certificate = load_certificate(_read(directory / CA_CERTIFICATE, "create a CA with `landbridge certs init`"))
    site_of(certificate)
    key = _load_key(directory / CA_KEY, _read_secret(directory / CA_KEY, "restore it from your backup"), certificate)
    return Authority(certificate, key)


# An identity.


def save_identity(directory: Path, leaf: Leaf, *, force: bool = False) -> None:
    """Write a leaf, its key and its own site's root. With `force`, replace them; other sites' roots stay."""
    _make_directory(directory)
    if not force:
        for name in (CERTIFICATE, KEY):
            if os.path.lexists(directory / name):
                raise AlreadyExists(f"{directory} already holds a {name}: use --force to replace the identity.")
    _make_directory(directory / TRUST)
    own = directory / TRUST / f"{leaf.identity.site}.pem"
    _write(own, leaf.root.public_bytes(Encoding.PEM), replace=force)
    _write(directory / KEY, _key_pem(leaf.key), replace=force)
    # A crash here leaves a key without certificate, or with the old one: loading says so, --force repairs it.
    _write(directory / CERTIFICATE, leaf.certificate.public_bytes(Encoding.PEM), replace=force)


def load_identity(directory: Path, now: datetime | None) -> StoredIdentity:
    """Read an identity directory; with `now`, refuse what the other side would refuse (None: for display)."""
    pem = _read(directory / CERTIFICATE, "issue an identity with `landbridge certs issue`")
    try:
        certificate = load_certificate(pem)
        identity = identity_of(certificate)
    except IdentityError as error:
        raise ConfigError(f"{directory / CERTIFICATE} is no identity: {error.message}") from error
    key_pem = _read_secret(directory / KEY, "issue the identity again with --force")
    _load_key(directory / KEY, key_pem, certificate)
    trust = load_trust(directory)
    if now is not None:
        try:
            authenticate(certificate, trust, now)
        except IdentityError as error:
            raise ConfigError(f"{directory} is refused: {error.message}") from error
    return StoredIdentity(directory, identity, certificate, pem, key_pem, trust)


def load_trust(directory: Path) -> TrustBundles:
    """The roots in <identity>/trust; ConfigError if a file holds the root of a site with another name."""
    roots: list[x509.Certificate] = []
    for path in sorted((directory / TRUST).glob("*.pem")):
        for root in _roots(path):
            site = site_of(root)
            if path.name != f"{site.site}.pem":
                raise ConfigError(f"{path} holds the root of site {site.site}: rename or remove it.")
            roots.append(root)
    return TrustBundles.of(roots)


def add_trust(directory: Path, ca_pem: Path) -> Site:
    """Accept another site: copy its root to trust/<site>.pem. Conflict if that holds another root already."""
    if not (directory / CERTIFICATE).exists():
        raise NotFound(f"{directory} holds no {CERTIFICATE}: issue an identity with `landbridge certs issue` first.")
    new = _roots(ca_pem)
    sites = {site_of(root) for root in new}
    if len(sites) != 1:
        raise ConfigError(f"{ca_pem} holds the roots of {len(sites)} sites: give the ca.pem of one site.")
    site = sites.pop()
    path = directory / TRUST / f"{site.site}.pem"
    if path.exists() and _roots(path) != new:
        # Otherwise, whoever talks us into taking "their" ca.pem could add themselves to a site that we know.
        raise Conflict(f"{path} holds another root than {ca_pem}: compare fingerprints, and remove it to replace it.")
    _make_directory(directory / TRUST)
    _write(path, b"".join(root.public_bytes(Encoding.PEM) for root in new), replace=True)
    return site


# Files.


def _roots(path: Path) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(_read(path, "give a PEM file of the other site's root"))
    except ValueError as error:
        raise ConfigError(f"{path} is not a PEM file of certificates: give the other site's ca.pem.") from error


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _load_key(path: Path, pem: bytes, certificate: x509.Certificate) -> ec.EllipticCurvePrivateKey:
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{path} is not an unencrypted PEM key: restore it, or issue a new identity.") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{path} is not an ECDSA key: issue the identity with `landbridge certs issue`.")
    if key.public_key() != certificate.public_key():
        raise ConfigError(f"{path} does not belong to the certificate beside it: issue the identity with --force.")
    return key


def _read(path: Path, hint: str) -> bytes:
    with _opened(path, hint) as descriptor:
        return _content(descriptor, path)


def _read_secret(path: Path, hint: str) -> bytes:
    with _opened(path, hint) as descriptor:
        mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
        if mode & 0o077:
            raise ConfigError(
                f"{path} has mode {mode:04o}, and a key that others can read is refused: chmod 600 it, "
                "and replace the key if somebody may have read it."
            )
        return _content(descriptor, path)


@contextlib.contextmanager
def _opened(path: Path, hint: str) -> Iterator[int]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise NotFound(f"{path} does not exist: {hint}.") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}): check its owner and mode.") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _content(descriptor: int, path: Path) -> bytes:
    try:
        data = os.read(descriptor, CERTIFICATE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}): check what it is.") from error
    if len(data) > CERTIFICATE_BYTES:
        raise ConfigError(f"{path} is larger than {CERTIFICATE_BYTES} bytes: it is no certificate or key of ours.")
    return data


def _make_directory(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = stat.S_IMODE(directory.stat().st_mode)
        if mode & 0o022:
            raise ConfigError(
                f"{directory} has mode {mode:04o}, and others could replace the keys in it: chmod 700 it."
            )
        sync_directory(directory.parent)
    except OSError as error:
        raise ConfigError(f"{directory} cannot be used as a directory ({error.strerror}): choose another.") from error


def _write(path: Path, data: bytes, *, replace: bool) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if replace:
                temporary.replace(path)
            else:
                os.link(temporary, path)  # unlike rename, fails if somebody was faster
        finally:
            temporary.unlink(missing_ok=True)
        sync_directory(path.parent)
    except FileExistsError as error:
        raise AlreadyExists(f"{path} already exists and is not overwritten: use --force or a new directory.") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror}): check the directory and the disk.") from error

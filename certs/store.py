"""The two kinds of directory in which certificates and keys stand.

    <CA>/       ca.pem   ca.key                            the root; while it changes, also the one before, and the handover
    <identity>/ cert.pem key.pem trust/<site>.pem ...      one for each site that we accept, our own included
                issuers/<serial>.pem <serial>.key ...      of a gateway: its own CA; two while the site changes its root
                denied                                     of a host: what was revoked, as it has heard

Files are 0600, directories that we make 0700. A file appears whole or not at all: it is written under another
name, flushed to disk, renamed, and the directory is flushed.

A certificate and its key are two files that change together. The new key is written first, beside the old one (`*.next`), then
the certificate, which is the commit point, and then the key takes its place. A crash before the commit point leaves what was there,
and one after it leaves a key beside a newer one: loading takes the one that fits.
"""

import contextlib
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
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

from certs.authority import Authority, Leaf, new_key
from certs.identity import (
    CERTIFICATE_BYTES,
    Identity,
    Site,
    identity_of,
    issuer_of,
    load_certificate,
    parse_site,
    site_of,
)
from certs.trust import Denial, TrustBundles, judge, load_certificates, pem_of, signed_by
from landbridge.durable import remove, sync_directory
from landbridge.errors import AlreadyExists, ConfigError, Conflict, IdentityError, NotFound

CA_CERTIFICATE, CA_KEY = "ca.pem", "ca.key"
CERTIFICATE, KEY, TRUST = "cert.pem", "key.pem", "trust"
ISSUERS, PENDING = "issuers", "pending"
NEXT = ".next"
DENIALS = "denied"


@dataclass(frozen=True)
class StoredIdentity:
    """One identity directory, read and checked: everything that TLS needs."""

    directory: Path
    identity: Identity
    certificate: x509.Certificate
    # The whole chain: the leaf first, then its issuer, if there is one between it and the root.
    certificate_pem: bytes
    key_pem: bytes
    trust: TrustBundles

    @property
    def issuers(self) -> list[x509.Certificate]:
        """What is shown beside the leaf."""
        return load_certificates(self.certificate_pem)[1:]

    @property
    def root(self) -> x509.Certificate:
        """The root that its chain leads to. Raises ConfigError."""
        last = (self.issuers or [self.certificate])[-1]
        for root in self.trust.roots.get(self.identity.home, ()):
            if signed_by(last, root):
                return root
        raise ConfigError(f"{self.directory / TRUST} has no root that has issued {self.identity}: issue it again.")

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
    """Read a CA; NotFound or ConfigError say what is wrong with it."""
    path = directory / CA_CERTIFICATE
    pem = _read(path, "create a CA with `landbridge certs init`")
    try:
        certificate = load_certificate(pem)
        site_of(certificate)
    except IdentityError as error:
        raise ConfigError(f"{path} is no root of a site: {error.message} Restore it from your backup.") from error
    key, _ = _load_key(directory / CA_KEY, certificate, "restore it from your backup")
    return Authority(certificate, key)


def load_roots(directory: Path) -> list[x509.Certificate]:
    """All that others are to know of a CA: its root, and while it changes, the one before, and the handover."""
    return load_certificates(_read(directory / CA_CERTIFICATE, "create a CA with `landbridge certs init`"))


def replace_authority(
    directory: Path, new: Authority, handover: x509.Certificate, now: datetime
) -> list[x509.Certificate]:
    """Let a new root take the place of the one in a directory, whose key nothing needs any more; what others are to know now."""
    known = TrustBundles.of(load_roots(directory)).follow([], now)
    roots = [new.certificate, *known.all(), handover]
    _write_pair(directory / CA_CERTIFICATE, pem_of(roots), directory / CA_KEY, _key_pem(new.key))
    return roots


# An identity.


def make_room(directory: Path) -> None:
    """Before something is asked for that is given once: that an identity can be written there. Raises ConfigError."""
    _make_directory(directory)
    if not os.access(directory, os.W_OK):
        raise ConfigError(
            f"{directory} cannot be written: check its owner and mode, and whether its disk is mounted so."
        )


def save_identity(directory: Path, leaf: Leaf, *, force: bool = False) -> None:
    """Write a leaf, its key and its own site's root. With `force`, replace them; other sites' roots stay."""
    _make_directory(directory)
    if os.path.lexists(directory / CA_KEY):
        raise Conflict(f"{directory} holds a CA, which stays off the network: give another directory for an identity.")
    if not force:
        for name in (CERTIFICATE, KEY):
            if os.path.lexists(directory / name):
                raise AlreadyExists(f"{directory} already holds a {name}: use --force to replace the identity.")
    _make_directory(directory / TRUST)
    own = directory / TRUST / f"{leaf.identity.site}.pem"
    _write(own, leaf.root.public_bytes(Encoding.PEM), replace=force)
    if not force:
        _write(directory / KEY, _key_pem(leaf.key), replace=False)
        # A crash here leaves a key without certificate: loading says so, --force repairs it.
        _write(directory / CERTIFICATE, leaf.chain_pem, replace=False)
    else:
        renew_identity(directory, leaf.chain_pem, leaf.key)


def renew_identity(directory: Path, chain_pem: bytes, key: ec.EllipticCurvePrivateKey) -> None:
    """Replace the certificate and the key."""
    _write_pair(directory / CERTIFICATE, chain_pem, directory / KEY, _key_pem(key))


def load_identity(directory: Path, now: datetime | None) -> StoredIdentity:
    """Read an identity directory; with `now`, refuse what the other side would refuse (None: for display)."""
    pem = _read(directory / CERTIFICATE, "issue an identity with `landbridge certs issue`")
    try:
        certificate = load_certificate(pem)
        identity = identity_of(certificate)
        issuers = load_certificates(pem)[1:]
    except IdentityError as error:
        raise ConfigError(f"{directory / CERTIFICATE} is no identity: {error.message}") from error
    try:
        _, key_pem = _load_key(directory / KEY, certificate, "issue the identity again with --force")
    except (NotFound, ConfigError):
        if _read(directory / CERTIFICATE, "issue the identity again with --force") == pem:
            raise
        return load_identity(directory, now)  # it was renewed meanwhile
    trust = load_trust(directory)
    if now is not None:
        try:
            judge(certificate, trust, now, issuers)
        except IdentityError as error:
            raise ConfigError(f"{directory} is refused: {error.message}") from error
    return StoredIdentity(directory, identity, certificate, pem, key_pem, trust)


# A gateway's issuers.


def save_issuer(directory: Path, issuer: Authority) -> None:
    """Add an issuer to a gateway's identity directory."""
    _make_directory(directory)
    _make_directory(directory / ISSUERS)
    serial = f"{issuer.certificate.serial_number:x}"
    _write(directory / ISSUERS / f"{serial}.key", _key_pem(issuer.key), replace=True)
    # A crash here leaves a key that has signed nothing.
    _write(directory / ISSUERS / f"{serial}.pem", issuer.certificate.public_bytes(Encoding.PEM), replace=True)


def load_issuers(directory: Path, trust: TrustBundles) -> list[Authority]:
    """The issuers of a gateway that roots in `trust` have signed."""
    issuers = []
    for path in sorted((directory / ISSUERS).glob("*.pem")):
        certificate = load_certificate(_read(path, "renew it with `landbridge certs renew`"))
        key, _ = _load_key(path.with_suffix(".key"), certificate, "renew the issuer with `landbridge certs renew`")
        roots = trust.roots.get(issuer_of(certificate).home, ())
        issuers += [Authority(certificate, key, root) for root in roots if signed_by(certificate, root)]
    return issuers


def remove_issuer(directory: Path, issuer: Authority) -> None:
    """Forget an issuer, and its key."""
    for suffix in (".pem", ".key"):
        remove(directory / ISSUERS / f"{issuer.certificate.serial_number:x}{suffix}")


def pending_key(directory: Path) -> ec.EllipticCurvePrivateKey:
    """The key for which an issuer's certificate is asked; made here if there is none."""
    path = directory / ISSUERS / f"{PENDING}.key"
    if path.exists():
        return _parsed_key(path, _read_secret(path, "remove it"))
    key = new_key()
    _make_directory(directory)
    _make_directory(directory / ISSUERS)
    _write(path, _key_pem(key), replace=True)
    return key


def install_issuer(directory: Path, certificate: x509.Certificate, trust: TrustBundles) -> Authority:
    """Take the certificate that was asked for with `pending_key`. Raises IdentityError, or Conflict if it is for another key."""
    who = issuer_of(certificate)
    root = next((each for each in trust.roots.get(who.home, ()) if signed_by(certificate, each)), None)
    if root is None:
        raise IdentityError(f"The certificate of {who} was not issued by a root of its site that is known here.")
    if not (directory / ISSUERS / f"{PENDING}.key").exists():
        raise Conflict(
            f"Nothing was asked for in {directory}, or it is installed already: see `landbridge certs show`."
        )
    if (key := pending_key(directory)).public_key() != certificate.public_key():
        raise Conflict(f"The certificate of {who} is for another key than the one that waits here: ask for a new one.")
    issuer = Authority(certificate, key, root)
    save_issuer(directory, issuer)
    # A crash here leaves a key that is not asked for again in vain: the next request is for it as well.
    remove(directory / ISSUERS / f"{PENDING}.key")
    return issuer


# Trust.


def load_trust(directory: Path) -> TrustBundles:
    """The roots in <identity>/trust; ConfigError if a file holds the root of a site with another name."""
    certificates: list[x509.Certificate] = []
    for path in sorted((directory / TRUST).glob("*.pem")):
        found = _roots(path)
        bundle = TrustBundles.of(found)
        for site in (*bundle.roots, *bundle.handovers):
            if path.name != f"{site.site}.pem":
                raise ConfigError(f"{path} holds the root of site {site.site}: rename or remove it.")
        certificates += found
    return TrustBundles.of(certificates)


def save_trust(directory: Path, trust: TrustBundles) -> None:
    """Write the roots and handovers of every site in `trust`; those of others stay as they are."""
    _make_directory(directory / TRUST)
    for site in trust.roots:
        path, pem = directory / TRUST / f"{site.site}.pem", pem_of(trust.of_site(site))
        if not path.exists() or _read(path, "") != pem:
            _write(path, pem, replace=True)


def remove_trust(directory: Path, site: Site) -> None:
    """Believe a site no more: its file goes. Raises ConfigError if it stays."""
    try:
        remove(directory / TRUST / f"{site.site}.pem")
    except OSError as error:
        raise ConfigError(
            f"{directory / TRUST / site.site}.pem cannot be removed ({error.strerror}): check the owner and mode of the directory."
        ) from error


def add_trust(directory: Path, ca_pem: Path) -> Site:
    """Accept another site: copy its root to trust/<site>.pem. Conflict if that holds another root already."""
    if not (directory / CERTIFICATE).exists():
        raise NotFound(f"{directory} holds no {CERTIFICATE}: issue an identity with `landbridge certs issue` first.")
    new = _roots(ca_pem)
    try:
        sites = set(TrustBundles.of(new).roots)
    except IdentityError as error:
        raise ConfigError(f"{ca_pem} is no root of a site: {error.message} Give the other site's ca.pem.") from error
    if len(sites) != 1:
        raise ConfigError(f"{ca_pem} holds the roots of {len(sites)} sites: give the ca.pem of one site.")
    site = sites.pop()
    path = directory / TRUST / f"{site.site}.pem"
    known = set(_roots(path)) if path.exists() else set()
    if set(new) <= known:
        return site
    if known:
        # Otherwise, whoever talks us into taking "their" ca.pem could add themselves to a site that we know.
        raise Conflict(f"{path} holds another root than {ca_pem}: compare fingerprints, and remove it to replace it.")
    _make_directory(directory / TRUST)
    _write(path, b"".join(root.public_bytes(Encoding.PEM) for root in new), replace=True)
    return site


# Denials, for whoever has no store.


def save_denials(directory: Path, denials: Iterable[Denial]) -> None:
    """Write what was revoked, as this identity has heard."""
    lines = [f"{each.subject} {each.site} {int(each.since.timestamp())}\n" for each in sorted(denials)]
    _write(directory / DENIALS, "".join(lines).encode(), replace=True)


def load_denials(directory: Path) -> frozenset[Denial]:
    """What was written; none if there is no such file. Raises ConfigError for one that says something else."""
    path = directory / DENIALS
    if not path.exists():
        return frozenset()
    try:
        parts = [line.split(" ") for line in path.read_text().splitlines()]
        return frozenset(
            Denial(subject, parse_site(site), datetime.fromtimestamp(int(since), UTC)) for subject, site, since in parts
        )
    except (OSError, ValueError, OverflowError, IdentityError) as error:
        raise ConfigError(
            f"{path} cannot be read ({error}): remove it, and this site's gateways tell it again."
        ) from error


# Files.


def read_public(path: Path, hint: str) -> bytes:
    """A request or an answer to one. Raises NotFound or ConfigError."""
    return _read(path, hint)


def save_request(path: Path, data: bytes) -> None:
    """Write a request, again if need be: it is for the same key. Raises ConfigError."""
    _write(path, data, replace=True)


def save_answer(path: Path, data: bytes) -> None:
    """Write an answer to a request, over nothing: it may go anywhere, also where a CA has its key. Raises AlreadyExists or ConfigError."""
    try:
        _write(path, data, replace=False)
    except AlreadyExists as error:
        raise AlreadyExists(f"{path} is there already, and is not overwritten: choose another --out.") from error


def _roots(path: Path) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(_read(path, "give a PEM file of the other site's root"))
    except ValueError as error:
        raise ConfigError(f"{path} is not a PEM file of certificates: give the other site's ca.pem.") from error


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _load_key(path: Path, certificate: x509.Certificate, hint: str) -> tuple[ec.EllipticCurvePrivateKey, bytes]:
    """The key of a certificate, parsed and as it is written. Somebody else may be in the midst of `_write_pair`."""
    following = path.with_name(path.name + NEXT)
    with contextlib.suppress(NotFound):
        pem = _read_secret(following, hint)
        key = _parsed_key(following, pem)
        if key.public_key() == certificate.public_key():
            return key, pem
    pem = _read_secret(path, hint)
    key = _parsed_key(path, pem)
    if key.public_key() != certificate.public_key():
        raise ConfigError(f"{path} does not belong to the certificate beside it: issue the identity with --force.")
    return key, pem


def _parsed_key(path: Path, pem: bytes) -> ec.EllipticCurvePrivateKey:
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{path} is not an unencrypted PEM key: restore it, or issue a new identity.") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{path} is not an ECDSA key: issue the identity with `landbridge certs issue`.")
    return key


def _write_pair(certificate_path: Path, certificate: bytes, key_path: Path, key: bytes) -> None:
    following = key_path.with_name(key_path.name + NEXT)
    if following.exists() and certificate_path.exists():
        # What a crash has left may be the only key of the present certificate, which lasts until the next one is written.
        present = load_certificate(_read(certificate_path, ""))
        if _parsed_key(following, _read_secret(following, "")).public_key() == present.public_key():
            following.replace(key_path)
    _write(following, key, replace=True)
    # A crash here leaves the old certificate and its key.
    _write(certificate_path, certificate, replace=True)
    # A crash here leaves the new certificate, and its key under the other name, where it is found.
    following.replace(key_path)
    sync_directory(key_path.parent)


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

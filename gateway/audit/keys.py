"""The private keys of a log and of a witness: files that only the gateway can read."""

from __future__ import annotations

from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from landbridge import durable
from landbridge.errors import ConfigError


def ed25519_key(path: Path, missing: str = "") -> Ed25519PrivateKey:
    """The key in this file, or a new one. ConfigError if it cannot be used; and with `missing`, if there is none."""
    key = _read(path, missing)
    if key is None:
        made = Ed25519PrivateKey.generate()
        durable.write(path, made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return made
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{path} is no Ed25519 key: restore it from your backup")
    return key


def ml_dsa_44_key(path: Path, missing: str = "") -> MLDSA44PrivateKey:
    """The same of ML-DSA-44 (FIPS 204). ConfigError also where OpenSSL does not have it."""
    try:
        key = _read(path, missing)
        if key is None:
            made = MLDSA44PrivateKey.generate()
            durable.write(path, made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
            return made
    except UnsupportedAlgorithm as error:
        raise ConfigError("the OpenSSL here has no ML-DSA-44: set ml_dsa = false under [witness]") from error
    if not isinstance(key, MLDSA44PrivateKey):
        raise ConfigError(f"{path} is no ML-DSA-44 key: restore it from your backup")
    return key


def _read(path: Path, missing: str = "") -> object | None:
    if not path.exists():
        if missing:
            raise ConfigError(missing)
        return None
    if path.stat().st_mode & 0o077:
        raise ConfigError(f"{path} can be read by others, and a key like that is refused: chmod 600 it")
    try:
        return load_pem_private_key(path.read_bytes(), password=None)
    except ValueError as error:
        raise ConfigError(f"{path} is not an unencrypted PEM key: restore it from your backup") from error

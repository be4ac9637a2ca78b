"""What a witness must not forget: its own keys, and of each log that it witnesses the key, the newest head, and what did not fit.

    .state/witness/ed25519.pem, ml-dsa-44.pem      the private keys (0600)
    .state/witness/<sha256 of the origin>.json     a log: canonical JSON, replaced as a whole
    witness.vkey, witness-ml-dsa-44.vkey           the public keys, beside the log's own

In the directory of the gateway's own audit log, whose lock keeps a second process out. A record is read anew each time: what is on the
disk is what counts. One that cannot be read is an error, and never taken for none: a witness that forgets cosigns anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Self

from gateway.audit import canonical
from gateway.audit.canonical import Value
from gateway.audit.checkpoint import Signed
from gateway.audit.keys import ed25519_key, ml_dsa_44_key
from gateway.audit.note import Key, Signer
from gateway.audit.storage import STATE
from gateway.audit.walk import WITNESS_KEY, WITNESS_KEY_ML_DSA
from gateway.audit.witness import Alarm, Kind
from landbridge import durable
from landbridge.errors import ConfigError, EvidenceFailed, NotRecorded, UsageError

_DIRECTORY = "witness"
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Record:
    """One log. `latest` is its newest head that was cosigned here, with the log's signature and ours, at `time`."""

    key: Key
    latest: Signed | None = None
    # Seconds since the epoch: when `latest` was brought for the first time.
    time: int = 0
    # At most one of each kind: the first.
    alarms: tuple[Alarm, ...] = ()

    def alarmed(self, alarm: Alarm) -> Self:
        """With an alarm more, unless there is one of its kind."""
        if any(each.kind is alarm.kind for each in self.alarms):
            return self
        return replace(self, alarms=(*self.alarms, alarm))

    def encode(self) -> bytes:
        """The file's bytes."""
        alarms: list[Value] = [
            {"kind": each.kind.value, "time": each.time, "recorded": _text(each.recorded), "shown": _text(each.shown)}
            for each in self.alarms
        ]
        latest = _text(self.latest) if self.latest else None
        return canonical.encode(
            {"v": _VERSION, "key": str(self.key), "latest": latest, "time": self.time, "alarms": alarms}
        )

    @classmethod
    def decode(cls, raw: bytes) -> Self:
        """EvidenceFailed if it is none, or not one of this version."""
        document = canonical.decode(raw)
        if not isinstance(document, Mapping) or document.get("v") != _VERSION:
            raise EvidenceFailed("it is no record of a log, or one of another version")
        latest, alarms = document.get("latest"), document.get("alarms")
        if not isinstance(alarms, list):
            raise EvidenceFailed("it holds no list of alarms")
        try:
            head = None if latest is None else Signed.decode(str(latest).encode())
            return cls(Key.parse(str(document["key"])), head, int(str(document["time"])), tuple(map(_alarm, alarms)))
        except (KeyError, ValueError, UsageError) as error:
            raise EvidenceFailed(f"it is no record of a log: {error}") from error


def _text(signed: Signed) -> str:
    return signed.encode().decode()


def _alarm(value: Value) -> Alarm:
    if not isinstance(value, Mapping):
        raise EvidenceFailed("an alarm in it is none")
    recorded, shown = (Signed.decode(str(value[name]).encode()) for name in ("recorded", "shown"))
    return Alarm(Kind(str(value["kind"])), int(str(value["time"])), recorded, shown)


class Records:
    """The files. Whoever calls is one thread at a time."""

    def __init__(self, audit: Path) -> None:
        """`audit` is the directory of the gateway's own log, which is open."""
        self._audit = audit
        self._directory = audit / STATE / _DIRECTORY

    def signers(self, name: str, *, ml_dsa: bool) -> list[Signer]:
        """The witness's own keys, made where there are none; and the public ones beside the log. Raises ConfigError."""
        try:
            if not self._directory.is_dir():
                self._directory.mkdir(mode=0o700)
                durable.sync_directory(self._directory.parent)
            for left in self._directory.glob(".*"):  # by a crash
                left.unlink()
            path = self._directory / "ed25519.pem"
            missing = f"the key of the witness, {path}, is missing: restore it, or move {self._directory} away"
            signers = [Signer(name, ed25519_key(path, missing if any(self._directory.glob("*.json")) else ""))]
            if ml_dsa:
                signers.append(Signer(name, ml_dsa_44_key(self._directory / "ml-dsa-44.pem")))
            for file, signer in zip((WITNESS_KEY, WITNESS_KEY_ML_DSA), signers, strict=False):
                line = f"{signer.cosigning}\n".encode()
                if not (self._audit / file).exists() or (self._audit / file).read_bytes() != line:
                    durable.write(self._audit / file, line)
        except OSError as error:
            raise ConfigError(f"the witness's keys in {self._directory} cannot be kept: {error.strerror}") from error
        return signers

    def of(self, origin: str) -> Record | None:
        """What is known of a log; None if it is new. NotRecorded if that cannot be told."""
        return self._read(self._path(sha256(origin.encode()).hexdigest()))

    def of_digest(self, digest: str) -> Record | None:
        """The same by the hash of its origin, in hex."""
        return self._read(self._path(digest))

    def all(self) -> list[Record]:
        """Every log. Raises as `of`."""
        found = (self._read(path) for path in sorted(self._directory.glob("*.json")))
        return [record for record in found if record is not None]

    def save(self, record: Record) -> None:
        """Replace what is known of a log; durable when it returns. NotRecorded if the system refuses, and then nothing is certain."""
        path = self._path(sha256(record.key.name.encode()).hexdigest())
        try:
            durable.write(path, record.encode())
        except OSError as error:
            raise NotRecorded(f"the witness's record {path} cannot be written: {error.strerror}") from error

    def _path(self, digest: str) -> Path:
        return self._directory / f"{digest}.json"

    def _read(self, path: Path) -> Record | None:
        try:
            return Record.decode(path.read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise NotRecorded(f"the witness's record {path} cannot be read: {error.strerror}") from error
        except EvidenceFailed as error:
            raise NotRecorded(
                f"the witness's record {path} is damaged, {error.message}: restore it; the log is not cosigned until then"
            ) from error

"""What an agent must remember of a migration when it is killed: one small JSON file each, written before the act.

A file is there from before the first thing is made on this host, so that whatever a killed agent left can be found.

A full disk stops no migration that has begun: the journal keeps some space in reserve, and no migration begins without it.
"""

from __future__ import annotations

import contextlib
import os
from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from landbridge import durable
from landbridge.errors import InternalError, NotRecorded
from landbridge.v1.agent_pb2 import Role, Stage
from landbridge.v1.types_pb2 import Disk, Vm

# Bytes: several records, which are replaced by others of the same size.
RESERVE = 512 << 10


class Passage(StrEnum):
    """How far libvirtd at the destination is with a VM; what else has the VM's UUID there is none of the migration's."""

    NONE = "it was not asked to take the VM in, or all that came of it was removed"
    # Written before it is asked; and again if QEMU ended, or the move was cancelled.
    ASKED = "it may take the VM in, or end it"
    DECLINED = "it has said no"
    PREPARED = "QEMU waits for the VM"
    # Written before the source hears of it.
    ARRIVED = "it has said that the VM came whole"


class Instance(StrEnum):
    """How far the paused instance is that a VM which is shut off is moved as, at the source."""

    NONE = "there is none, and the VM is known to be here"
    # Written before it is started: what stands still here from now on is the migration's, and is ended by it.
    STARTED = "it may stand still here"
    # Written before the hypervisor is asked to move it: if the VM is found shut off from now on, it may have left.
    MOVING = "it may stand still here, or have left"
    # Whatever stands still here later is another's.
    ENDED = "there is none, and the VM may have left"


class BitmapState(StrEnum):
    """What becomes of the bitmap that notes what a VM writes at the destination."""

    NONE = "nobody wants one"
    WANTED = "it is to be open before the VM runs"
    # Written before the VM is let run.
    OPEN = "it has noted all that the VM has written since it arrived"
    OVER = "it is to be closed: the disks were read, or cannot be"
    CLOSED = "there is none any more"


class MovedDisk(BaseModel):
    """A writable disk of the VM, as it lies on this host."""

    target: str
    path: str
    format: str


class Record(BaseModel):
    """One migration at this host."""

    migration: str
    # Numbers of landbridge.v1.Role and landbridge.v1.Stage.
    role: int
    stage: int = int(Stage.STAGE_PREPARED)
    vm: str
    vm_uuid: str
    error: str = ""
    # The VM is shut off, and is so in the end: it runs at no time.
    cold: bool = False
    # At the source, of such a VM.
    instance: Instance = Instance.NONE
    # At the source: whether the VM started with the host before the move; None until autostart was touched.
    autostart: bool | None = None
    # At the source: whether the policy lets the guest stand still until all is copied.
    paused: bool = False
    # At the source: whether what is left of the VM is marked as moved. Once only: the VM may come back, and leave again.
    marked: bool = False
    # At the destination: images that the move makes, whether or not they are there yet.
    # At the source: images of the VM that left, while they are being removed.
    images: list[str] = Field(default_factory=list)
    # At the destination: files beside the images that libvirt makes.
    files: list[str] = Field(default_factory=list)
    # At the destination: the definition with this host's names.
    domain_xml: str = ""
    # At the destination: which VM with this UUID is the migration's.
    passage: Passage = Passage.NONE
    # At the destination: when the guest's CPUs started, seconds since the epoch.
    resumed_at: float | None = None

    # Those that are copied.
    disks: list[MovedDisk] = Field(default_factory=list)
    # At the destination; why there is no proof of the disks; and how long the VM waited for the bitmap, in microseconds.
    bitmap: BitmapState = BitmapState.NONE
    proof_problem: str = ""
    proof_wait_us: int = 0

    @property
    def is_source(self) -> bool:
        """Whether the VM leaves this host."""
        return self.role == Role.ROLE_SOURCE

    def keep_disks(self, vm: Vm) -> None:
        """Note the writable disks of a VM, as they lie here."""
        writable = [disk for disk in vm.disks if not disk.read_only]
        self.disks = [MovedDisk(target=disk.target, path=disk.path, format=disk.format) for disk in writable]

    def messages(self) -> list[Disk]:
        """The disks, as a hypervisor takes them."""
        return [Disk(target=each.target, path=each.path, format=each.format) for each in self.disks]


class Journal:
    """The records of this host, a file each in one directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._reserve = directory / ".reserve"
        # Records that have changed since they were written, because they could not be: by migration, and as they are now.
        self._unwritten: dict[str, Record] = {}
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)

    def reserve(self) -> None:
        """Keep space for when there is none. Raises NotRecorded where there is none already."""
        try:
            with self._reserve.open("ab") as file:
                os.posix_fallocate(file.fileno(), 0, RESERVE)
        except OSError as error:
            with contextlib.suppress(OSError):
                self._reserve.unlink(missing_ok=True)
            raise self._not_recorded(error) from error

    def save(self, record: Record) -> None:
        """Make a record durable, by the reserve if need be. Raises NotRecorded, and `catch_up` writes it later, as it is then."""
        path, raw = self._directory / f"{record.migration}.json", record.model_dump_json().encode()
        try:
            try:
                durable.write(path, raw)
            except OSError:
                if not self._reserve.exists():
                    raise
                self._reserve.unlink()
                durable.write(path, raw)
        except OSError as error:
            self._unwritten[record.migration] = record
            raise self._not_recorded(error) from error
        self._unwritten.pop(record.migration, None)

    def catch_up(self) -> None:
        """Write what could not be written. Raises NotRecorded: it still cannot."""
        for record in list(self._unwritten.values()):
            self.save(record)

    def abandon(self, record: Record) -> None:
        """Of this nothing was begun: it need not be written any more."""
        self._unwritten.pop(record.migration, None)

    def _not_recorded(self, error: OSError) -> NotRecorded:
        return NotRecorded(f"the journal in {self._directory} cannot be written ({error.strerror}): see to its disk")

    def keep(self, migration: str, result: bytes) -> None:
        """Make durable what was read of a migration's disks."""
        durable.write(self._directory / f"{migration}.proof", result)

    def kept(self, migration: str) -> bytes | None:
        """What `keep` was given, or None."""
        try:
            return (self._directory / f"{migration}.proof").read_bytes()
        except FileNotFoundError:
            return None

    def drop(self, migration: str) -> None:
        """Forget what `keep` was given."""
        (self._directory / f"{migration}.proof").unlink(missing_ok=True)

    def load(self) -> list[Record]:
        """Every record. Raises InternalError naming a file that is not one."""
        records = []
        for path in sorted(self._directory.glob("*.json")):
            try:
                records.append(Record.model_validate_json(path.read_bytes()))
            except ValidationError as error:
                raise InternalError(
                    f"the journal entry {path} is damaged; move it away, and see by hand what its migration left on this host"
                ) from error
        return records

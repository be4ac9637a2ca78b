"""One host's part in the proof of a migration's disks: that what is stored here is what was stored at the switch-over.

    destination   opened    the VM has arrived and stands still: a bitmap is opened, which notes what the guest writes from now on
                  let run   only after that, or once it is known that there will be no proof
                  read      its disks are frozen, and all blocks hashed that the guest has not written
                  kept      the result, until it was asked for and compared; the bitmap is closed
    source        read      the images that the VM has left, without the blocks that the destination leaves out

What was begun is asked for again and again (`landbridge.v1.Agent.Prove`). An agent that was killed begins a reading anew: a bitmap
outlives it. Whatever happens, the VM runs; the worst that comes of a failure is that nothing is proved, with the reason. A bitmap
that nobody asks for is closed after LEASE.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import structlog

from agent.channels import make_directory, remove_directory
from agent.disk_hash import Meter, Stopped, hash_disk, written
from agent.hypervisor.base import DiskView, Presence
from agent.journal import BitmapState, Record
from agent.move import HostContext, call, end
from landbridge import disk_tree
from landbridge.disk_tree import Run
from landbridge.errors import LandbridgeError, NotRecorded
from landbridge.v1.agent_pb2 import DiskRuns, HashedDisk, ProveRequest, ProveResponse, ProveState

log = structlog.get_logger()

# Seconds after which a proof is given up that nobody asks for.
LEASE = 3600.0
# How often a reading is begun that fails, and seconds between two attempts, also to close a bitmap: libvirtd may be restarted.
ATTEMPTS = 3
RETRY = 2.0

Views = Callable[[], AbstractContextManager[list[DiskView]]]


class Reading:
    """The disks of a VM, read once in a worker thread."""

    def __init__(self, attempt: str, rate: int, left_out: Mapping[str, Sequence[int]] | None = None) -> None:
        """`left_out` as it was sent; None: what the guest has written, as the disks themselves tell."""
        self.attempt = attempt
        self.problem = ""
        self.left_out: list[DiskRuns] = []
        self.disks: list[HashedDisk] | None = None
        self._given = left_out
        self._meter = Meter(rate)

    def run(self, views: Views) -> None:
        """To the end: `disks` or `problem` is there then; neither if it was stopped. Blocks."""
        try:
            with views() as disks:
                self._read(disks)
        except Stopped:
            return
        except (LandbridgeError, OSError, ValueError) as error:
            if self.disks is None:
                self.problem = error.message if isinstance(error, LandbridgeError) else str(error)
            else:  # it has all been read, and only the end of it failed
                log.warning("proof.not_let_go", error=str(error))
        except Exception:  # a defect must end as any other trouble does: somebody waits for this
            log.exception("proof.defect", attempt=self.attempt)
            self.problem = "an internal error of this agent interrupted it; see its log"

    def _read(self, disks: list[DiskView]) -> None:
        self._meter.total = sum(disk.size for disk in disks)
        most = disk_tree.MOST_RUNS // max(len(disks), 1)
        runs: dict[str, list[Run]] = {}
        for disk in disks:
            if self._given is None:
                runs[disk.target] = written(disk, most)
            else:
                blocks = disk_tree.blocks_of(disk.size)
                runs[disk.target] = disk_tree.unpacked(self._given.get(disk.target, ()), blocks)
        self.left_out = [DiskRuns(target=target, runs=disk_tree.packed(each)) for target, each in runs.items()]
        self.disks = [hash_disk(disk, runs[disk.target], self._meter) for disk in disks]

    def stop(self) -> None:
        """Have it end soon."""
        self._meter.stop()

    @property
    def is_stopped(self) -> bool:
        """Whether it was told to end."""
        return self._meter.is_stopped

    def response(self) -> ProveResponse:
        """How it goes, or went."""
        response = ProveResponse(state=ProveState.PROVE_STATE_READING, attempt=self.attempt, left_out=self.left_out)
        response.bytes_done, response.bytes_total = self._meter.done, self._meter.total
        if self.disks is not None:
            response.state = ProveState.PROVE_STATE_DONE
            response.disks.extend(self.disks)
        elif self.problem:
            response.state, response.problem = ProveState.PROVE_STATE_FAILED, self.problem
        return response


class Reader:
    """Reads in the background, one reading at a time, and again where that fails. Owned by the event loop."""

    def __init__(self, host: HostContext, record: Record) -> None:
        self._host = host
        # Of the sockets.
        self.directory = host.runtime / record.migration
        self._reading: Reading | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()

    @property
    def attempt(self) -> str:
        """Of what is being read, or was; empty for nothing."""
        return "" if self._reading is None else self._reading.attempt

    def begin(
        self, make: Callable[[], Reading], views: Views, ended: Callable[[Reading], None] = lambda _: None
    ) -> None:
        """Read; nothing is being read. `ended` is called in the end, unless it was stopped."""
        self._stopping.clear()
        self._reading = make()
        self._task = asyncio.create_task(self._run(make, views, ended), name=f"reading of {self.directory.name}")

    async def _run(self, make: Callable[[], Reading], views: Views, ended: Callable[[Reading], None]) -> None:
        for attempt in range(1, ATTEMPTS + 1):
            assert self._reading is not None  # noqa: S101 - `begin` has made it
            reading = self._reading
            await call(self._read, reading, views)
            if reading.is_stopped:
                return
            if not reading.problem or attempt == ATTEMPTS:
                ended(reading)
                return
            log.warning("proof.begins_anew", migration=self.directory.name, why=reading.problem)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), RETRY)
                return
            self._reading = make()

    def _read(self, reading: Reading, views: Views) -> None:
        try:
            make_directory(self.directory, self._host.qemu_owner)
        except OSError as error:
            reading.problem = f"{self.directory} cannot be made: {error.strerror}"
            return
        reading.run(views)
        remove_directory(self.directory)

    def response(self) -> ProveResponse:
        """How it goes, or went."""
        assert self._reading is not None  # noqa: S101 - asked for only after `begin`
        response = self._reading.response()
        if response.state == ProveState.PROVE_STATE_FAILED and self._task is not None and not self._task.done():
            response.state = ProveState.PROVE_STATE_READING  # it is tried again
        return response

    async def stop(self) -> None:
        """Return when nothing is read any more."""
        self._stopping.set()
        if self._reading is not None:
            self._reading.stop()
        if self._task is not None:
            # Not cancelled: the thread would go on, and what it has open would stay so.
            await asyncio.wait([self._task])
        self._reading = self._task = None


class SourceProof:
    """What the VM has left at its source."""

    def __init__(self, host: HostContext, record: Record) -> None:
        self._host = host
        self._record = record
        self._reader = Reader(host, record)

    async def prove(self, request: ProveRequest) -> ProveResponse:
        """Begin, or say how far it is. The VM has left, and is shut off."""
        if request.end:
            await self._reader.stop()
            return ProveResponse(state=ProveState.PROVE_STATE_UNKNOWN)
        if not self._reader.attempt or self._reader.attempt != request.attempt:
            if not request.begin:
                return ProveResponse(state=ProveState.PROVE_STATE_UNKNOWN, attempt=request.attempt)
            await self._reader.stop()
            left_out = {each.target: each.runs for each in request.left_out}
            rate, hypervisor = self._host.proof_rate, self._host.hypervisor
            self._reader.begin(
                lambda: Reading(request.attempt, rate, left_out),
                lambda: hypervisor.idle_disks(self._record.messages(), self._reader.directory),
            )
        return self._reader.response()

    async def close(self) -> None:
        """Let go of the images."""
        await self._reader.stop()


class DestinationProof:
    """What has arrived at the destination. What the record says of the bitmap is durable before anything follows from it."""

    def __init__(self, host: HostContext, record: Record) -> None:
        self._host = host
        self._record = record
        self._reader = Reader(host, record)
        self._name = f"landbridge-{record.migration}"
        self._opening: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None
        self._lease: asyncio.TimerHandle | None = None
        self._expiring: asyncio.Task[None] | None = None

    # Before the VM runs.

    def arrived(self) -> None:
        """The VM has come whole and stands still: open the bitmap, while the source hears of that."""
        if self._record.bitmap is BitmapState.WANTED and self._opening is None:
            self._opening = asyncio.create_task(self._open(), name=f"bitmap of {self._record.migration}")

    async def _open(self) -> None:
        began, hypervisor, uuid = time.monotonic(), self._host.hypervisor, self._record.vm_uuid
        targets = [disk.target for disk in self._record.disks]
        try:
            if targets:
                await call(hypervisor.open_bitmap, uuid, self._name, targets)
            runs = await call(hypervisor.presence, uuid) is Presence.RUNNING
        except LandbridgeError as error:
            self._note(BitmapState.OVER, error.message)
        else:
            if runs:
                self._note(BitmapState.OVER, f"somebody let {self._record.vm} run before it was noted what it writes")
            else:
                self._note(BitmapState.OPEN)
        took = round((time.monotonic() - began) * 1e6)
        log.info("proof.opened", migration=self._record.migration, took_us=took, problem=self._record.proof_problem)

    async def open(self) -> None:
        """Return when the VM may be let run."""
        began = time.monotonic()
        self.arrived()
        if self._opening is not None:
            await asyncio.wait([self._opening])
            self._record.proof_wait_us = round((time.monotonic() - began) * 1e6)
        self.recover()

    def _note(self, state: BitmapState, problem: str = "") -> None:
        """What becomes of the bitmap, durably. A journal that cannot be written holds up no VM: then nothing is proved."""
        self._record.bitmap, self._record.proof_problem = state, problem or self._record.proof_problem
        try:
            self._host.journal.save(self._record)
        except NotRecorded as error:
            log.warning("journal.failed", migration=self._record.migration, error=error.message)
            if state is BitmapState.OPEN:
                self._record.bitmap, self._record.proof_problem = BitmapState.OVER, error.message

    async def discard(self) -> None:
        """The VM is to be removed, and its bitmap with it."""
        if self._opening is not None:
            await asyncio.wait([self._opening])
        self._record.bitmap = BitmapState.NONE

    # While it runs.

    def recover(self) -> None:
        """The VM was let run, by this or by a former run of the agent: hold the bitmap for who asks, or end what is over."""
        if self._record.bitmap is BitmapState.OVER:
            self._end()
        if self._record.bitmap is BitmapState.OPEN or self._host.journal.kept(self._record.migration) is not None:
            self._hold()

    def _hold(self) -> None:
        if self._lease is not None:
            self._lease.cancel()
        self._lease = asyncio.get_running_loop().call_later(LEASE, self._expire)

    def _expire(self) -> None:
        log.warning("proof.expired", migration=self._record.migration)
        self._expiring = asyncio.create_task(self._give_up("nobody asked for it any more"))

    async def _give_up(self, why: str) -> None:
        if self._lease is not None:
            self._lease.cancel()
            self._lease = None
        await self._reader.stop()
        if self._record.bitmap is BitmapState.OPEN:
            self._note(BitmapState.OVER, why)
            self._end()
        self._host.journal.drop(self._record.migration)

    async def prove(self, request: ProveRequest) -> ProveResponse:
        """Begin, or say how far it is. The VM was let run."""
        if request.end:
            await self._give_up("it was ended")
            return ProveResponse(state=ProveState.PROVE_STATE_UNKNOWN)
        self.recover()
        kept = self._host.journal.kept(self._record.migration)
        if kept is not None:
            response = ProveResponse.FromString(kept)
        elif self._record.bitmap is not BitmapState.OPEN:
            problem = self._record.proof_problem or "it was not asked for before the VM moved"
            response = ProveResponse(state=ProveState.PROVE_STATE_FAILED, problem=problem)
        else:
            if not self._reader.attempt:
                self._reader.begin(self._reading, self._views, self._has_read)
            response = self._reader.response()
        response.downtime_us = self._record.proof_wait_us
        return response

    def _reading(self) -> Reading:
        return Reading(secrets.token_hex(8), self._host.proof_rate)

    def _views(self) -> AbstractContextManager[list[DiskView]]:
        targets = [disk.target for disk in self._record.disks]
        if not targets:
            return nullcontext([])
        return self._host.hypervisor.freeze_disks(self._record.vm_uuid, self._name, targets, self._reader.directory)

    def _has_read(self, reading: Reading) -> None:
        if not reading.problem:
            # Kept before the bitmap goes, without which it could not be made again.
            try:
                self._host.journal.keep(self._record.migration, reading.response().SerializeToString())
            except OSError as error:
                log.warning("journal.failed", migration=self._record.migration, error=str(error))
                reading.problem = f"{self._host.name} cannot keep what it has read: {error.strerror}"
        self._note(BitmapState.OVER, reading.problem)
        self._end()

    def _end(self) -> None:
        if self._ending is None or self._ending.done():
            self._ending = asyncio.create_task(self._close_bitmap(), name=f"end of {self._name}")

    async def _close_bitmap(self) -> None:
        while True:
            try:
                await call(self._host.hypervisor.close_bitmap, self._record.vm_uuid, self._name)
            except LandbridgeError as error:
                log.warning("proof.bitmap_stays", migration=self._record.migration, error=error.message)
                await asyncio.sleep(RETRY)
            else:
                self._note(BitmapState.CLOSED)
                return

    async def close(self) -> None:
        """The agent stops; the next run takes up what is left."""
        if self._lease is not None:
            self._lease.cancel()
        await self._reader.stop()
        await end(self._ending)

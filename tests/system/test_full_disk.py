"""A disk that is full, or broken, under an agent's journal: no migration begins without it, and none that has begun is lost."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from agent.hypervisor.base import Presence
from agent.journal import Journal
from gateway.migration.states import State
from landbridge import durable
from landbridge.errors import LandbridgeError
from landbridge.v1.agent_pb2 import Stage
from tests.system.sites import SiteUnderTest, TwoSites, eventually

pytestmark = pytest.mark.timeout(30)

DISK = bytes(range(256)) * 1024
MEMORY = bytes(range(255, -1, -1)) * 4096
CRAWL = 50_000


# A real one.


def run(*argv: str | Path) -> None:
    subprocess.run(argv, check=True)


@pytest.fixture
async def small(two: TwoSites) -> AsyncIterator[TwoSites]:
    """Two sites whose agents keep their journals on disks of one megabyte."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    mounted = []
    try:
        for site in (two.fra, two.ams):
            await site.agent.stop()
            disk = site.directory / "state"
            run("mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs", disk)
            mounted.append(disk)
            await site.agent.start()
        yield two
    finally:
        for site in (two.fra, two.ams):
            await site.agent.stop()
        for disk in mounted:
            run("umount", disk)


def fill(site: SiteUnderTest) -> Path:
    """Leave no byte free on the disk of a site's agent."""
    filler = site.directory / "state" / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass
    assert os.statvfs(filler).f_bavail == 0
    return filler


async def test_disks_that_fill_up_stop_no_migration_that_has_begun(small: TwoSites) -> None:
    small.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
    small.fra.hypervisor.rate = CRAWL
    id_ = await small.fra.operator.migrate("web-01", "ams")
    await small.fra.operator.until(id_, State.COPYING_DISKS)
    for site in (small.fra, small.ams):
        fill(site)
    small.fra.hypervisor.hasten()
    ended = await small.fra.operator.ended(id_)
    assert State(ended.state) is State.COMPLETED, ended.reason


@pytest.mark.parametrize("where", ["fra", "ams"])
async def test_on_a_full_disk_none_begins_and_when_there_is_space_one_does(small: TwoSites, where: str) -> None:
    vm = small.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
    site = small.fra if where == "fra" else small.ams
    filler = fill(site)
    id_ = await small.fra.operator.migrate("web-01", "ams")
    ended = await small.fra.operator.ended(id_)
    assert State(ended.state) is State.FAILED
    assert f"the journal in {site.directory}/state/migrations cannot be written" in ended.reason
    assert small.fra.hypervisor.presence(vm) is Presence.RUNNING
    await eventually(lambda: small.ams.is_clean(vm))
    filler.unlink()
    id_ = await small.fra.operator.migrate("web-01", "ams")
    assert State((await small.fra.operator.ended(id_)).state) is State.COMPLETED


# One that is broken from some write on, and is well again after a restart.


@pytest.fixture
def breaks(monkeypatch: pytest.MonkeyPatch) -> Callable[[SiteUnderTest, int], Callable[[], None]]:
    """Have a site's journal write so often and no more; returns what mends it."""
    monkeypatch.setattr(Journal, "reserve", lambda _: None)

    def begin(site: SiteUnderTest, writes: int) -> Callable[[], None]:
        left, real = writes, durable.write

        def write(path: Path, data: bytes, mode: int = 0o600) -> None:
            nonlocal left
            if path.is_relative_to(site.directory / "state"):
                left -= 1
                if left < 0:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
            real(path, data, mode)

        monkeypatch.setattr(durable, "write", write)
        return lambda: monkeypatch.setattr(durable, "write", real)

    return begin


@pytest.mark.parametrize("writes", range(7))
@pytest.mark.parametrize("where", ["fra", "ams"])
@pytest.mark.parametrize("runs", [True, False])
async def test_a_journal_that_breaks_at_any_write_leaves_the_vm_on_one_side(
    two: TwoSites, breaks: Callable[[SiteUnderTest, int], Callable[[], None]], where: str, writes: int, *, runs: bool
) -> None:
    site = two.fra if where == "fra" else two.ams
    vm = two.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
    two.fra.hypervisor.set_autostart(vm, True)
    if not runs:
        two.fra.hypervisor.set_presence(vm, Presence.SHUT_OFF)
    mend = breaks(site, writes)
    id_ = await two.fra.operator.migrate("web-01", "ams")
    ended = await two.fra.operator.ended(id_)
    there = State(ended.state) is State.COMPLETED
    assert there or State(ended.state) is State.FAILED

    def is_on_one_side() -> bool:
        as_before = Presence.RUNNING if runs else Presence.SHUT_OFF
        presences = [each.hypervisor.presence(vm) for each in (two.fra, two.ams)]
        return presences == ([Presence.SHUT_OFF, as_before] if there else [as_before, Presence.ABSENT])

    await eventually(is_on_one_side)
    mend()
    # What the next run of the agent reads is older than what has happened.
    await site.agent.restart()
    with pytest.raises(LandbridgeError):
        await two.fra.operator.cancel(id_)
    await eventually(is_on_one_side)
    owner = two.ams if there else two.fra
    await eventually(lambda: owner.hypervisor.vm(vm).autostart)


@pytest.mark.parametrize("writes", range(3, 6))
async def test_what_could_not_be_written_is_written_later(
    two: TwoSites, breaks: Callable[[SiteUnderTest, int], Callable[[], None]], writes: int
) -> None:
    vm = two.fra.hypervisor.add_vm("web-01", disk=DISK, memory=MEMORY)
    mend = breaks(two.ams, writes)
    id_ = await two.fra.operator.migrate("web-01", "ams")
    there = State((await two.fra.operator.ended(id_)).state) is State.COMPLETED
    mend()

    def is_on_record() -> bool:
        (record,) = Journal(two.ams.directory / "state" / "migrations").load()
        return record.stage in {Stage.STAGE_ACTIVE, Stage.STAGE_FAILED}

    await eventually(is_on_record)
    if not there:
        # Another one brings it after all.
        id_ = await two.fra.operator.migrate("web-01", "ams")
        assert State((await two.fra.operator.ended(id_)).state) is State.COMPLETED
    # Days later: what is off here is the VM, and no leftover of a migration.
    two.ams.hypervisor.set_presence(vm, Presence.SHUT_OFF)
    await two.ams.agent.restart()
    await asyncio.sleep(0.2)  # nothing is to happen
    assert two.ams.hypervisor.presence(vm) is Presence.SHUT_OFF
    assert two.ams.hypervisor.images == {"/pools/images/web-01.qcow2": DISK}

"""A day of two sites, in small: what is exported of it is verified by a newcomer from each folder's README alone."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from gateway.audit.files import Directory, Still
from gateway.audit.reading import last
from gateway.migration import outages
from gateway.migration.states import State
from landbridge.errors import ApprovalNeeded, PermissionDenied, PolicyRefused
from tests import newcomer
from tests.lab.day import RULES
from tests.system.policies import give
from tests.system.sites import TwoSites, eventually

pytestmark = pytest.mark.timeout(120)


async def test_a_day_of_two_sites_is_exported_and_verified_by_a_newcomer(
    two: TwoSites, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outages, "LOOK", 0.02)
    operator = two.fra.operator
    for name in ("web", "shop", "files", "vault"):
        two.fra.hypervisor.add_vm(name, disk=bytes(65_536), memory=bytes(range(256)) * 1024)
    await give(two.fra, RULES.replace("east", "fra"))
    ids = [await operator.migrate("web", "ams")]
    await operator.ended(ids[0])
    # Denied.
    with pytest.raises(PolicyRefused, match="the vault stays"):
        await operator.migrate("vault", "ams")
    # Approved by two.
    with pytest.raises(ApprovalNeeded):
        await operator.migrate("shop", "ams")
    for who in ("carol", "dave"):
        async with two.fra.person(who) as approver:
            [request] = await approver.requests()
            await approver.approve(request)
    ids.append(await operator.migrate("shop", "ams"))
    await operator.ended(ids[1])
    # An outage.
    two.fra.hypervisor.rate = 500_000
    ids.append(await operator.migrate("files", "ams"))
    await operator.until(ids[2], State.COPYING_MEMORY)
    await two.ams.gateway.restart()
    two.fra.hypervisor.hasten()
    assert State((await operator.ended(ids[2])).state) is State.COMPLETED

    alone = newcomer.environment(tmp_path / "alone")
    assert newcomer.has_nothing_of_ours(alone)
    for site in (two.fra, two.ams):
        log, out = site.directory / "gw-1-audit", tmp_path / site.name
        await eventually(lambda log=log: _events(log)["migration.completed"] == 3)  # type: ignore[misc]
        auditor = [f"--gateway={site.listens['gw-1'].operators}", f"--identity={site.identity('adam').directory}"]
        done = await asyncio.to_thread(_landbridge, *auditor, "audit", "export", str(log), "--out", str(out))
        assert done.returncode == 0, done.stderr
        assert _events(log)["log.exported"] == 1
        # By nobody else; and what is refused is no export.
        other = [auditor[0], f"--identity={site.identity('alice').directory}", "audit", "export", str(log)]
        done = await asyncio.to_thread(_landbridge, *other, "--format", "jsonl")
        assert (done.returncode, done.stdout) == (PermissionDenied.exit_code, "")
        assert "Nothing was exported" in done.stderr
        assert _events(log)["log.exported"] == 1
        checked = await asyncio.to_thread(newcomer.verify, out, alone)
        assert len(checked) == 2
        for each in checked:
            assert each.returncode == 0, each
            assert each.stdout.splitlines()[-1] == "All checks pass: this is what the site has signed."
    told = [json.loads(line) for line in (tmp_path / "fra/entries.jsonl").read_text().splitlines()]
    events = Counter(each["event"] for each in told)
    assert events["migration.completed"] == 3
    assert events["migration.denied"] == 1
    approved = [each for each in told if each["event"] == "migration.approved"]
    assert {each["actor"]["id"].rpartition("/")[2] for each in approved if "actor" in each} == {"carol", "dave"}
    assert events["outage.began"] >= 1
    assert events["outage.ended"] >= 1
    assert {each.get("migration") for each in told if each["event"] == "migration.completed"} == set(ids)
    page = (tmp_path / "fra/report.html").read_text()
    assert "3 completed, 1 denied" in page
    assert "the vault stays" in page
    assert "<th>legal basis</th><td>controller-instructions</td>" in page


def _events(log: Path) -> Counter[str]:
    return Counter(entry.event.name for _, entry in last(Still(Directory(log)), 1000))


def _landbridge(*argv: str) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("landbridge")
    return subprocess.run([program, *argv], capture_output=True, text=True, check=False, timeout=60)

"""Each verb in a pipe and as JSON: what it prints, what it asks the gateway, and its exit code."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.cli import connection, estimates, follow, main, views
from gateway.cli.audit_export import save
from landbridge.errors import ConfigError, Unreachable
from landbridge.v1 import gateway_pb2 as api
from landbridge.v1 import types_pb2 as types
from tests.unit.fake_gateway import (
    FINDINGS,
    GIB,
    ID,
    MIB,
    FakeGateway,
    Run,
    cancelled,
    completed,
    copying_disks,
    copying_memory,
    failed,
    migration,
    outage,
    requested,
    summary,
)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGateway]:
    with FakeGateway() as fake:
        monkeypatch.setattr(connection, "connect", lambda _: fake.client())
        yield fake


def objects(out: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in out.splitlines()]


def test_sites_shows_the_unreachable_one_with_its_reason(fake: FakeGateway, run: Run) -> None:
    fake.sites = [
        api.Site(name="fra", local=True, hosts=3, hosts_reachable=2, gateway_version="0.1.0", tunnel="local"),
        api.Site(name="ams", tunnel="down", links=4, unreachable="no answer for 12 minutes"),
    ]
    assert run("sites") == (
        0,
        (
            "SITE  TUNNEL    RTT  HOSTS  VERSION  LIMIT  NOTE\n"
            "fra   local       -    2/3  0.1.0        -  -\n"
            "ams   down 0/4    -      -  -            -  unreachable: no answer for 12 minutes\n"
        ),
        "",
    )


def test_sites_shows_how_many_links_are_up_and_the_limit(fake: FakeGateway, run: Run) -> None:
    known = {"tunnel": "up", "hosts": 2, "hosts_reachable": 2, "gateway_version": "0.1.0"}
    fake.sites = [
        api.Site(name="ams", links_up=4, links=4, rtt_ms=40, limit=6_250_000, **known),  # type: ignore[arg-type]
        api.Site(name="lon", links_up=3, links=4, rtt_ms=12, **known),  # type: ignore[arg-type]
        api.Site(name="old", rtt_ms=12, **known),  # type: ignore[arg-type]
    ]
    assert run("sites")[1] == (
        "SITE  TUNNEL    RTT  HOSTS  VERSION      LIMIT  NOTE\n"
        "ams   up 4/4  40 ms    2/2  0.1.0    50 Mbit/s  -\n"
        "lon   up 3/4  12 ms    2/2  0.1.0            -  -\n"
        "old   up      12 ms    2/2  0.1.0            -  -\n"
    )
    assert [each["links_up"] for each in objects(run("sites", "--json")[1])] == [4, 3, 0]


def test_sites_shows_whose_log_has_shown_two_histories(fake: FakeGateway, run: Run) -> None:
    fake.sites = [
        api.Site(name="fra", local=True, tunnel="local", alarms=["this site has shown two histories: ..."]),
        api.Site(name="ams", tunnel="down", unreachable="no answer", alarms=["site ams has shown two histories: ..."]),
    ]
    assert run("sites")[1] == (
        "SITE  TUNNEL  RTT  HOSTS  VERSION  LIMIT  NOTE\n"
        "fra   local     -    0/0  -            -  ALARM: this site has shown two histories: ...; see docs/audit.md\n"
        "ams   down      -      -  -            -  unreachable: no answer; ALARM: site ams has shown two histories: ...; "
        "see docs/audit.md\n"
    )


def test_hosts_shows_sizes_clocks_that_are_off_and_unreachable_hosts(fake: FakeGateway, run: Run) -> None:
    fake.hosts = [
        types.Host(site="fra", name="host-a", cpus=64, memory=512 * GIB, memory_free=GIB, clock_offset_ms=-2400),
        types.Host(site="ams", name="host-b", unreachable="its agent does not answer"),
    ]
    code, out, _ = run("hosts")
    assert code == 0
    assert "fra/host-a    64  512 GiB  1.0 GiB" in out
    assert "its clock is 2.4 s behind the gateway's" in out
    assert "unreachable: its agent does not answer" in out


def test_vms_shows_hosts_that_may_have_more(fake: FakeGateway, run: Run) -> None:
    disks = [types.Disk(virtual_size=20 * GIB), types.Disk(virtual_size=5 * GIB)]
    fake.vms = [
        types.Vm(name="web-01", host="host-a", state=types.VM_STATE_RUNNING, memory=4 * GIB, disks=disks),
        types.Vm(name="old", host="host-a", state=types.VM_STATE_MOVED, moved_by=ID),
    ]
    fake.unreachable = [types.Host(site="fra", name="host-c", unreachable="no answer")]
    code, out, _ = run("vms")
    assert code == 0
    assert "25.0 GiB" in out
    assert f"landbridge settle {ID}" in out
    assert "host-c  unreachable" in out
    kinds = [each["type"] for each in objects(run("vms", "--json")[1])]
    assert kinds == ["vm", "vm", "host"]


def test_migrations_in_a_pipe_have_whole_ids_and_moments(fake: FakeGateway, run: Run) -> None:
    fake.know([failed("no disk space")])
    out = run("migrations")[1]
    assert out.splitlines()[0].split() == ["ID", "VM", "SOURCE", "DESTINATION", "STATE", "REQUESTED", "NOTE"]
    assert ID in out
    assert "2025-11-23T03:53:20Z  no disk space" in out


def test_show_prints_everything_of_one_migration(fake: FakeGateway, run: Run) -> None:
    fake.know([completed(findings=FINDINGS, progress=copying_memory().progress)])
    code, out, _ = run("show", ID[:4])
    assert code == 0
    for part in (
        ID,
        "spiffe://example.org/site/fra/operator/kim",
        "87 ms",
        "24.0 GiB",
        "6.0 GiB",
        "channel ram",
    ):
        assert part in out
    assert "Remedy: Let both hosts use the same time servers." in out
    assert run("show", "0000")[0] == 3


def test_the_figures_name_what_was_sent_again_and_the_limit_only_where_there_was_any(
    fake: FakeGateway, run: Run
) -> None:
    fake.know([completed(summary=summary(bytes_repeated=3 * MIB), limit=6_250_000)])
    for argv in (("show", ID), ("watch", ID)):
        out = run(*argv)[1]
        assert re.search("^sent again +3.0 MiB after faults of the network$", out, re.MULTILINE)
        assert re.search("^limit +50 Mbit/s on the WAN, 6.0 MiB/s$", out, re.MULTILINE)
    fake.know([completed()])
    for argv in (("show", ID), ("watch", ID)):
        assert not re.search("^(sent again|limit)", run(*argv)[1], re.MULTILINE)


ESTIMATE = types.Estimate(
    total_ms=types.Range(low=100_000, high=160_000),
    bytes_wan=types.Range(low=2 * GIB, high=3 * GIB),
    downtime_ms=types.Range(low=130),
    converges=True,
    rate=20 * MIB,
    rate_source=types.RATE_SOURCE_MEASURED,
    measurement=types.Measurement(
        dirty_rate=8 * MIB, pages_sampled=64, pages_zero=40, bytes_sampled=24 * 4096, bytes_compressed=12 * 4096
    ),
)


@pytest.mark.parametrize("option", [(), ("--dry-run",)])
def test_the_estimate_is_said_before_the_start(fake: FakeGateway, run: Run, option: tuple[str, ...]) -> None:
    fake.estimate = ESTIMATE
    fake.play(completed())
    out = run("migrate", "web-01", "--to", "ams", *option)[1]
    assert (
        "estimate  1 min 40 s to 2 min 40 s, 2.0 GiB to 3.0 GiB on the WAN, downtime at least 130 ms; memory converges\n"
        "based on  line 20.0 MiB/s (measured), guest writes 8.0 MiB/s, 40 of 64 sampled pages are zeros, "
        "the others compress 2.0 times\n"
    ) in out


def test_what_is_not_known_of_an_estimate_is_said_to_be_unknown() -> None:
    unknown = types.Estimate(rate_source=types.RATE_SOURCE_UNKNOWN)
    assert estimates.sentence(unknown) == (
        "time unknown, unknown bytes on the WAN, downtime unknown; memory may or may not converge"
    )
    assert estimates.basis(unknown) == (
        "the rate of the line is not known yet, what the guest writes could not be measured"
    )
    limited = types.Estimate(rate_source=types.RATE_SOURCE_LIMIT, rate=MIB, converges=False)
    assert estimates.basis(limited).startswith("line 1.0 MiB/s at most (its limit), ")
    assert estimates.sentence(limited).endswith("; memory does not converge by itself")


def test_the_summary_says_how_far_off_the_estimate_was(fake: FakeGateway, run: Run) -> None:
    fake.know([completed(estimate=ESTIMATE)])
    off = "time 28 % more than the most, WAN 100 % more than the most, downtime 33 % less than the least"
    for argv in (("show", ID), ("watch", ID)):
        assert re.search(f"^estimate was +{off}$", run(*argv)[1], re.MULTILINE)
    fake.know([completed(estimate=ESTIMATE, summary=summary(total_ms=120_000, bytes_wan=2 * GIB, downtime_ms=5000))])
    line = "estimate was +time as estimated, WAN as estimated, downtime as estimated"
    assert re.search(f"^{line}$", run("show", ID)[1], re.MULTILINE)


SAVINGS = [
    types.Saving(kind="ram", fate=types.FATE_ZERO, bytes_stream=300 * MIB, bytes_wan=1 * MIB),
    types.Saving(kind="ram", fate=types.FATE_COMPRESSED, bytes_stream=100 * MIB, bytes_wan=40 * MIB),
    types.Saving(kind="disk", fate=types.FATE_COMPRESSED, bytes_stream=80 * MIB, bytes_wan=19 * MIB),
    types.Saving(kind="disk", fate=types.FATE_REST, bytes_stream=0, bytes_wan=1 * MIB),
]


def test_what_was_saved_is_a_line_of_the_summary_and_a_table_of_show(fake: FakeGateway, run: Run) -> None:
    fake.know([completed(summary=summary(savings=SAVINGS))])
    line = "saving +480 MiB from the guest, 61.0 MiB on the WAN: zero 300 MiB, compressed 180 MiB$"
    for argv in (("show", ID), ("watch", ID)):
        assert re.search(f"^{line}", run(*argv)[1], re.MULTILINE)
    out = run("show", ID)[1]
    for row in (
        "CHANNEL +BECAME +FROM THE GUEST +ON THE WAN +SHARE",
        "ram +zero +300 MiB +1.0 MiB +0.3 %",
        "disk +compressed +80.0 MiB +19.0 MiB +23.8 %",
        "disk +rest +0 B +1.0 MiB +-",
        "all +- +480 MiB +61.0 MiB +12.7 %",
    ):
        assert re.search(f"^{row}", out, re.MULTILINE), row


def test_where_nothing_was_saved_nothing_is_said(fake: FakeGateway, run: Run) -> None:
    fake.know([completed()])
    for argv in (("show", ID), ("watch", ID)):
        assert "BECAME" not in run(*argv)[1]
        assert not re.search("^saving", run(*argv)[1], re.MULTILINE)


def test_show_says_of_a_running_migration_nothing_that_only_its_end_tells(fake: FakeGateway, run: Run) -> None:
    fake.know([copying_memory(summary=types.Summary(bytes_wan=6 * GIB))])
    out = run("show", ID)[1]
    assert "rate " in out
    assert "6.0 GiB on the tunnel" in out
    assert "total time" not in out
    assert "downtime" not in out


def test_show_leaves_out_the_rates_of_before_an_outage(fake: FakeGateway, run: Run) -> None:
    fake.know([outage(42)])
    out = run("show", ID)[1]
    assert "WAN to site ams down 42 s" in out
    assert "118 MiB/s" not in out


# Limits


def test_limit_of_a_migration_names_the_vm(fake: FakeGateway, run: Run) -> None:
    fake.know([copying_memory()])
    for argv, said in (
        (["50Mbit/s"], "may use 50 Mbit/s"),
        (["12.5", "MB/s"], "may use 100 Mbit/s"),
        (["none"], "has no limit now"),
    ):
        assert run("limit", ID[:4], *argv) == (0, f"The migration of web-01 to ams/host-b {said}.\n", "")
    limits = [asked for asked in fake.asked if asked.startswith("limit")]
    assert limits == [f"limit {ID} {rate} B/s" for rate in (6_250_000, 12_500_000, 0)]


def test_limit_of_a_tunnel_and_its_links(fake: FakeGateway, run: Run) -> None:
    fake.sites = [api.Site(name="ams")]
    assert run("limit", "--site", "ams", "1Gbit/s")[:2] == (0, "The tunnel to ams may use 1 Gbit/s.\n")
    assert run("limit", "--site", "ams", "--links", "1")[:2] == (0, "The tunnel to ams is to have 1 link.\n")
    assert run("limit", "--site", "ams", "--links", "8", "none")[:2] == (
        0,
        "The tunnel to ams has no limit now.\nThe tunnel to ams is to have 8 links.\n",
    )
    assert fake.asked == ["limit ams 125000000 B/s", "limit ams 1 links", "limit ams 0 B/s 8 links"]
    assert run("limit", "--site", "lon", "none")[0] == 3


def test_what_was_set_for_a_tunnel_is_undone_by_itself_only(fake: FakeGateway, run: Run) -> None:
    fake.sites = [api.Site(name="ams", limit=6_250_000, links=8)]
    for argv in (
        ["--reset"],
        [ID, "--reset"],
        ["--site", "ams", "--reset", "none"],
        ["--site", "ams", "--reset", "--links", "2"],
    ):
        assert run("limit", *argv)[0] == 2
    assert fake.asked == []
    assert run("limit", "--site", "ams", "--reset")[:2] == (0, "The tunnel to ams is as gateway.toml has it.\n")
    assert fake.asked == ["limit ams as configured"]


def test_limit_as_json_is_what_was_set(fake: FakeGateway, run: Run) -> None:
    fake.know([copying_memory()])
    fake.sites = [api.Site(name="ams")]
    assert objects(run("limit", ID[:4], "50Mbit/s", "--json")[1]) == [
        {
            "type": "limit",
            "migration": ID,
            "site": None,
            "bytes_per_second": 6_250_000,
            "links": None,
            "as_configured": False,
        }
    ]
    assert objects(run("limit", "--site", "ams", "--links", "8", "--json")[1]) == [
        {
            "type": "limit",
            "migration": None,
            "site": "ams",
            "bytes_per_second": None,
            "links": 8,
            "as_configured": False,
        }
    ]


def test_a_migration_that_has_ended_is_not_limited(fake: FakeGateway, run: Run) -> None:
    fake.know([completed()])
    code, out, err = run("limit", ID, "50Mbit/s", "--json")
    assert (code, out) == (4, "")
    assert "has ended" in err


# Outages


def lines_of(*shown: tuple[float, types.Migration], capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What the plain view prints for what it is shown at these seconds."""
    now = 0.0
    view = views.PlainView(lambda: now)
    for now, each in shown:  # noqa: B007 - the view's clock reads it
        view.show(each)
    return capsys.readouterr().out.splitlines()[1:]


def test_an_outage_is_a_line_at_its_begin_then_ever_fewer_and_one_at_its_end(
    fake: FakeGateway, capsys: pytest.CaptureFixture[str]
) -> None:
    silence = [(100.0 + second, outage(second)) for second in range(3, 244)]
    said = lines_of((100.0, copying_memory()), *silence, (344.0, copying_memory()), (345.0, completed()), capsys=capsys)
    holds = "migration holds, guest runs on at fra"
    assert said == [
        "   3:03  copying memory  50 %  2.0 GiB of 4.0 GiB  118 MiB/s  dirty 12.0 MiB/s  pass 2  ETA 18.4 s",
        *(
            f"   3:03  copying memory  50 %  2.0 GiB of 4.0 GiB  WAN to site ams down {seconds} s, {holds}"
            for seconds in (3, 13, 33, 73, 133, 193)
        ),
        "   3:03  ams/host-b heard again after 4 min 03 s; the migration goes on",
        "   3:24  completed",
    ]


def test_another_outage_is_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    said = lines_of((0.0, outage(3)), (1.0, copying_memory()), (2.0, outage(4)), (3.0, copying_memory()), capsys=capsys)
    assert [("down" in line, "heard again" in line) for line in said] == [(True, False), (False, True)] * 2


def test_a_change_of_state_during_an_outage_is_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    switching = outage(5, migration(types.MIGRATION_STATE_SWITCHING), "host host-b of site ams not heard for")
    said = lines_of((0.0, outage(3)), (1.0, outage(4)), (2.0, switching), (3.0, switching), capsys=capsys)
    assert [line.split()[1] for line in said] == ["copying", "switching"]


def test_an_outage_that_flaps_between_two_sentences_is_no_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    whats = ("WAN to site ams down", "host host-b of site ams not heard for")
    said = lines_of(*((float(second), outage(second, None, whats[second % 2])) for second in range(9)), capsys=capsys)
    assert len(said) == 1


def test_an_outage_that_ends_the_migration_is_not_said_to_be_over(capsys: pytest.CaptureFixture[str]) -> None:
    reason = "the destination host was not heard for 900 s"
    ending = migration(types.MIGRATION_STATE_CLEANING, reason=reason, silent_ms=900_000)
    said = lines_of((0.0, outage(899)), (1.0, ending), (2.0, failed(reason)), capsys=capsys)
    assert [line.split()[1] for line in said] == ["copying", "cleaning", "failed"]
    assert not any("heard again" in line for line in said)


def test_an_outage_without_a_sentence_of_the_gateway_is_told_by_its_length(capsys: pytest.CaptureFixture[str]) -> None:
    assert lines_of((0.0, copying_memory(silent_ms=7_400)), capsys=capsys) == [
        "   3:03  copying memory  50 %  2.0 GiB of 4.0 GiB  ams/host-b not heard for 7 s"
    ]


def test_as_json_an_outage_is_an_object_for_each_change(fake: FakeGateway, run: Run) -> None:
    fake.play(outage(3), outage(4), copying_memory(), completed())
    told = objects(run("migrate", "web-01", "--to", "ams", "--json")[1])
    assert [each["silent_ms"] for each in told] == [None, 3300, 4300, None, None]


def test_migrate_in_a_pipe_writes_lines_and_the_summary(fake: FakeGateway, run: Run) -> None:
    fake.play(copying_disks(), copying_memory(), copying_memory(3 * GIB), completed())
    code, out, err = run("migrate", "web-01", "--to", "ams/host-b")
    assert (code, err) == (0, "")
    assert out == (
        f"web-01: fra/host-a to ams/host-b, migration {ID}\n"
        "   0:00  requested\n"
        "   0:52  copying disks  30 %  6.0 GiB of 20.0 GiB  118 MiB/s  ETA 2 min 01 s\n"
        "   3:03  copying memory  50 %  2.0 GiB of 4.0 GiB  118 MiB/s  dirty 12.0 MiB/s  pass 2  ETA 18.4 s\n"
        "   3:24  completed\n"
        "web-01 has moved from fra/host-a to ams/host-b.\n"
        f"migration   {ID}\n"
        "total time  3 min 24 s\n"
        "downtime    87 ms\n"
        "hypervisor  24.0 GiB read at the source\n"
        "WAN         6.0 GiB on the tunnel, 25 % of that\n"
        f"next        landbridge settle {ID}\n"
    )


def test_a_vm_that_is_shut_off_is_said_to_be_so_and_has_no_downtime(fake: FakeGateway, run: Run) -> None:
    ended = completed()
    ended.cold, ended.summary.downtime_ms = True, 0
    ended.estimate.cold, ended.estimate.total_ms.low = True, 1000
    fake.play(ended)
    out = run("migrate", "web-01", "--to", "ams/host-b")[1]
    assert "web-01 has moved from fra/host-a to ams/host-b and is shut off there.\n" in out
    shown = run("show", ID)[1]
    assert "shut off: it runs at neither side" in shown
    assert "the VM is shut off and has no memory" in shown
    assert "downtime" not in out + shown


def test_lines_of_one_state_come_at_intervals(fake: FakeGateway, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "INTERVAL_S", 0.0)
    fake.play(copying_memory(), copying_memory(3 * GIB), completed())
    assert run("migrate", "web-01", "--to", "ams")[1].count("copying memory") == 2


def test_migrate_as_json_writes_each_change_once(fake: FakeGateway, run: Run) -> None:
    fake.play(copying_memory(), copying_memory(), completed())
    code, out, _ = run("migrate", "web-01", "--to", "ams", "--json")
    assert code == 0
    assert [each["state"] for each in objects(out)] == ["requested", "copying_memory", "completed"]


def test_migrate_detached_says_how_to_come_back(fake: FakeGateway, run: Run) -> None:
    code, out, _ = run("migrate", "web-01", "--to", "ams", "--detach")
    assert code == 0
    assert f"landbridge watch {ID}" in out
    assert f"landbridge cancel {ID}" in out
    assert not any(asked.startswith("watch") for asked in fake.asked)


@pytest.mark.parametrize("option", [(), ("--dry-run",)])
def test_a_refused_migration_shows_all_findings_with_their_remedies(
    fake: FakeGateway, run: Run, option: tuple[str, ...]
) -> None:
    fake.findings = FINDINGS
    code, out, err = run("migrate", "web-01", "--to", "ams", *option)
    assert code == 5
    assert out.index("cpu-incompatible") < out.index("clock-offset")
    assert out.count("Remedy: ") == 2
    assert err.startswith("landbridge: ")
    assert not fake.migrations


@pytest.mark.parametrize("option", [(), ("--dry-run",)])
def test_the_policy_goes_to_the_gateway(fake: FakeGateway, run: Run, option: tuple[str, ...]) -> None:
    fake.play(completed())
    policy = ("--max-downtime", "500", "--on-no-convergence", "pause", "--deadline", "15min")

    assert run("migrate", "web-01", "--to", "ams", *policy, *option)[0] == 0

    wanted = types.Policy(
        max_downtime_ms=500, on_no_convergence=types.NON_CONVERGENCE_PAUSE, deadline_ms=15 * 60 * 1000
    )
    assert fake.policies == [wanted]


def test_what_is_not_asked_for_is_left_to_the_gateway(fake: FakeGateway, run: Run) -> None:
    assert run("migrate", "web-01", "--to", "ams", "--dry-run")[0] == 0
    assert fake.policies == [types.Policy()]


def test_a_line_says_that_the_memory_does_not_converge(capsys: pytest.CaptureFixture[str]) -> None:
    views.PlainView().show(copying_memory(eta_ms=None, converges=False, throttle=20))
    assert "pass 2  throttled 20 %  does not converge" in capsys.readouterr().out


def test_show_says_the_policy(fake: FakeGateway, run: Run) -> None:
    policy = types.Policy(
        max_downtime_ms=300, on_no_convergence=types.NON_CONVERGENCE_CANCEL, deadline_ms=15 * 60 * 1000
    )
    fake.migrations[ID] = copying_memory(policy=policy, throttle=20)
    out = run("show", ID)[1]
    assert (
        "downtime of at most 300 ms for the last memory; without convergence: cancel, at the latest after 15 min" in out
    )
    assert "20 % of the guest's CPU time" in out


def test_a_dry_run_that_passes_touches_nothing(fake: FakeGateway, run: Run) -> None:
    fake.findings = FINDINGS[:1]
    code, out, _ = run("migrate", "web-01", "--to", "ams", "--dry-run")
    assert code == 0
    assert "web-01 can move from host-a to ams/host-b; nothing has been changed." in out
    assert fake.asked == ["preflight web-01 ams/"]


@pytest.mark.parametrize(
    ("end", "code", "sentence"),
    [
        (failed("ams lost its pool"), 10, "web-01 to ams/host-b failed: ams lost its pool."),
        (cancelled(), 11, "was cancelled: kim asked for it; web-01 goes on at fra/host-a."),
        (migration(types.MIGRATION_STATE_FAILED), 10, "failed: no reason is recorded."),
    ],
)
@pytest.mark.parametrize("verb", [("migrate", "web-01", "--to", "ams"), ("watch", ID)])
def test_an_end_without_success_is_a_sentence_and_an_exit_code(
    fake: FakeGateway, run: Run, *, verb: tuple[str, ...], end: types.Migration, code: int, sentence: str
) -> None:
    fake.know([requested()])
    fake.play(end)
    got, _, err = run(*verb)
    assert got == code
    assert sentence in err


@pytest.mark.parametrize(("end", "code"), [(cancelled(), 0), (completed(), 4), (failed("the source host is gone"), 10)])
def test_cancel_waits_for_the_end(fake: FakeGateway, run: Run, end: types.Migration, code: int) -> None:
    fake.know([copying_memory()])
    fake.on_cancel = [migration(types.MIGRATION_STATE_CLEANING), end]
    assert run("cancel", ID)[0] == code
    assert fake.asked == [f"cancel {ID}", f"watch {ID}"]


def test_cancel_detached_does_not_wait(fake: FakeGateway, run: Run) -> None:
    fake.know([copying_memory()])
    assert run("cancel", ID, "--detach")[:2] == (0, f"Migration {ID} will be cancelled.\n")
    assert objects(run("cancel", ID, "--detach", "--json")[1])[0]["type"] == "migration"


def test_settle_lists_what_was_removed(fake: FakeGateway, run: Run) -> None:
    fake.know([completed()])
    fake.removed = ["the definition of web-01"]
    code, out, _ = run("settle", ID[:6])
    assert code == 0
    assert "removed at fra/host-a: the definition of web-01" in out
    assert run("settle", ID)[0] == 4


def test_activate_warns_and_asks_how_it_is_known_that_the_source_is_lost(fake: FakeGateway, run: Run) -> None:
    fake.know([copying_memory()])
    code, _, err = run("activate", ID)
    assert code == 2
    assert "it will run twice" in err
    assert "--source-is-lost REASON" in err
    assert not fake.asked


def test_activate_says_where_the_vm_runs_and_must_not_be_started(fake: FakeGateway, run: Run) -> None:
    fake.know([copying_memory()])
    code, out, _ = run("activate", ID, "--source-is-lost", "the hall burnt down")
    assert (code, out) == (0, "web-01 runs at ams/host-b. See that nobody starts it at fra/host-a any more.\n")
    assert fake.asked == [f"activate {ID}: the hall burnt down"]
    assert objects(run("activate", ID, "--source-is-lost", "fire", "--json")[1])[0]["type"] == "migration"


def test_ctrl_c_detaches_and_the_migration_goes_on(
    fake: FakeGateway, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = threading.Event()
    show = views.PlainView.show

    def shown(view: views.PlainView, migration: types.Migration) -> None:
        show(view, migration)
        if migration == copying_memory():
            said.set()

    def press() -> None:
        assert said.wait(10)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(views.PlainView, "show", shown)
    fake.play(copying_memory(), press)
    code, out, err = run("migrate", "web-01", "--to", "ams")
    assert code == 130
    assert "copying memory" in out
    assert f"landbridge watch {ID}" in err
    assert not any(asked.startswith("cancel") for asked in fake.asked)


def test_ctrl_c_elsewhere_ends_the_command(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(connection, "connect", interrupted)
    assert run("sites")[0] == 130


def test_a_gateway_that_restarts_is_waited_for(fake: FakeGateway, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def restart(_: float) -> None:
        fake.stop()
        fake.start()

    monkeypatch.setattr(follow, "sleep", restart)
    fake.play(copying_memory(), fake.vanish, completed())
    code, out, err = run("migrate", "web-01", "--to", "ams")
    assert (code, err) == (0, "")
    assert out.count("does not answer; the migration goes on. Trying again.") == 1
    assert out.count("The gateway answers again.") == 1
    assert "has moved" in out


@pytest.mark.parametrize("verb", [("migrate", "web-01", "--to", "ams"), ("watch", ID), ("cancel", ID)])
def test_if_the_gateway_is_killed_another_one_goes_on_telling(
    fake: FakeGateway, run: Run, monkeypatch: pytest.MonkeyPatch, verb: tuple[str, ...]
) -> None:
    with FakeGateway() as second:
        monkeypatch.setattr(connection, "connect", lambda _: fake.client(second))
        fake.know([requested()])
        second.know([copying_memory()])
        fake.on_cancel = [copying_memory(), fake.vanish]
        fake.play(*fake.on_cancel)
        second.play(migration(types.MIGRATION_STATE_CLEANING), cancelled())
        code, out, err = run(*verb)
    assert code == (0 if verb[0] == "cancel" else 11)
    assert "cleaning" in out
    assert "does not answer" not in out + err


def test_a_gateway_that_stays_away_is_given_up(fake: FakeGateway, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "sleep", lambda _: fake.stop())
    monkeypatch.setattr(follow, "PATIENCE_S", 0.0)
    fake.play(copying_memory(), fake.vanish)
    code, _, err = run("migrate", "web-01", "--to", "ams")
    assert code == Unreachable.exit_code
    assert f"landbridge watch {ID}" in err


def test_a_reader_that_has_enough_is_no_error(fake: FakeGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.know([completed()])
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w", closefd=True) as closed:  # noqa: PTH123 - a descriptor has no path
        monkeypatch.setattr("sys.stdout", closed)
        assert main(["show", ID]) == 141


def test_what_a_gateway_says_cannot_move_the_cursor(fake: FakeGateway, run: Run) -> None:
    fake.know([failed("\x1b[2Jgone\r\nlandbridge: all is well")])
    for argv in (("migrations",), ("show", ID), ("watch", ID)):
        _, out, err = run(*argv)
        assert "\x1b" not in out + err
        assert "\nlandbridge: all is well" not in out + err


LANDBRIDGE = str(Path(sys.executable).with_name("landbridge"))


def test_output_that_cannot_be_written_is_no_defect() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([LANDBRIDGE, "--help"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 74
    assert done.stderr.startswith("landbridge: Standard output cannot be written (No space left on device): ")
    assert done.stderr.count("\n") == 1


def test_closed_standard_streams_are_not_missed(tmp_path: Path) -> None:
    argv = ["sh", "-c", '"$@" <&- >&- 2>&-', "sh", LANDBRIDGE, "certs", "init", "--site", "fra"]
    out = tmp_path / "ca"
    done = subprocess.run([*argv, "--trust-domain", "example.org", "--out", str(out)], check=False)
    assert done.returncode == 0
    assert sorted(path.name for path in out.iterdir()) == ["ca.key", "ca.pem"]


def test_a_file_that_could_not_be_written_is_not_in_the_way_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "a.receipt"
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(ConfigError, match="No space left on device"):
            save(path, [b"receipt"])
    assert not path.exists()
    save(path, [b"receipt"])
    assert path.read_bytes() == b"receipt"
    with pytest.raises(ConfigError, match="No such file or directory; choose another --out"):
        save(tmp_path / "mistyped" / "a.receipt", [b"receipt"])
    assert not (tmp_path / "mistyped").exists()

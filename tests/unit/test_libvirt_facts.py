"""agent/hypervisor/libvirt_facts.py"""

from __future__ import annotations

from agent.hypervisor.libvirt_facts import Meter, Meters, dotted_version, host_facts, pool_facts, progress

CAPABILITIES = """
<capabilities><host><cpu><arch>x86_64</arch><model>Westmere</model><feature name='aes'/></cpu></host>
<guest><os_type>hvm</os_type><arch name='x86_64'><emulator>/usr/bin/qemu-x</emulator>
<machine>pc-q35-7.2</machine><machine canonical='pc-q35-7.2'>q35</machine></arch></guest>
<guest><os_type>hvm</os_type><arch name='aarch64'><emulator>/usr/bin/qemu-a</emulator><machine>virt</machine></arch>
</guest></capabilities>"""


def test_a_host_is_described_for_its_own_architecture() -> None:
    host = host_facts(CAPABILITIES)

    assert (host.arch, host.cpu_model, list(host.cpu_features)) == ("x86_64", "Westmere", ["aes"])
    assert list(host.machine_types) == ["pc-q35-7.2", "q35"]
    assert list(host.emulators) == ["/usr/bin/qemu-x"]


def test_versions_have_dots() -> None:
    assert dotted_version(7002022) == "7.2.22"
    assert dotted_version(9000000) == "9.0.0"


def test_only_pools_of_files_count() -> None:
    xml = "<pool type='{}'><name>p</name><target><path>/srv/p/</path></target></pool>"

    pool = pool_facts(xml.format("dir"))

    assert pool is not None
    assert (pool.name, pool.path) == ("p", "/srv/p")
    assert pool_facts(xml.format("logical")) is None


def test_a_rate_is_a_mean_over_its_window() -> None:
    meter = Meter()

    rates = [meter.rate(at, sent) for at, sent in [(0, 0), (100, 10**6), (500, 10**6), (600, 10**9), (1000, 2 * 10**6)]]

    assert rates == [0, 0, 2 * 10**6, 2 * 10**6, 2 * 10**6]


def test_a_counter_that_goes_back_starts_a_rate_afresh() -> None:
    meter = Meter()
    assert [meter.rate(at, sent) for at, sent in [(0, 0), (1000, 5000), (1500, 10), (2500, 4010)]] == [
        0,
        5000,
        5000,
        4000,
    ]


def test_while_disks_are_copied_the_memory_is_still_ahead() -> None:
    meters = Meters()
    progress({"time_elapsed": 0, "disk_processed": 0}, meters, 0)

    stats = {"time_elapsed": 1000, "disk_total": 3000, "disk_processed": 1000, "disk_remaining": 2000}
    made = progress(stats, meters, memory=4000)

    assert (made.disk_total, made.disk_remaining, made.memory_total) == (3000, 2000, 0)
    assert (made.rate, made.eta_ms, made.elapsed_ms) == (1000, 6000, 1000)


def test_memory_that_is_dirtied_faster_than_sent_has_no_end_in_sight() -> None:
    meters = Meters()
    stats = {"memory_total": 10**6, "memory_remaining": 10**6, "memory_iteration": 2, "memory_page_size": 4096}
    progress(stats | {"time_elapsed": 0, "memory_processed": 0}, meters, 0)

    later = stats | {"time_elapsed": 1000, "memory_processed": 8192}

    assert not progress(later | {"memory_dirty_rate": 2}, meters, 0).HasField("eta_ms")
    assert progress(later | {"memory_dirty_rate": 1}, meters, 0).eta_ms == 10**6 * 1000 // 4096


def test_memory_is_done_with_by_the_page_whatever_it_became_on_the_way() -> None:
    meters = Meters()
    stats = {"memory_total": 10**8, "memory_remaining": 10**7, "memory_iteration": 2, "memory_page_size": 4096}
    progress(stats | {"time_elapsed": 0, "memory_processed": 0}, meters, 0)

    later = {"time_elapsed": 1000, "memory_processed": 50_000, "memory_normal_bytes": 40_960, "memory_constant": 90}
    made = progress(stats | later | {"auto_converge_throttle": 30}, meters, 0)

    assert (made.rate, made.memory_rate, made.throttle) == (50_000, 100 * 4096, 30)

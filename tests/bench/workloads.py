"""What the bench of the WAN moves, how, and what each must show.

Rates are pages written per second: one word in each, of pages chosen at random among the working set's, of which a quarter hold
random bytes and the others text. Each guest has another seed, so no two have a page of random bytes in common. Every guest
has a disk of 2 MiB of data besides, which moves with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from tests.bench.direct import METHODS
from tests.lab.settings import GuestSettings

LANDBRIDGE = "landbridge"
# The fastest of METHODS that completed.
BEST = "best direct"

Figure = Literal["total_s", "downtime_ms", "wan_bytes"]


@dataclass(frozen=True)
class Bound:
    """A figure of Landbridge's as a multiple of the same one of another move: a direct method's, BEST, or a workload of ours."""

    figure: Figure
    of: str
    most: float


@dataclass(frozen=True)
class Workload:
    """One row."""

    name: str
    title: str
    guest: GuestSettings
    bounds: tuple[Bound, ...]
    # The methods beside which it stands.
    direct: tuple[str, ...] = ()
    # Arguments of `landbridge migrate`.
    policy: tuple[str, ...] = ()
    # Every direct method is to be measured, and the bounds hold only if one of them completes.
    alone: bool = False
    # A workload whose lab it goes on with, and so the gateways and all that they remember; without, the lab is a new one.
    after: str = ""
    # Seconds since the guest of `after` arrived, which goes back now; 0: the guest is a new one, on its way out.
    back: float = 0.0


def _random(rate: int) -> GuestSettings:
    return GuestSettings(working_set=128, rate=rate, random=25, disk_fill=2, disk_rate=1, beats=50, seed=rate)


_FILES = GuestSettings(
    memory=1024, working_set=32, rate=100, disk_fill=2, disk_rate=1, beats=50, files=320, files_seconds=10, seed=11
)
ALL_DIRECT = tuple(METHODS)

WORKLOADS: Mapping[str, Workload] = {
    workload.name: workload
    for workload in (
        Workload(
            "rate-1000",
            "128 MiB working set, a quarter of it random; 1,000 pages/s",
            _random(1000),
            (Bound("total_s", BEST, 0.30), Bound("wan_bytes", BEST, 0.25)),
            ALL_DIRECT,
        ),
        Workload(
            "rate-5000",
            "the same; 5,000 pages/s",
            _random(5000),
            (Bound("total_s", "xbzrle", 0.30), Bound("wan_bytes", "xbzrle", 0.20), Bound("downtime_ms", "xbzrle", 1.0)),
            ALL_DIRECT,
        ),
        Workload(
            "rate-20000",
            "the same; 20,000 pages/s, throttled",
            _random(20_000),
            (Bound("total_s", BEST, 0.30),),
            ALL_DIRECT,
            policy=("--on-no-convergence", "throttle", "--max-downtime", "1000"),
            alone=True,
        ),
        Workload(
            "page-cache",
            "320 MiB of a Debian root file system in the page cache",
            _FILES,
            (Bound("wan_bytes", "plain", 0.42),),
            ("plain", "multifd-zstd"),
        ),
        Workload(
            "second-vm",
            "a second VM of that image, with its own names, keys and working set",
            replace(_FILES, seed=12),
            (Bound("wan_bytes", "page-cache", 0.5),),
            after="page-cache",
        ),
        Workload(
            "way-back",
            "the first VM, back after 2 minutes",
            _FILES,
            (Bound("wan_bytes", "page-cache", 0.15),),
            after="page-cache",
            back=120.0,
        ),
        # Were the blocks sent a second time, it would be about 2.
        Workload(
            "disk",
            "the same files on a 1 GiB disk that moves with the VM",
            replace(_FILES, files_disk=1024, seed=13),
            (Bound("wan_bytes", "page-cache", 1.15),),
            ("plain",),
        ),
        Workload(
            "incompressible",
            "384 MiB working set, all of it random; nothing is written",
            GuestSettings(working_set=384, rate=0, random=100, disk_fill=2, disk_rate=1, beats=50, seed=14),
            (Bound("wan_bytes", "plain", 1.02), Bound("total_s", "plain", 1.05)),
            ("plain",),
        ),
    )
}

"""The benches' chains of processes carry a stream whole; their figures are not looked at here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.bench.byte_path import Way, loopback, measure, ways
from tests.bench.chain import chain
from tests.bench.plain import tcp_stream
from tests.bench.stage import Stage
from tests.bench.transfer import Sink, Transfer
from tests.lab.settings import LabError

TOTAL = 3 << 20
# Seconds.
PATIENCE = 30.0


@pytest.fixture
def on_loopback() -> Iterator[tuple[Stage, Sink]]:
    """A stage, and the end of the streams."""
    with loopback() as made:
        yield made


@pytest.mark.parametrize("way", ways(256 << 10, 0), ids=lambda way: way.name)
def test_relays_carry_a_stream_whole(on_loopback: tuple[Stage, Sink], way: Way) -> None:
    assert measure(*on_loopback, way, TOTAL).mb_per_s > 0


def test_a_tcp_stream_is_carried_whole(on_loopback: tuple[Stage, Sink]) -> None:
    stage, sink = on_loopback
    with tcp_stream(stage, sink.path, "reno") as relays, Transfer(relays.inlet, sink, TOTAL) as transfer:
        assert transfer.finish(PATIENCE) > 0


def test_our_chain_carries_one_stream_after_another(on_loopback: tuple[Stage, Sink]) -> None:
    stage, sink = on_loopback
    with chain(stage, sink.path) as started:
        for _ in range(2):
            with Transfer(started.inlet, sink, TOTAL) as transfer:
                assert transfer.finish(PATIENCE) > 0
        assert all(peak > 0 for peak in started.peak_bytes().values())
        assert started.cpu_seconds() > 0


def test_a_stream_that_is_broken_is_not_measured(on_loopback: tuple[Stage, Sink]) -> None:
    stage, sink = on_loopback
    with tcp_stream(stage, sink.path, "reno") as relays, Transfer(relays.inlet, sink) as transfer:
        relays.processes[0].kill()
        with pytest.raises(LabError, match="broken"):
            transfer.rate(PATIENCE)

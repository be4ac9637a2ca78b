"""agent/hypervisor/sampling.py"""

from __future__ import annotations

from random import Random

import pytest

from agent.hypervisor.sampling import PAGE, SAMPLED, addresses, summarize

GIB = 2**30


@pytest.mark.parametrize("memory", [GIB, 2 * GIB, 3 * GIB, 4 * GIB, 64 * GIB])
def test_pages_are_taken_from_where_every_x86_machine_has_memory(memory: int) -> None:
    chosen = addresses(memory, Random(1))
    assert len(set(chosen)) == len(chosen) <= SAMPLED
    for at in chosen:
        assert at % PAGE == 0
        assert at < min(memory, 2 * GIB) or 4 * GIB <= at < 4 * GIB + memory - 3 * GIB


def test_a_large_vm_is_looked_at_above_4_gib_too() -> None:
    assert sum(at >= 4 * GIB for at in addresses(64 * GIB, Random(1))) > SAMPLED // 2


def test_a_vm_smaller_than_the_sample_is_looked_at_whole() -> None:
    assert sorted(addresses(3 * PAGE, Random(1))) == [0, PAGE, 2 * PAGE]


def test_pages_are_told_apart_by_what_they_hold() -> None:
    zeros, text, noise = bytes(PAGE), b"text" * (PAGE // 4), Random(1).randbytes(PAGE)

    found = summarize([zeros, text, zeros, noise])

    assert (found.pages_sampled, found.pages_zero, found.bytes_sampled) == (4, 2, 2 * PAGE)
    assert PAGE <= found.bytes_compressed < 1.1 * PAGE
    assert not found.HasField("dirty_rate")


def test_no_pages_say_nothing() -> None:
    assert (summarize([]).pages_sampled, summarize([bytes(PAGE)]).bytes_compressed) == (0, 0)

"""The hostile gateway of the lab flips one byte, once, and only where it is told to."""

from __future__ import annotations

import random
from typing import cast

import pytest

from gateway.tunnel.tunnel import Cargo, Tunnel
from landbridge.frame import Frame, FrameType
from landbridge.v1.channel_pb2 import ChannelKind, ChannelOpen
from tests.lab.hostile_gateway import Flipper, install

RPC, RAM, DISK = 1, 2, 3
PAYLOAD = random.Random(1).randbytes(65_536)


def opening(channel: int, kind: ChannelKind.ValueType) -> Frame:
    return Frame(FrameType.OPEN, channel, 0, ChannelOpen(migration="m-1", kind=kind).SerializeToString())


OPENINGS = [
    opening(RPC, ChannelKind.CHANNEL_KIND_RPC),
    opening(RAM, ChannelKind.CHANNEL_KIND_RAM),
    opening(DISK, ChannelKind.CHANNEL_KIND_DISK),
]


def data(channel: int, number: int, payload: bytes = PAYLOAD) -> Frame:
    return Frame(FrameType.DATA, channel, number * len(payload), payload)


def altered(flipper: Flipper, frames: list[Frame]) -> list[int]:
    """Which of these frames do not come out as they went in."""
    return [number for number, frame in enumerate(frames) if flipper(frame) != frame]


@pytest.mark.parametrize(("kind", "channel"), [("ram", RAM), ("disk", DISK)])
def test_one_frame_of_the_kind_is_altered_and_no_other(kind: str, channel: int) -> None:
    flipper = Flipper(kind, 65_537)
    frames = [data(c, n) for n in range(6) for c in (RPC, RAM, DISK)]
    assert altered(flipper, OPENINGS) == []
    (victim,) = altered(flipper, frames)
    assert frames[victim] == data(channel, 2)
    assert flipper.flipped


def test_it_differs_in_one_bit_and_keeps_its_place() -> None:
    flipper = Flipper("ram", 0)
    altered(flipper, OPENINGS)
    frame = data(RAM, 4)
    sent = flipper(frame)
    assert (sent.type, sent.channel, sent.position) == (frame.type, frame.channel, frame.position)
    differences = [a ^ b for a, b in zip(frame.payload, sent.payload, strict=True) if a != b]
    assert differences == [1]


def test_small_frames_and_frames_of_zeros_are_left_alone() -> None:
    flipper = Flipper("disk", 0)
    altered(flipper, OPENINGS)
    zero_pages = (bytes(5) + b"\x12\x30\x22\x00") * 2048
    frames = [data(DISK, 0, b"reply"), data(DISK, 1, bytes(65_536)), data(DISK, 2, zero_pages), data(DISK, 3)]
    assert altered(flipper, frames) == [3]


def test_a_number_that_is_given_to_a_channel_of_another_kind_is_no_longer_meant() -> None:
    flipper = Flipper("ram", 0)
    altered(flipper, [*OPENINGS, opening(RAM, ChannelKind.CHANNEL_KIND_RPC)])
    assert altered(flipper, [data(RAM, n) for n in range(3)]) == []


def test_installed_it_alters_what_goes_into_a_tunnel(monkeypatch: pytest.MonkeyPatch) -> None:
    put: list[Frame] = []

    def keep(tunnel: object, frame: Frame, cargo: object) -> bool:
        put.append(frame)
        return False

    monkeypatch.setattr(Tunnel, "put", keep)
    install(Flipper("ram", 65_536))
    sent = [*OPENINGS, data(RAM, 0), data(RAM, 1), data(RAM, 2)]
    for frame in sent:
        Tunnel.put(cast("Tunnel", None), frame, Cargo("migration", lambda _: None))
    assert [n for n, (a, b) in enumerate(zip(sent, put, strict=True)) if a != b] == [4]

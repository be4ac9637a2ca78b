"""python -m tests.attack.attacker ARENA.json: runs attacks where the destination's agent can be reached; one JSON line for each.

It is the site's gateway, as the agent sees it, and behind it the compromised source: what travels through the gateways is the same
bytes, for they know nothing of libvirt. It prepares a migration, opens its rpc channel with a good ticket, and says what it wants.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import secrets
import sys
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from agent.hypervisor import domain_xml as definitions
from agent.stream.libvirt_rpc import Message, MessageReader, Procedure, Status
from agent.stream.rpc_error import error_text
from certs.identity import Role
from certs.links import Target, dial
from certs.living import LivingIdentity
from certs.store import load_identity
from gateway.remote import WORK, AgentRemote
from landbridge import log
from landbridge.channel import Accepted, Channel, Reset
from landbridge.config import parse_address
from landbridge.errors import LandbridgeError
from landbridge.estimator import LARGEST_SEGMENT
from landbridge.frame import Frame
from landbridge.link import Link
from landbridge.receiving import Data
from landbridge.ticket import SECRET_SIZE, ticket
from landbridge.v1 import agent_pb2 as pb
from landbridge.v1.channel_pb2 import ChannelKind, ChannelOpen
from tests.attack.attacks import ATTACKS, CONTROL, Attack, End, linked, procedures_together
from tests.unit.rpc_made import CLOSE, OPEN, UNREGISTER, Vm, read

SITE, HOST = "west", "west-1"
# Seconds in which anything that is awaited has to happen.
PATIENCE = 30.0
IMAGE_SIZE = 1 << 20


class CutOffError(Exception):
    """The channel was reset; the reason."""


class HostileChannel:
    """The far end of a channel: any bytes, whole messages back. It is the receiver of its link."""

    def __init__(self, opening: ChannelOpen) -> None:
        self._loop = asyncio.get_running_loop()
        number = secrets.randbits(63) + 1
        self._channel = Channel(number, self._loop.time(), opening=opening.SerializeToString())
        self._messages: asyncio.Queue[Message | CutOffError] = asyncio.Queue()
        self._reader = MessageReader()
        self._link: Link | None = None
        self._is_open = asyncio.Event()

    async def open(self, target: Target) -> None:
        """Have it accepted."""
        self._link = await dial(target)
        self._channel.connect(self._loop.time())
        self._link.start(self)
        opened = asyncio.ensure_future(self._is_open.wait())
        cut_off = asyncio.ensure_future(self._messages.get())
        async with asyncio.timeout(PATIENCE):
            await asyncio.wait({opened, cut_off}, return_when=asyncio.FIRST_COMPLETED)
        opened.cancel()
        cut_off.cancel()
        if cut_off.done() and isinstance(first := cut_off.result(), CutOffError):
            raise first

    def send(self, data: bytes) -> None:
        """Say something."""
        for at in range(0, len(data), LARGEST_SEGMENT):
            self._channel.send_data(data[at : at + LARGEST_SEGMENT], self._loop.time())
        self._kick()

    async def receive(self) -> Message:
        """The next message that comes back. Raises CutOffError."""
        async with asyncio.timeout(PATIENCE):
            message = await self._messages.get()
        if isinstance(message, CutOffError):
            raise message
        return message

    async def call(self, raw: bytes) -> Message:
        """Say something that is honest, and wait for the answer to it."""
        self.send(raw)
        while (reply := await self.receive()).serial != read(raw).serial:
            pass
        return reply

    def hang_up(self) -> None:
        """Nothing more will be said."""
        self._channel.send_eof(self._loop.time())
        self._kick()

    def close(self) -> None:
        """Let go of the link."""
        if self._link is not None:
            self._link.abort("the attack is over")

    def _kick(self) -> None:
        if self._link is not None:
            self._link.kick()

    def next_frame(self, link: Link) -> Frame | None:
        """What the link asks."""
        del link
        return self._channel.next_frame(self._loop.time())

    def frame_received(self, link: Link, frame: Frame) -> None:
        """A frame of the agent."""
        now = self._loop.time()
        for event in self._channel.receive_frame(frame, now):
            match event:
                case Accepted():
                    self._is_open.set()
                case Data(data):
                    for message in self._reader.receive_data(data):
                        self._messages.put_nowait(message)
                    self._channel.delivered(len(data))
                case Reset(reason):
                    self._messages.put_nowait(CutOffError(reason))
        link.kick()

    def link_closed(self, link: Link, reason: str) -> None:
        """The agent has hung up."""
        del link
        self._messages.put_nowait(CutOffError(reason))


@dataclass(frozen=True)
class Arena:
    """Where the attacks take place."""

    identity: str
    host: str
    control: str
    stream: str
    # The definition of the VM, with `{name}`, `{uuid}` and `{image}` in it.
    domain: str
    images: str
    # A symbolic link out of the folder of kernels.
    link: str
    # What the recorder writes.
    recorded: str

    def vm(self, migration: str) -> Vm:
        """A VM of its own, as it is to be approved."""
        name = f"attack-{migration[:8]}"
        image = f"{self.images}/{name}.qcow2"
        domain = self.domain.format(name=name, uuid=migration, image=image)
        sockets = f"unix:///run/landbridge/{migration}"
        return Vm(name, migration, domain, f"{sockets}/ram.sock", f"{sockets}/disk.sock")


@dataclass
class Outcome:
    """What became of one attack."""

    name: str
    # How it ended, and what was told; empty `problem` if that is as it should be.
    end: str = ""
    told: str = ""
    problem: str = ""
    # What libvirtd got of it: honest calls.
    calls: int = 0


class Attacker:
    """Runs attacks, one after the other."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        gateway = LivingIdentity(load_identity(Path(arena.identity), datetime.now(UTC)))
        self._site = site = gateway.identity.site
        self._target = Target(f"host {arena.host}", parse_address(arena.stream), gateway, Role.HOST, site, arena.host)
        self._agent = AgentRemote(arena.host, parse_address(arena.control), gateway)
        # Honest calls that libvirtd has answered, by their digests; all of the attack under way.
        self._honest: list[str] = []

    async def run(self, attack: Attack) -> Outcome:
        """One attack, from its preparation until nothing of it is left."""
        outcome = Outcome(attack.name)
        recorded = len(self._recorded())
        self._honest = []
        migration = str(uuid.uuid4())
        try:
            await self._attack(attack, migration, outcome)
            assert outcome.end == attack.end.value, f"{outcome.end} instead of {attack.end.value}: {outcome.told}"
            assert re.search(attack.told, outcome.told), outcome.told
        except (AssertionError, LandbridgeError, TimeoutError, CutOffError) as error:
            outcome.problem = f"{type(error).__name__}: {error}"
        finally:
            await self._agent.ask(self._agent.stub.Cancel, pb.CancelRequest(migration=migration), WORK)
        got = self._recorded()[recorded:]
        outcome.calls = len(got)
        if got != self._honest and not outcome.problem:
            outcome.problem = f"libvirtd got {len(got)} messages, and {len(self._honest)} were honest"
        return outcome

    async def _attack(self, attack: Attack, migration: str, outcome: Outcome) -> None:
        vm, secret = self._arena.vm(migration), secrets.token_bytes(SECRET_SIZE)
        request = self._prepare_request(vm, vm.domain if attack.approves is None else attack.approves(vm), secret)
        try:
            await self._agent.ask(self._agent.stub.Prepare, request, WORK)
        except LandbridgeError as error:
            outcome.end, outcome.told = End.NOT_APPROVED.value, error.message
            return
        assert attack.approves is None, "it was approved"
        channel = HostileChannel(self._opening(vm, secret, 0))
        try:
            await channel.open(self._target)
            await self._speak(attack, vm, secret, channel, outcome)
            await self._is_over(attack, migration)
        finally:
            channel.close()

    async def _speak(self, attack: Attack, vm: Vm, secret: bytes, channel: HostileChannel, outcome: Outcome) -> None:
        before = attack.before(vm)
        await self._honestly(channel, before[:-1] if attack.races else before)
        try:
            if attack.second_channel:
                second = HostileChannel(self._opening(vm, secret, 1))
                try:
                    await second.open(self._target)
                finally:
                    second.close()
            elif attack.races:
                self._honest.append(_digest(before[-1]))
                channel.send(before[-1] + attack.sends(vm))
            else:
                channel.send(attack.sends(vm))
            if attack.end in {End.UNHEARD, End.HONEST}:
                outcome.end = attack.end.value
                channel.hang_up()
                return
            outcome.told = await self._refusals(channel, attack, vm)
        except CutOffError as error:
            outcome.end, outcome.told = End.CUT_OFF.value, str(error)
        else:
            outcome.end = End.ANSWERED.value
            await self._leave(attack, vm, channel)
        if attack.second_channel:
            await self._leave(attack, vm, channel)

    async def _refusals(self, channel: HostileChannel, attack: Attack, vm: Vm) -> str:
        """Wait until each call that was sent is refused; what is told of the last one. Raises CutOffError."""
        calls = list(MessageReader().receive_data(attack.sends(vm))) if attack.end is End.ANSWERED else [None]
        left, told, is_waiting = len(calls), "", attack.races
        while left or is_waiting:
            reply = await channel.receive()
            if reply.status == Status.OK:
                assert is_waiting, "it was answered well"
                is_waiting = False
                continue
            told = error_text(bytes(reply.payload))
            assert re.search(attack.told, told), told
            left -= 1
        return told

    async def _honestly(self, channel: HostileChannel, calls: Iterable[bytes]) -> None:
        for raw in calls:
            self._honest.append(_digest(raw))
            reply = await channel.call(raw)
            # What cancels is answered with an error, as it should be.
            cancels = read(raw).procedure == Procedure.DOMAIN_MIGRATE_FINISH3_PARAMS
            assert reply.status == Status.OK or cancels, error_text(bytes(reply.payload))

    async def _leave(self, attack: Attack, vm: Vm, channel: HostileChannel) -> None:
        """As libvirt does it: end QEMU, close the connection, hang up."""
        said = attack.before(vm)
        procedures_said = [read(raw).procedure for raw in said]
        is_waiting = Procedure.DOMAIN_MIGRATE_PREPARE3_PARAMS in procedures_said
        is_left = Procedure.CONNECT_UNREGISTER_CLOSE_CALLBACK in procedures_said
        is_finished = Procedure.DOMAIN_MIGRATE_FINISH3_PARAMS in procedures_said
        if is_waiting and not is_finished and not is_left:
            await self._honestly(channel, [vm.finish(1, serial=40)])
        if OPEN in said:
            await self._honestly(channel, [UNREGISTER, CLOSE])
        channel.hang_up()

    async def _is_over(self, attack: Attack, migration: str) -> None:
        """The agent has removed what it made, and says why, as an operator reads it."""
        async with asyncio.timeout(PATIENCE):
            async for shown in self._agent.follow(self._agent.stub.Watch, pb.WatchRequest(migration=migration)):
                if shown.stage == pb.Stage.STAGE_FAILED:
                    is_told = attack.second_channel or re.search(attack.told, shown.error)
                    assert is_told, f"the operator reads: {shown.error!r}"
                    return
        raise AssertionError("the migration has not ended")

    def _opening(self, vm: Vm, secret: bytes, index: int) -> ChannelOpen:
        opening = ChannelOpen(
            migration=vm.uuid,
            kind=ChannelKind.CHANNEL_KIND_RPC,
            index=index,
            source_site=SITE,
            source_host=HOST,
            destination_site=self._site,
            destination_host=self._arena.host,
            vm_uuid=vm.uuid,
            vm_name=vm.name,
        )
        opening.ticket = ticket(secret, opening)
        return opening

    def _prepare_request(self, vm: Vm, approved: str, secret: bytes) -> pb.PrepareRequest:
        described = definitions.facts(vm.domain)
        for disk in described.disks:
            disk.pool, disk.virtual_size = "default", IMAGE_SIZE
        return pb.PrepareRequest(
            migration=vm.uuid,
            role=pb.Role.ROLE_DESTINATION,
            vm=described,
            domain_xml=approved,
            destination_site=self._site,
            destination_host=self._arena.host,
            source_site=SITE,
            source_host=HOST,
            channel_secret=secret,
            outage_limit_ms=60_000,
        )

    def _recorded(self) -> list[str]:
        lines = Path(self._arena.recorded).read_text().splitlines()
        return [entry.get("sha256", f"{entry.get('rest')} bytes") for entry in map(json.loads, lines)]

    async def close(self) -> None:
        """Give up the connections."""
        await self._agent.close()


def _digest(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


async def main(arena: Arena, wanted: Sequence[str]) -> None:
    """Run the attacks whose names have one of some words in them, or all."""
    attacker = Attacker(arena)
    for attack in (CONTROL, *ATTACKS, linked(arena.link), *procedures_together()):
        if not wanted or attack is CONTROL or any(word in attack.name for word in wanted):
            outcome: dict[str, Any] = vars(await attacker.run(attack))
            print(json.dumps(outcome), flush=True)
    await attacker.close()


if __name__ == "__main__":
    log.configure("attacker")  # standard output has the outcomes, and nothing else
    asyncio.run(main(Arena(**json.loads(Path(sys.argv[1]).read_text())), sys.argv[2:]))

"""A source host that lies: at preflight, to libvirt at the destination, and after it was found out."""

from __future__ import annotations

import secrets
import uuid
from typing import Any

import pytest
from structlog.testing import capture_logs

from agent import refusals
from agent.config import FirewallSettings
from agent.hypervisor import domain_xml as definitions
from agent.hypervisor.base import Presence
from agent.stream.libvirt_rpc import Status
from certs.identity import Role
from certs.links import Target
from certs.living import LivingIdentity
from gateway.migration.states import State
from gateway.remote import WORK, AgentRemote
from landbridge.errors import PermissionDenied
from landbridge.ticket import SECRET_SIZE, ticket
from landbridge.v1 import agent_pb2 as pb
from landbridge.v1.channel_pb2 import ChannelKind, ChannelOpen
from landbridge.v1.types_pb2 import Vm
from tests.attack.attacker import CutOffError, HostileChannel
from tests.system.sites import TwoSites, eventually
from tests.system.test_failure import failed
from tests.unit.rpc_made import GREETING, call

pytestmark = pytest.mark.timeout(30)

DISK = bytes(range(256)) * 64
EMULATOR = "emulator '/tmp/x' is not allowed (domain/devices/emulator)"


def another_emulator(xml: str) -> str:
    return xml.replace("/usr/bin/qemu-system-x86_64", "/tmp/x")  # noqa: S108 - it is refused


def security(logs: list[Any], event: str) -> list[str]:
    return [entry["reason"] for entry in logs if entry["event"] == event and entry["security"]]


async def test_another_definition_than_the_approved_one_is_refused_and_the_operator_reads_why(two: TwoSites) -> None:
    vm = two.fra.hypervisor.add_vm("web-01", disk=DISK)
    two.fra.hypervisor.forge = another_emulator
    with capture_logs() as logs:
        id_ = await two.fra.operator.migrate("web-01", "ams")
        ended = await failed(two, id_, vm)
    assert f"Landbridge refused DOMAIN_MIGRATE_PREPARE3_PARAMS: {EMULATOR}" in ended.reason
    assert ended.reason.count("Landbridge refused") == 1
    assert "land" not in two.ams.hypervisor.asked
    assert any(EMULATOR in reason for reason in security(logs, "firewall.refused"))
    two.fra.hypervisor.forge = None
    id_ = await two.fra.operator.migrate("web-01", "ams")
    assert State((await two.fra.operator.ended(id_)).state) is State.COMPLETED


async def test_what_this_host_does_not_give_is_a_finding_of_preflight(two: TwoSites) -> None:
    two.fra.hypervisor.add_vm("web-01", disk=DISK, extra="<interface type='user'/>")
    found = (await two.fra.operator.preflight("web-01", "ams")).findings
    assert [finding.code for finding in found] == ["not-allowed"]
    assert "ams-1 does not take web-01 in: interface type 'user' is not allowed" in found[0].message
    assert "[firewall] of agent.toml on ams-1" in found[0].remedy


async def test_where_nothing_is_enforced_the_same_passes_and_is_told(two: TwoSites) -> None:
    two.ams.firewall = FirewallSettings(mode="observe")
    await two.ams.agent.restart()
    two.fra.hypervisor.add_vm("web-01", disk=DISK, extra="<interface type='user'/>")
    two.fra.hypervisor.forge = lambda xml: xml.replace("<vcpu>1</vcpu>", "<vcpu>2</vcpu>")
    with capture_logs() as logs:
        id_ = await two.fra.operator.migrate("web-01", "ams")
        ended = await two.fra.operator.ended(id_)
    assert State(ended.state) is State.COMPLETED, ended.reason
    told = security(logs, "firewall.would_refuse")
    assert any("does not take web-01 in: interface type 'user'" in reason for reason in told)
    assert any("Landbridge refused DOMAIN_MIGRATE_PREPARE3_PARAMS: interface type 'user'" in reason for reason in told)
    assert security(logs, "firewall.refused") == []


class Attacked:
    """A destination that was told of a VM by one who has the right to."""

    def __init__(self, two: TwoSites) -> None:
        self.two = two
        self.agent = AgentRemote("ams-1", two.ams.addresses["control"], LivingIdentity(two.ams.identity("gw-1")))
        self.id = str(uuid.uuid4())
        self.secret = secrets.token_bytes(SECRET_SIZE)

    async def prepare(
        self, xml: str, vm: Vm | None = None, role: pb.Role.ValueType = pb.Role.ROLE_DESTINATION, **said: Any
    ) -> str:
        """The definition with the host's names. `said` is said of the VM, whatever the definition has."""
        vm = definitions.facts(xml) if vm is None else Vm.FromString(vm.SerializeToString())
        for name, value in said.items():
            setattr(vm, name, value)
        request = pb.PrepareRequest(
            migration=self.id,
            role=role,
            vm=vm,
            domain_xml=xml,
            source_site="fra",
            source_host="fra-1",
            destination_site="ams",
            destination_host="ams-1",
            channel_secret=self.secret,
            outage_limit_ms=60_000,
        )
        return (await self.agent.ask(self.agent.stub.Prepare, request, WORK)).domain_xml

    async def channel(self, index: int = 0) -> HostileChannel:
        opening = ChannelOpen(
            migration=self.id,
            kind=ChannelKind.CHANNEL_KIND_RPC,
            index=index,
            source_site="fra",
            source_host="fra-1",
            destination_site="ams",
            destination_host="ams-1",
        )
        opening.ticket = ticket(self.secret, opening)
        gateway = LivingIdentity(self.two.ams.identity("gw-1"))
        channel = HostileChannel(opening)
        await channel.open(Target("host ams-1", self.two.ams.addresses["stream"], gateway, Role.HOST, "ams", "ams-1"))
        return channel


async def test_whoever_stays_after_a_refusal_is_cut_off_and_nothing_is_left(
    two: TwoSites, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusals, "REFUSED_PATIENCE", 0.2)
    attacked = Attacked(two)
    vm = two.fra.hypervisor.add_vm("web-01")
    await attacked.prepare(two.fra.hypervisor.migratable_xml(vm))
    channel = await attacked.channel()
    for raw in GREETING:
        assert (await channel.call(raw)).status == Status.OK
    assert (await channel.call(call(10, serial=50))).status == Status.ERROR
    with pytest.raises(CutOffError, match=r"Landbridge refused .*procedure 10 is not part of a migration"):
        await channel.receive()
    await eventually(lambda: two.ams.is_clean(vm))
    assert two.ams.hypervisor.presence(vm) is Presence.ABSENT
    channel.close()
    await attacked.agent.close()


async def test_one_conversation_has_one_channel(two: TwoSites) -> None:
    attacked = Attacked(two)
    vm = two.fra.hypervisor.add_vm("web-01")
    await attacked.prepare(two.fra.hypervisor.migratable_xml(vm))
    with pytest.raises(CutOffError, match="has one rpc channel on host ams-1"):
        await attacked.channel(1)
    await attacked.agent.close()


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ({"name": "other"}, "its name is web-01, and the source's host says other"),
        ({"uuid": str(uuid.UUID(int=1))}, "its UUID is"),
        ({"memory": 1}, "its memory is 1048576, and the source's host says 1"),
    ],
)
async def test_a_definition_of_another_vm_than_was_said_is_not_approved(
    two: TwoSites, said: dict[str, Any], says: str
) -> None:
    attacked = Attacked(two)
    vm = two.fra.hypervisor.add_vm("web-01")
    with capture_logs() as logs, pytest.raises(PermissionDenied, match=says):
        await attacked.prepare(two.fra.hypervisor.migratable_xml(vm), **said)
    assert len(security(logs, "firewall.refused")) == 1
    assert two.ams.is_clean(vm)
    await attacked.agent.close()

"""What is where: hosts, VMs and sites, of which some do not answer."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway.config import SiteSettings
from gateway.migration import inventory as module
from gateway.migration.inventory import Inventory, RemoteSite, SiteFacts, fill_offset
from gateway.remote import AgentRemote, PeerRemote, clock_offset_ms
from landbridge.config import Address
from landbridge.errors import Conflict, HostUnreachable, LandbridgeError, NotFound, Unreachable, UsageError
from landbridge.v1 import agent_pb2
from landbridge.v1.peer_pb2 import GetSiteRequest, GetSiteResponse
from landbridge.v1.types_pb2 import Host, Vm, VmState

NOW = datetime(2030, 1, 1, tzinfo=UTC)
RUNNING, MOVED, INCOMING = VmState.VM_STATE_RUNNING, VmState.VM_STATE_MOVED, VmState.VM_STATE_INCOMING


class FakeRemote:
    """Answers what the test says, or does not answer."""

    def __init__(self, failure: LandbridgeError | None = None, **answers: Any) -> None:
        self.stub = SimpleNamespace(**{name: name for name in ("GetHost", "ListVms", "GetSite")})
        self._failure = failure
        self._answers = answers

    async def ask(self, method: str, request: Any, timeout: float = 0) -> Any:
        if self._failure is not None:
            raise self._failure
        answer = self._answers[method]
        return answer(request) if callable(answer) else answer


def host(name: str, *vms: Vm, ahead_s: int = 0) -> AgentRemote:
    facts = Host(name=name, memory=1)
    facts.clock.FromDatetime(NOW + timedelta(seconds=ahead_s))
    for vm in vms:
        vm.host = name
    answers: dict[str, Any] = {
        "GetHost": lambda _: agent_pb2.GetHostResponse(host=facts),
        "ListVms": agent_pb2.ListVmsResponse(vms=vms),
    }
    return cast("AgentRemote", FakeRemote(**answers))


def silent(name: str) -> AgentRemote:
    return cast("AgentRemote", FakeRemote(HostUnreachable(f"host {name} does not answer")))


def site(remote: FakeRemote) -> RemoteSite:
    address = Address("192.0.2.1", 7443)
    settings = SiteSettings(
        name="ams", peers=(address,), tunnel=(address,), pools={"a": "b"}, networks={"lan": "office"}
    )
    return RemoteSite(cast("PeerRemote", remote), settings)


def fra(sites: dict[str, RemoteSite] | None = None, **hosts: AgentRemote) -> Inventory:
    return Inventory("fra", {name.replace("_", "-"): agent for name, agent in hosts.items()}, sites or {})


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "now", lambda: NOW)


async def test_every_host_is_listed_and_one_that_does_not_answer_says_why() -> None:
    hosts = await fra(fra_1=host("fra-1", ahead_s=3), fra_2=silent("fra-2")).hosts()
    assert [(h.name, h.unreachable, h.clock_offset_ms) for h in hosts] == [
        ("fra-1", "", 3000),
        ("fra-2", "host fra-2 does not answer", 0),
    ]


async def test_vms_of_all_hosts_are_listed_with_the_hosts_that_did_not_answer() -> None:
    one = host("fra-1", Vm(name="a"), Vm(name="b"))
    vms, unreachable = await fra(fra_1=one, fra_2=silent("fra-2"), fra_3=host("fra-3", Vm(name="c"))).vms()
    assert [vm.name for vm in vms] == ["a", "b", "c"]
    assert [h.name for h in unreachable] == ["fra-2"]


@pytest.mark.parametrize("wanted", ["web", "u-1", "fra-1/web", "fra-1/u-1"])
async def test_a_vm_is_found_by_name_by_uuid_and_on_its_host(wanted: str) -> None:
    found = await fra(fra_1=host("fra-1", Vm(name="web", uuid="u-1", state=RUNNING))).find_vm(wanted)
    assert (found.name, found.host) == ("web", "fra-1")


@pytest.mark.parametrize("wanted", ["webs", "fra-2/web", "", "/"])
async def test_what_is_not_there_is_not_found_and_silent_hosts_are_named(wanted: str) -> None:
    inventory = fra(fra_1=host("fra-1", Vm(name="web", uuid="u-1")), fra_2=silent("fra-2"))
    with pytest.raises(NotFound, match="fra-2 did not answer"):
        await inventory.find_vm(wanted)


async def test_a_name_on_two_hosts_is_refused_until_the_host_is_said() -> None:
    inventory = fra(fra_1=host("fra-1", Vm(name="web", uuid="1")), fra_2=host("fra-2", Vm(name="web", uuid="2")))
    with pytest.raises(Conflict, match=r"say which one \(fra-1/web, fra-2/web\)"):
        await inventory.find_vm("web")
    assert (await inventory.find_vm("fra-2/web")).uuid == "2"


@pytest.mark.parametrize("state", [MOVED, INCOMING])
async def test_a_copy_that_does_not_count_is_passed_over_for_the_vm_itself(state: VmState.ValueType) -> None:
    inventory = fra(
        fra_1=host("fra-1", Vm(name="web", uuid="1", state=state)),
        fra_2=host("fra-2", Vm(name="web", uuid="1", state=RUNNING)),
    )
    assert (await inventory.find_vm("web")).host == "fra-2"


async def test_a_moved_vm_alone_is_found_so_that_preflight_can_say_where_it_went() -> None:
    assert (await fra(fra_1=host("fra-1", Vm(name="web", state=MOVED))).find_vm("web")).state == MOVED


def test_unknown_hosts_and_sites_are_told_with_those_that_there_are() -> None:
    inventory = fra({"ams": site(FakeRemote())}, fra_1=silent("fra-1"))
    with pytest.raises(NotFound, match="no host 'fra-9'; it has fra-1"):
        inventory.agent("fra-9")
    with pytest.raises(NotFound, match="not joined with a site 'lon'; it is joined with ams"):
        inventory.site_named("lon")
    with pytest.raises(UsageError, match="the VM's own site"):
        inventory.site_named("fra")
    assert inventory.site_names() == ["ams"]


def test_names_are_mapped_as_configured() -> None:
    mapping = site(FakeRemote()).mapping()
    assert (dict(mapping.pools), dict(mapping.networks)) == ({"a": "b"}, {"lan": "office"})


async def test_a_remote_hosts_clock_is_held_against_ours_by_way_of_its_gateways() -> None:
    def answer(request: GetSiteRequest) -> GetSiteResponse:
        response = GetSiteResponse(name="ams", protocol_version=1)
        response.clock.FromDatetime(NOW + timedelta(seconds=5))
        if request.hosts:
            response.hosts.add(name="ams-1", clock_offset_ms=-1500)
        return response

    facts = await fra({"ams": site(FakeRemote(GetSite=answer))}).remote_site("ams")
    assert facts.clock_offset_ms == 5000
    assert facts.site.hosts[0].clock_offset_ms == 3500
    check = agent_pb2.CheckIncomingResponse(host=Host(name="ams-1"))
    fill_offset(check, facts)
    assert check.host.clock_offset_ms == 3500


def test_the_offset_of_a_host_that_a_site_did_not_tell_of_stays_open() -> None:
    check = agent_pb2.CheckIncomingResponse(host=Host(name="ams-9"))
    fill_offset(check, SiteFacts(GetSiteResponse(), 0, 0))
    assert check.host.clock_offset_ms == 0


async def test_a_site_that_does_not_answer_is_unreachable() -> None:
    with pytest.raises(Unreachable, match="site ams is away"):
        await fra({"ams": site(FakeRemote(Unreachable("site ams is away")))}).remote_site("ams")


def test_a_clock_is_read_in_the_middle_of_the_round_trip() -> None:
    asked, answered = NOW, NOW + timedelta(milliseconds=100)
    assert clock_offset_ms(asked, answered, NOW + timedelta(milliseconds=50)) == 0
    assert clock_offset_ms(asked, answered, NOW + timedelta(seconds=1)) == 950
    assert clock_offset_ms(asked, answered, NOW - timedelta(seconds=1)) == -1050


async def test_this_site_tells_its_hosts_only_if_it_is_asked_to() -> None:
    inventory = fra(fra_1=host("fra-1"))
    assert [h.name for h in (await inventory.own_site(hosts=True)).hosts] == ["fra-1"]
    own = await inventory.own_site(hosts=False)
    assert (own.name, list(own.hosts), own.protocol_version) == ("fra", [], module.PROTOCOL_VERSION)

"""What is where: this site's hosts and VMs, as its agents tell, and the other sites, as their gateways tell."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version

from gateway.config import SiteSettings
from gateway.remote import AgentRemote, PeerRemote, clock_offset_ms, now
from landbridge.errors import Conflict, LandbridgeError, NotFound, UsageError
from landbridge.v1 import agent_pb2
from landbridge.v1.peer_pb2 import GetSiteRequest, GetSiteResponse
from landbridge.v1.types_pb2 import Host, Vm, VmState

# The version of landbridge.v1.Peer that this gateway speaks.
PROTOCOL_VERSION = 1


@dataclass(frozen=True)
class RemoteSite:
    """Another site: how to ask it, what it answers, and how our names are called there."""

    remote: PeerRemote
    settings: SiteSettings

    def mapping(self) -> agent_pb2.Mapping:
        """Pools and networks."""
        return agent_pb2.Mapping(pools=self.settings.pools, networks=self.settings.networks)


@dataclass(frozen=True)
class SiteFacts:
    """What a site's gateway answered, and how its clock and ours differ."""

    site: GetSiteResponse
    # Its clock minus ours.
    clock_offset_ms: int
    round_trip_ms: int


class Inventory:
    """Asked anew each time: nothing here is remembered."""

    def __init__(self, site: str, hosts: Mapping[str, AgentRemote], sites: Mapping[str, RemoteSite]) -> None:
        self.site = site
        self._hosts = dict(hosts)
        self._sites = dict(sites)

    def add_host(self, name: str, agent: AgentRemote) -> None:
        """A host has come, or has a new address. Calls that are under way go on at the old one."""
        self._hosts[name] = agent

    def remove_host(self, name: str) -> None:
        """A host has gone. Calls that are under way go on."""
        self._hosts.pop(name, None)

    def remove_site(self, name: str) -> None:
        """A site has left, or was left. Calls that are under way go on."""
        self._sites.pop(name, None)

    def add_site(self, name: str, site: RemoteSite) -> None:
        """A site has joined, or has new addresses. Calls that are under way go on at the old ones."""
        self._sites[name] = site

    def agent(self, host: str) -> AgentRemote:
        """The agent of a host of this site. Raises NotFound."""
        if host not in self._hosts:
            known = ", ".join(sorted(self._hosts)) or "none"
            raise NotFound(f"site {self.site} has no host {host!r}; it has {known}")
        return self._hosts[host]

    def site_named(self, name: str) -> RemoteSite:
        """Another site. Raises NotFound, or UsageError for this one."""
        if name == self.site:
            raise UsageError(f"{name} is the VM's own site; name another one with --to, see `landbridge sites`")
        if name not in self._sites:
            known = ", ".join(sorted(self._sites)) or "none"
            raise NotFound(f"site {self.site} is not joined with a site {name!r}; it is joined with {known}")
        return self._sites[name]

    def site_names(self) -> list[str]:
        """The other sites."""
        return sorted(self._sites)

    def peers(self, is_worth_asking: Callable[[str], bool]) -> dict[str, PeerRemote]:
        """How the other sites are asked. A connection that was tried in vain is not tried again for seconds, by nobody."""
        return {name: site.remote for name, site in self._sites.items() if is_worth_asking(name)}

    async def hosts(self) -> list[Host]:
        """Every host of this site; one that does not answer says why in `unreachable`."""
        return list(await asyncio.gather(*(self._host(*each) for each in sorted(self._hosts.items()))))

    async def _host(self, name: str, agent: AgentRemote) -> Host:
        asked = now()
        try:
            host = (await agent.ask(agent.stub.GetHost, agent_pb2.GetHostRequest())).host
        except LandbridgeError as error:
            return Host(site=self.site, name=name, unreachable=error.message)
        host.clock_offset_ms = clock_offset_ms(asked, now(), host.clock.ToDatetime(asked.tzinfo))
        return host

    async def vms(self) -> tuple[list[Vm], list[Host]]:
        """Every VM of this site, and the hosts that did not answer."""
        answers = await asyncio.gather(*(self._vms(*each) for each in sorted(self._hosts.items())))
        found = [vm for answer in answers if isinstance(answer, list) for vm in answer]
        return found, [answer for answer in answers if isinstance(answer, Host)]

    async def _vms(self, name: str, agent: AgentRemote) -> list[Vm] | Host:
        try:
            return list((await agent.ask(agent.stub.ListVms, agent_pb2.ListVmsRequest())).vms)
        except LandbridgeError as error:
            return Host(site=self.site, name=name, unreachable=error.message)

    async def find_vm(self, wanted: str) -> Vm:
        """A VM by name, UUID, or HOST/NAME. Raises NotFound, or Conflict if several hosts have one of that name."""
        host, _, name = wanted.rpartition("/")
        vms, unreachable = await self.vms()
        found = [vm for vm in vms if name in {vm.name, vm.uuid} and host in {"", vm.host}]
        here = [vm for vm in found if vm.state not in {VmState.VM_STATE_MOVED, VmState.VM_STATE_INCOMING}] or found
        if len(here) == 1:
            return here[0]
        if here:
            hosts = ", ".join(f"{vm.host}/{vm.name}" for vm in here)
            raise Conflict(f"several hosts of site {self.site} have a VM {name}: say which one ({hosts})")
        silent = f" (and {', '.join(h.name for h in unreachable)} did not answer)" if unreachable else ""
        raise NotFound(f"no host of site {self.site} has a VM {wanted!r}{silent}; see `landbridge vms`")

    async def own_site(self, *, hosts: bool) -> GetSiteResponse:
        """What this gateway tells other gateways of its site."""
        response = GetSiteResponse(
            name=self.site,
            gateway_version=version("landbridge"),
            protocol_version=PROTOCOL_VERSION,
            hosts=await self.hosts() if hosts else [],
        )
        response.clock.GetCurrentTime()
        return response

    async def remote_site(self, name: str) -> SiteFacts:
        """What another site's gateway tells; its hosts' clock offsets are against this gateway's clock. Raises Unreachable."""
        remote = self.site_named(name).remote
        # The first answer wakes connections at the other site; the second one's round trip is the network's.
        site = await remote.ask(remote.stub.GetSite, GetSiteRequest(hosts=True))
        asked = now()
        clock = await remote.ask(remote.stub.GetSite, GetSiteRequest())
        answered = now()
        offset = clock_offset_ms(asked, answered, clock.clock.ToDatetime(asked.tzinfo))
        for host in site.hosts:
            host.clock_offset_ms += offset
        return SiteFacts(site, offset, round((answered - asked).total_seconds() * 1000))


def fill_offset(check: agent_pb2.CheckIncomingResponse, facts: SiteFacts) -> None:
    """Take the host's clock offset from what its site told: a preflight check does not measure it."""
    for host in facts.site.hosts:
        if host.name == check.host.name:
            check.host.clock_offset_ms = host.clock_offset_ms

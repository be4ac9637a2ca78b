"""Preflight's other half: asks everybody for the facts that `preflight` holds against each other."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass

from gateway.migration import estimate, preflight
from gateway.migration.inventory import PROTOCOL_VERSION, Inventory, SiteFacts, fill_offset
from gateway.migration.ledger import Ledger, has_ended
from gateway.remote import FACTS, WORK
from gateway.tunnel.tunnels import Tunnels
from landbridge.errors import LandbridgeError, NotFound, Unreachable
from landbridge.v1 import agent_pb2
from landbridge.v1.peer_pb2 import PeerCheckIncomingRequest
from landbridge.v1.types_pb2 import Estimate, Finding, Host, Measurement, Policy, Severity, Vm


@dataclass
class Preflight:
    """What preflight found, and on which host it settled."""

    vm: Vm
    destination_host: str
    findings: list[Finding]
    domain_xml: str = ""
    clock_offset_ms: int = 0
    # None where a finding is an error.
    estimate: Estimate | None = None


@dataclass(frozen=True)
class Survey:
    """Looks at both sites on behalf of an operator; changes nothing."""

    ledger: Ledger
    inventory: Inventory
    tunnels: Tunnels

    async def preflight(self, wanted: str, site: str, host: str, policy: Policy) -> Preflight:
        """Look for every reason why the migration would not work. Raises NotFound for an unknown VM, site or host."""
        self.inventory.site_named(site)
        vm = await self.inventory.find_vm(wanted)
        # It takes a second, as long as all else together.
        measuring = asyncio.create_task(self._measure(vm), name=f"measurement of {vm.name}")
        try:
            return await self._preflight(vm, site, host, policy, measuring)
        finally:
            measuring.cancel()

    async def _preflight(
        self, vm: Vm, site: str, host: str, policy: Policy, measuring: asyncio.Task[Measurement]
    ) -> Preflight:
        remote = self.inventory.site_named(site)
        agent = self.inventory.agent(vm.host)
        try:
            facts = await self.inventory.remote_site(site)
        except Unreachable as error:
            finding = Finding(
                code="site-unreachable",
                severity=Severity.SEVERITY_ERROR,
                message=f"site {site} cannot be reached: {error.message}",
                remedy="see whether its gateway runs, and whether the WAN is up (landbridge sites)",
            )
            return Preflight(vm, host, [finding])
        hosts, silent = candidates(facts, site, host)
        if not hosts:
            return Preflight(vm, host, silent)
        inspected = await agent.ask(agent.stub.InspectVm, agent_pb2.InspectVmRequest(vm=vm.uuid), WORK)
        source = next(h for h in await self.inventory.hosts() if h.name == vm.host)
        check = agent_pb2.CheckIncomingRequest(
            vm=inspected.vm, domain_xml=inspected.domain_xml, mapping=remote.mapping()
        )
        under_way = next(
            (r.migration.id for r in self.ledger.rows() if r.migration.vm_uuid == vm.uuid and not has_ended(r)),
            None,
        )
        results = []
        for candidate in hosts:
            request = PeerCheckIncomingRequest(host=candidate.name, check=check)
            answer = (await remote.remote.ask(remote.remote.stub.CheckIncoming, request, WORK)).check
            fill_offset(answer, facts)
            findings = preflight.check(
                preflight.Facts(
                    inspected.vm,
                    source,
                    answer,
                    remote.mapping(),
                    PROTOCOL_VERSION,
                    facts.site.protocol_version,
                    under_way,
                    policy,
                )
            )
            offset = answer.host.clock_offset_ms - source.clock_offset_ms
            results.append(Preflight(inspected.vm, candidate.name, findings, inspected.domain_xml, offset))
            if not preflight.refuses(findings):
                self._estimate(results[-1], site, facts.round_trip_ms, policy, await measuring)
                return results[-1]
        return results[0]

    async def _measure(self, vm: Vm) -> Measurement:
        """How the VM's memory behaves; nothing, if the agent cannot measure it."""
        agent = self.inventory.agent(vm.host)
        with contextlib.suppress(LandbridgeError):
            request = agent_pb2.MeasureVmRequest(vm=vm.uuid)
            return (await agent.ask(agent.stub.MeasureVm, request, FACTS)).measurement
        return Measurement()

    def _estimate(self, found: Preflight, site: str, rtt_ms: int, policy: Policy, measurement: Measurement) -> None:
        """Add what the migration will take."""
        vm = found.vm
        rate, source = self.tunnels.rate(site)
        memory, disks = estimate.facts_of(vm)
        coded = self.tunnels.is_coded(site)
        made = estimate.estimate(estimate.Facts(memory, disks, measurement, rate, source, rtt_ms, policy, coded))
        found.findings += estimate.check(made, vm, policy)
        found.estimate = made


def candidates(facts: SiteFacts, site: str, host: str) -> tuple[list[Host], list[Finding]]:
    """The hosts to try, the one with most free memory first; or, if none answers, why. Raises NotFound for an unknown host."""
    known = {h.name: h for h in facts.site.hosts}
    if host and host not in known:
        raise NotFound(f"site {site} has no host {host!r}; it has {', '.join(sorted(known)) or 'none'}")
    wanted = [known[host]] if host else sorted(known.values(), key=lambda h: -h.memory_free)
    silent = [
        Finding(
            code="host-unreachable",
            severity=Severity.SEVERITY_ERROR,
            message=f"host {h.name} of site {site} cannot be reached: {h.unreachable}",
            remedy="see whether its agent runs, or choose another host",
        )
        for h in wanted
        if h.unreachable
    ]
    return [h for h in wanted if not h.unreachable], silent

"""Preflight's other half: asks everybody for the facts that `preflight` holds against each other."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass

from gateway.authorization.authority import Authority
from gateway.authorization.request import domain_digest, mapping_digest
from gateway.migration import estimate, preflight, proof, verdicts
from gateway.migration.inventory import PROTOCOL_VERSION, Inventory, SiteFacts, fill_offset
from gateway.migration.ledger import Ledger, has_ended
from gateway.migration.stranded import Stranded
from gateway.remote import FACTS, WORK
from gateway.tunnel.tunnels import Tunnels
from landbridge.errors import LandbridgeError, NotFound, Unreachable
from landbridge.v1 import agent_pb2
from landbridge.v1.decision_pb2 import Decision, Verdict
from landbridge.v1.peer_pb2 import PeerAuthorizeRequest, PeerCheckIncomingRequest
from landbridge.v1.types_pb2 import Estimate, Finding, Host, Measurement, Migration, Policy, Severity, Vm


@dataclass(frozen=True)
class Asked:
    """Who asks for a migration (a SPIFFE ID), why the glass is to be broken for it (empty: it is not), and why the VM is to move."""

    requester: str
    break_glass: str = ""
    purpose: str = ""


@dataclass
class Preflight:
    """What preflight found, and on which host it settled."""

    vm: Vm
    destination_host: str
    findings: list[Finding]
    # What is asked for, and what the policies of both sites say, this site's first; none where no host could be looked at.
    proposal: Migration | None = None
    decisions: tuple[Decision, ...] = ()
    clock_offset_ms: int = 0
    # None where a finding is an error, or while it is made: then a task that ends with it and with what is to be said of it.
    estimate: Estimate | None = None
    estimating: asyncio.Task[tuple[Estimate, list[Finding]]] | None = None

    async def complete(self) -> None:
        """Wait until the guest was measured, and add the estimate."""
        if self.estimating is not None:
            self.estimate, findings = await self.estimating
            self.findings += findings
            self.estimating = None

    def give_up(self) -> None:
        """Nobody wants the estimate any more."""
        if self.estimating is not None:
            self.estimating.cancel()


@dataclass(frozen=True)
class Survey:
    """Looks at both sites on behalf of an operator; changes nothing."""

    ledger: Ledger
    inventory: Inventory
    tunnels: Tunnels
    authority: Authority
    stranded: Stranded

    async def preflight(self, wanted: str, site: str, host: str, policy: Policy, asked: Asked) -> Preflight:
        """Look for every reason why the migration would not work. Raises NotFound for an unknown VM, site or host.

        The estimate may still be in the making: no reason comes of it, and a move need not wait for it. See `Preflight.complete`.
        """
        self.inventory.site_named(site)
        vm = await self.inventory.find_vm(wanted)
        # It takes a second, longer than all else together.
        measuring = asyncio.create_task(self._measure(vm), name=f"measurement of {vm.name}")
        found: Preflight | None = None
        try:
            found = await self._preflight(vm, site, host, policy, asked, measuring)
            return found
        finally:
            if found is None or found.estimating is None:
                measuring.cancel()

    async def _preflight(
        self, vm: Vm, site: str, host: str, policy: Policy, asked: Asked, measuring: asyncio.Task[Measurement]
    ) -> Preflight:
        remote = self.inventory.site_named(site)
        agent = self.inventory.agent(vm.host)
        facts, inspected, own_hosts = await asyncio.gather(
            self._facts(site), agent.ask(agent.stub.InspectVm, _inspection(vm), WORK), self.inventory.hosts()
        )
        if isinstance(facts, Unreachable):
            return Preflight(vm, host, [verdicts.unreachable(site, facts.message)])
        hosts, silent = candidates(facts, site, host)
        if not hosts:
            return Preflight(vm, host, silent)
        source = next(h for h in own_hosts if h.name == vm.host)
        check = agent_pb2.CheckIncomingRequest(
            vm=inspected.vm, domain_xml=inspected.domain_xml, mapping=remote.mapping()
        )
        under_way = await self._under_way(vm)
        results = []
        for candidate in hosts:
            proposal = self.proposal(inspected.vm, inspected.domain_xml, site, candidate.name, policy, asked)
            decisions = await self.judge(proposal)
            refused = verdicts.findings(decisions)
            if preflight.refuses(refused):
                # Where it may not go, nothing more is told of it.
                results.append(Preflight(inspected.vm, candidate.name, refused, proposal, decisions))
                continue
            request = PeerCheckIncomingRequest(host=candidate.name, check=check, migration=proposal)
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
                    proof.is_wanted(Migration(policy=policy, decisions=decisions)),
                )
            )
            offset = answer.host.clock_offset_ms - source.clock_offset_ms
            findings = sorted([*refused, *findings], key=lambda finding: -finding.severity)
            results.append(Preflight(inspected.vm, candidate.name, findings, proposal, decisions, offset))
            if not preflight.refuses(findings):
                making = self._estimate(inspected.vm, site, facts.round_trip_ms, policy, measuring)
                results[-1].estimating = asyncio.create_task(making, name=f"estimate of {vm.name}")
                return results[-1]
        return results[0]

    async def _under_way(self, vm: Vm) -> str | None:
        """The migration of a VM that has not ended, by its id."""
        for row in self.ledger.rows():
            if row.migration.vm_uuid == vm.uuid and not has_ended(row):
                if not row.coordinating:
                    await self.stranded.catch_up(row)
                if not has_ended(row):
                    return row.migration.id
        return None

    async def _facts(self, site: str) -> SiteFacts | Unreachable:
        """What the other site tells of itself, or why it does not."""
        try:
            return await self.inventory.remote_site(site)
        except Unreachable as error:
            return error

    async def explain(self, wanted: str, site: str, host: str, policy: Policy, asked: Asked) -> Preflight:
        """What the policies of both sites say to a migration; nothing else is looked at.

        Where the gateway chooses the host, it is the first that is not refused. A site that cannot be reached is a finding.
        """
        self.inventory.site_named(site)
        vm = await self.inventory.find_vm(wanted)
        agent = self.inventory.agent(vm.host)
        inspected = await agent.ask(agent.stub.InspectVm, _inspection(vm), WORK)
        hosts = [host]
        unreachable: list[Finding] = []
        if not host:
            try:
                found, unreachable = candidates(await self.inventory.remote_site(site), site, host)
                hosts = [each.name for each in found] or [""]
            except Unreachable as error:
                unreachable = [verdicts.unreachable(site, error.message)]
        results = []
        for name in hosts:
            proposal = self.proposal(inspected.vm, inspected.domain_xml, site, name, policy, asked)
            try:
                decisions = await self.judge(proposal)
            except Unreachable as error:
                unreachable = [verdicts.unreachable(site, error.message)]
                decisions = (await self.authority.weigh(proposal),)
            findings = [*verdicts.findings(decisions), *unreachable]
            results.append(Preflight(inspected.vm, name, findings, proposal, decisions))
            if not preflight.refuses(verdicts.findings(decisions)):
                return results[-1]
        return results[0]

    def proposal(self, vm: Vm, domain_xml: str, site: str, host: str, policy: Policy, asked: Asked) -> Migration:
        """A migration as it is asked for, to be judged: no id, no state."""
        migration = Migration(
            vm=vm.name,
            vm_uuid=vm.uuid,
            source_site=self.inventory.site,
            source_host=vm.host,
            destination_site=site,
            destination_host=host,
            requested_by=asked.requester,
            policy=policy,
            labels=self.authority.labels(vm.name, vm.labels),
            domain_sha256=domain_digest(domain_xml),
            mapping_sha256=mapping_digest(self.inventory.site_named(site).mapping()),
            break_glass=asked.break_glass,
            cold=preflight.is_cold(vm),
            purpose=asked.purpose,
        )
        if (grounds := self.authority.grounds(migration)) is not None:
            migration.grounds.CopyFrom(grounds)
        return migration

    async def judge(self, proposal: Migration) -> tuple[Decision, ...]:
        """What this site's policy says, and unless it refuses, the other site's; the proposal gets the approvals of this site."""
        own = await self.authority.weigh(proposal)
        if own.verdict == Verdict.VERDICT_REFUSED:
            return (own,)
        del proposal.approvals[:]
        proposal.approvals.extend(await self.authority.approvals(proposal))
        return own, await self.ask_destination(proposal)

    async def ask_destination(self, proposal: Migration, *, opens: bool = False) -> Decision:
        """What the other site's policy says; with `opens`, its approvers are asked where they have a say."""
        remote = self.inventory.site_named(proposal.destination_site).remote
        request = PeerAuthorizeRequest(migration=proposal, open=opens)
        return verdicts.told_by_destination((await remote.ask(remote.stub.Authorize, request)).decision, proposal)

    async def _measure(self, vm: Vm) -> Measurement:
        """How the VM's memory behaves; nothing, if the agent cannot measure it, or if the VM is shut off and has none."""
        if preflight.is_cold(vm):
            return Measurement()
        agent = self.inventory.agent(vm.host)
        with contextlib.suppress(LandbridgeError):
            request = agent_pb2.MeasureVmRequest(vm=vm.uuid)
            return (await agent.ask(agent.stub.MeasureVm, request, FACTS)).measurement
        return Measurement()

    async def _estimate(
        self, vm: Vm, site: str, rtt_ms: int, policy: Policy, measuring: asyncio.Task[Measurement]
    ) -> tuple[Estimate, list[Finding]]:
        """What the migration will take, and what is to be said of that."""
        rate, source = self.tunnels.rate(site)
        coded = self.tunnels.is_coded(site)
        measurement = await measuring
        memory, disks = estimate.facts_of(vm)
        made = estimate.estimate(
            estimate.Facts(memory, disks, measurement, rate, source, rtt_ms, policy, coded, preflight.is_cold(vm))
        )
        return made, estimate.check(made, vm, policy)


def _inspection(vm: Vm) -> agent_pb2.InspectVmRequest:
    return agent_pb2.InspectVmRequest(vm=vm.uuid, cold=preflight.is_cold(vm))


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
    if not wanted:
        silent = [
            Finding(
                code="no-host",
                severity=Severity.SEVERITY_ERROR,
                message=f"site {site} has no host",
                remedy="choose another site, or have a host added there",
            )
        ]
    return [h for h in wanted if not h.unreachable], silent

"""A host that is taken out of service, and a site that is no longer joined.

    operator -> checked -> in the audit log -> (the other site is told) -> the store -> each gateway's next look lets go

Both can be done again after a crash at any point, and undone: a host enrols by a new token, a site is joined again. Another site that says
that it leaves is believed of itself alone, by the certificate with which it calls: nothing else is in the call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import structlog

from certs.identity import Identity, Role, Site
from certs.living import LivingIdentity
from gateway.audit.canonical import Value
from gateway.audit.fields import certified
from gateway.audit.journal import Journal
from gateway.config import GatewayConfig
from gateway.identities.records import Records
from gateway.identities.trusting import Trusting
from gateway.migration.inventory import Inventory
from gateway.migration.ledger import Ledger, has_ended, state_of
from gateway.migration.states import State
from gateway.store import Row
from landbridge.errors import Conflict, HostUnreachable, LandbridgeError, NotFound, UsageError
from landbridge.v1.agent_pb2 import ListVmsRequest
from landbridge.v1.enrolment_pb2 import LeaveSiteResponse, RemoveHostResponse
from landbridge.v1.peer_pb2 import LeaveRequest, LeaveResponse
from landbridge.v1.types_pb2 import VmState

log = structlog.get_logger()

# Of VMs that a host has, those that are named in a sentence.
_NAMED = 5
# What a migration leaves at its source, or has not finished at its destination, is no VM of a host.
_NOT_THERE = frozenset({VmState.VM_STATE_MOVED, VmState.VM_STATE_INCOMING})


@dataclass
class Departing:
    """Of one gateway, for all gateways of its site. Owned by the event loop."""

    settings: GatewayConfig
    identity: LivingIdentity
    records: Records
    trusting: Trusting
    inventory: Inventory
    ledger: Ledger
    journal: Journal
    # Whether the receipt of a migration from here, which has ended, is still to come.
    receipt_is_owed: Callable[[Row], bool]
    # Sites that have said that they leave, and stand in the configuration: each is recorded once.
    _heard: set[Site] = field(default_factory=set)

    # Hosts

    async def remove_host(self, name: str, by: Identity, reason: str, *, force: bool) -> RemoveHostResponse:
        """Take a host out of service: revoked, and known no longer.

        NotFound if there is none, Conflict if it stands in the configuration. Unless `force`: Conflict while migrations from or to it
        are under way or it has VMs, HostUnreachable if it cannot be asked for them.
        """
        await self.trusting.look()
        own = self.identity.identity.home
        self.inventory.agent(name)
        if any(each.name == name for each in self.settings.hosts):
            raise Conflict(
                f'host {name} stands in gateway.toml: delete its [[hosts]], the one with name = "{name}", at every gateway of site '
                f"{own.site}, and start them again; `landbridge certs revoke host/{name}` makes its certificate worthless"
            )
        waits = await self._in_the_way(f"host {name}", lambda row: _needs_host(row, own.site, name))
        if waits and not force:
            raise Conflict(f"{waits}; --force does not wait, and what is not done by then is not done")
        found = await self._ask_for_vms(name, force=force)
        found.unsettled.extend(
            row.migration.id
            for row in self.ledger.rows()
            if row.coordinating and row.migration.source_host == name and state_of(row) is State.COMPLETED
        )
        subject = f"{own}/{Role.HOST}/{name}"
        comment = f"removed{' by force' if force else ''}: {reason or 'no reason is given'}"
        await self._record("host.removed", subject, comment, by)
        # First, so that a crash in between leaves a host that is worth nothing and is still listed, and not the other way round.
        await self.trusting.deny(subject)
        await self.records.remove_host(name)
        await self.trusting.look()
        return found

    async def _ask_for_vms(self, name: str, *, force: bool) -> RemoveHostResponse:
        found, agent = RemoveHostResponse(name=name), self.inventory.agent(name)
        try:
            vms = (await agent.ask(agent.stub.ListVms, ListVmsRequest())).vms
        except LandbridgeError as error:
            if not force:
                raise HostUnreachable(
                    f"{error.message}; nobody else knows which VMs run on host {name}: if it is dead and will not come back, remove "
                    "it with --force"
                ) from error
            found.unreachable = error.message
            return found
        found.vms.extend(sorted(vm.name for vm in vms if vm.state not in _NOT_THERE))
        if found.vms and not force:
            raise Conflict(
                f"host {name} has {_named(found.vms)}: move them away with `landbridge migrate`, or remove it with --force, which leaves "
                "them there as they are, where Landbridge sees them no longer"
            )
        return found

    # Sites

    async def leave_site(self, name: str, by: Identity, reason: str, *, force: bool) -> LeaveSiteResponse:
        """End the trust in another site. It is told, unless it does not answer.

        NotFound if it is not joined, UsageError for this one. Conflict if it stands in the configuration and, unless `force`, while
        migrations from or to it are under way by this site's word or its own.
        """
        await self.trusting.look()
        home = self._joined(name)
        if self._is_configured(name):
            raise Conflict(
                f'site {name} stands in gateway.toml: delete its [[sites]], the one with name = "{name}", or peers and tunnel there, at '
                "every gateway of this site, start them again, and leave it then"
            )
        waits = await self._in_the_way(f"site {name}", lambda row: self._needs_site(row, name))
        if waits and not force:
            raise Conflict(f"{waits}; --force does not wait, and what is not done by then is not done")
        comment = f"left{' by force' if force else ''}: {reason or 'no reason is given'}"
        await self._record("site.left", str(home), comment, by)
        untold = await self._tell(name, force=force)
        await self._let_go(home, by)
        return LeaveSiteResponse(site=str(home), untold=untold)

    def _joined(self, name: str) -> Site:
        if name == self.settings.site:
            raise UsageError(f"{name} is this site itself: name another one, see `landbridge sites`")
        known = {home.site: home for home in self.identity.trust.roots if home != self.identity.identity.home}
        if name not in known:
            there_are = ", ".join(sorted(known)) or "none"
            raise NotFound(
                f"site {self.settings.site} is not joined with a site {name[:80]!r}; it is joined with {there_are}"
            )
        return known[name]

    def _is_configured(self, name: str) -> bool:
        return any(each.name == name and each.peers for each in self.settings.sites)

    async def _tell(self, name: str, *, force: bool) -> str:
        """Why the other site believes this one all the same; "" if it does not. Raises Conflict if it has a reason to wait."""
        try:
            remote = self.inventory.site_named(name).remote
            return (await remote.ask(remote.stub.Leave, LeaveRequest())).remains
        except Conflict as error:
            if not force:
                raise Conflict(f"site {name} asks to wait: {error.message}; --force does not wait") from error
            return error.message
        except LandbridgeError as error:
            return error.message

    async def left_by(self, caller: Identity) -> LeaveResponse:
        """Another site, whose gateway calls, leaves this one. Raises Conflict while migrations from or to it are under way."""
        home = caller.home
        if waits := await self._in_the_way(f"site {home.site}", lambda row: self._needs_site(row, home.site)):
            raise Conflict(waits)
        if not self._is_configured(home.site):
            await self._record("site.left", str(home), "it has left this site", caller)
            await self._let_go(home, caller)
            return LeaveResponse()
        remains = f"it stands in gateway.toml of site {self.settings.site}, whose operators have to delete it there"
        if home not in self._heard:
            comment = f"it has left this site, and {remains}"
            await self._record("site.left", str(home), comment, caller)
            self._heard.add(home)
            log.warning(
                "site.says_it_left", site=str(home), by=str(caller), remedy="delete its [[sites]] in gateway.toml"
            )
        return LeaveResponse(remains=remains)

    async def _let_go(self, home: Site, by: Identity) -> None:
        await self.records.leave_site(str(home), home.site)
        log.warning("site.departed", site=str(home), by=str(by))
        await self.trusting.look()

    # Both

    def _needs_site(self, row: Row, site: str) -> bool:
        """Whether a site has something to do for a migration, be it to hear how it ended, or to say what its log has for the receipt."""
        if site not in {row.migration.source_site, row.migration.destination_site}:
            return False
        return not has_ended(row) or (row.coordinating and row.peer_pending) or self.receipt_is_owed(row)

    async def _in_the_way(self, what: str, concerns: Callable[[Row], bool]) -> str:
        """A migration that is under way, as a sentence that says what to do; "" if there is none."""
        await self.ledger.refresh()
        found = next(filter(concerns, self.ledger.rows()), None)
        if found is None:
            return ""
        migration = found.migration
        id_, name = (
            migration.id[:8],
            f"{migration.vm[:80]} from {migration.source_site} to {migration.destination_site}",
        )
        if has_ended(found):
            return f"migration {id_} of {name} has ended, and its receipt, in which {what} has a part, is not there yet: wait a minute"
        return (
            f"migration {id_} of {name} is under way, and {what} has a part in it: wait for it, or cancel it with "
            f"`landbridge cancel {id_}` at site {migration.source_site}"
        )

    async def _record(self, event: str, subject: str, comment: str, by: Identity) -> None:
        """Before it is done. Raises NotRecorded: then it is not."""
        change: Value = {"subject": subject, "comment": comment}
        await self.journal.record(event, actor=certified(by), seen={"change": change})


def _needs_host(row: Row, site: str, host: str) -> bool:
    """Whether a host has something to do for a migration; its source also tells, at the end, what was delivered."""
    migration = row.migration
    is_source = (migration.source_site, migration.source_host) == (site, host)
    is_destination = (migration.destination_site, migration.destination_host) == (site, host)
    if has_ended(row):
        return is_source and row.coordinating and row.peer_pending and state_of(row) is State.COMPLETED
    return is_source or is_destination


def _named(vms: Sequence[str]) -> str:
    more = f" and {len(vms) - _NAMED} more" if len(vms) > _NAMED else ""
    what = "the VM" if len(vms) == 1 else f"{len(vms)} VMs,"
    return f"{what} {', '.join(vms[:_NAMED])}{more}"

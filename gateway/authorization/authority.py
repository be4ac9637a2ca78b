"""What services and migrations ask: may this be done? Each decision names the rule and the policy it rests on, and is logged.

weigh       what the policy says to a migration, with the approvals that are here    changes nothing
authorize   the same for one that is to begin: where approvals are missing, ask for them
admit       may somebody make this call, by their roles?
administer  may somebody change what all share?
oversee     may somebody have to do with this migration?
note        what somebody is about to change, in the audit log first
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

import structlog

from certs.identity import Identity, Site
from gateway.audit.canonical import Value
from gateway.audit.changes import sha256
from gateway.audit.entry import NOTHING, Facts
from gateway.audit.fields import certified
from gateway.audit.journal import Journal
from gateway.audit.refusals import Refusals
from gateway.authorization import decide as judging
from gateway.authorization import telling
from gateway.authorization.cases import named
from gateway.authorization.decide import Check, Decision, Step, Verdict, decide, in_scope, may_approve
from gateway.authorization.policy_file import PolicyFile
from gateway.authorization.request import REASON_CHARACTERS, Labels, digest, operator, request_of
from gateway.authorization.requests import OPEN, Requests, approvers
from gateway.authorization.roles import COMMANDS, OperatorRole, may_call, needed
from gateway.authorization.roles import OPEN as OPEN_CALLS
from gateway.authorization.rules import Rules
from landbridge.errors import (
    ApprovalNeeded,
    Conflict,
    LandbridgeError,
    PermissionDenied,
    PolicyRefused,
    UsageError,
)
from landbridge.v1 import decision_pb2 as pb
from landbridge.v1.authorization_pb2 import ApprovalRequest, PolicyStatus, RequestState
from landbridge.v1.types_pb2 import Migration

log = structlog.get_logger()

NO_POLICY = (
    "this gateway has no policy, so nothing is allowed: write one (docs/policy.md has an example), and name it in gateway.toml as `file` "
    "under [policy]"
)

_VERDICTS = {
    Verdict.ALLOWED: pb.Verdict.VERDICT_ALLOWED,
    Verdict.REFUSED: pb.Verdict.VERDICT_REFUSED,
    Verdict.APPROVAL: pb.Verdict.VERDICT_APPROVAL,
}


class Authority:
    """The policy of this site and its requests, for every gateway part that must ask. `clock` is aware."""

    def __init__(
        self,
        policy: PolicyFile,
        requests: Requests,
        here: Site,
        clock: Callable[[], datetime],
        journal: Journal,
        refusals: Refusals,
    ) -> None:
        self._policy = policy
        self._requests = requests
        self._here = here
        self._clock = clock
        self._journal = journal
        self._refusals = refusals

    # Calls

    def admit(self, who: Identity, call: str) -> None:
        """Raises PermissionDenied unless somebody's roles let them make a call of landbridge.v1.Gateway."""
        if call in OPEN_CALLS:
            return
        rules = self._rules()
        roles = rules.roles_of(who)
        if not may_call(call, roles):
            log.warning("call.role_missing", who=str(who), call=call, roles=sorted(roles), policy=self._policy.sha256)
            has = f"has the role {' and '.join(sorted(roles))}" if roles else "has no role"
            deed = f"`landbridge {COMMANDS[call]}`" if call in COMMANDS else call
            raise PermissionDenied(
                f"{who} {has} at site {rules.site}, and {deed} takes {needed(call)}: see [roles] in the policy file"
            )

    def administer(self, who: Identity, what: str) -> None:
        """Raises PermissionDenied unless somebody is an admin, who alone changes what all VMs share; `what` is a noun phrase."""
        rules = self._rules()
        if OperatorRole.ADMIN not in rules.roles_of(who):
            log.warning("call.role_missing", who=str(who), call=what, policy=self._policy.sha256)
            raise PermissionDenied(
                f"{who} may not change {what}, which is shared by all: that takes the role {OperatorRole.ADMIN} at site "
                f"{rules.site}; see [roles] in the policy file"
            )

    def _rules(self) -> Rules:
        if self._policy.rules is None:
            raise PermissionDenied(NO_POLICY)
        return self._policy.rules

    def status(self, who: Identity) -> PolicyStatus:
        """The policy that is in force, and what somebody is by it."""
        rules = self._policy.rules
        status = PolicyStatus(
            file="" if self._policy.path is None else str(self._policy.path),
            sha256=self._policy.sha256,
            problem=NO_POLICY if rules is None else self._policy.problem,
            rules=0 if rules is None else len(rules.rules),
            caller=str(who),
            roles=[] if rules is None else sorted(rules.roles_of(who)),
        )
        if self._policy.loaded_at is not None:
            status.loaded_at.FromDatetime(self._policy.loaded_at)
        return status

    def policy_hashes(self) -> dict[str, str]:
        """The hash of the policy that is in force, for the record of its changes."""
        return {f"the policy of site {self._here.site}": self._policy.sha256} if self._policy.sha256 else {}

    def role_hashes(self) -> dict[str, str]:
        """A hash of who has each role, for the record of its changes."""
        roles = {} if self._policy.rules is None else self._policy.rules.roles
        return {f"role {role}": sha256(*(str(each) for each in people)) for role, people in roles.items()}

    def country(self, site: str) -> str:
        """Where a site is, by the policy file; "" if it does not say."""
        rules = self._policy.rules
        place = None if rules is None else rules.sites.get(site)
        return "" if place is None else place.country

    # Migrations

    def labels(self, vm: str, own: pb.Labels) -> pb.Labels:
        """What a VM is by this site's policy, and for the rest by its own definition. Raises UsageError."""
        labels = Labels.of(own)
        return (labels if self._policy.rules is None else self._policy.rules.labels(vm, labels)).message()

    def grounds(self, migration: Migration) -> pb.Grounds | None:
        """Why a migration that is asked for moves its VM, and by what right, by this site's policy. Raises UsageError or IdentityError."""
        rules = self._policy.rules
        return None if rules is None else judging.grounds(rules, request_of(migration)).message()

    def person(self, text: str) -> Identity:
        """An operator as people write them: NAME, SITE/NAME or a SPIFFE ID. Raises IdentityError."""
        return named(text, self._rules())

    async def approvals(self, migration: Migration) -> list[pb.Approval]:
        """What this site's approvers have approved of exactly this."""
        found = await self._requests.bound_to(digest(migration))
        return [] if found is None else list(found.approvals)

    async def weigh(self, migration: Migration) -> pb.Decision:
        """What the policy says to a migration, at the source or at the destination. Raises UsageError or IdentityError for nonsense."""
        sha256 = digest(migration)
        waiting = await self._requests.bound_to(sha256)
        request = request_of(migration, approvers(waiting))
        rules = self._policy.rules
        decision = _refuse_all() if rules is None else decide(rules, request, self._clock())
        return self._told(decision, "migrate", migration, sha256, "" if waiting is None else waiting.id)

    async def authorize(
        self, migration: Migration, *, opens: bool, wanted_host: str = "", claimed_by: str = ""
    ) -> pb.Decision:
        """Decide about a migration that is to begin; with `opens`, ask this site's approvers where they have a say. Logged."""
        decision = await self.weigh(migration)
        if not claimed_by and decision.grounds != migration.grounds:
            raise Conflict("what the policy says of its purpose or legal basis has just changed: ask again")
        if opens and decision.verdict == pb.Verdict.VERDICT_APPROVAL and not decision.request:
            decision.request = await self.ask(migration, wanted_host, claimed_by)
        self.record(decision, migration, claimed_by)
        return decision

    async def ask(self, migration: Migration, wanted_host: str, claimed_by: str = "") -> str:
        """Open a request for a migration, or find the one that is open. Its id. Raises NotRecorded."""
        lifetime = timedelta(hours=self._rules().approvals.expire_hours)

        async def before() -> None:
            waits: dict[str, Value] = {"policy": {"decision": "approval"}, "request": {"sha256": digest(migration)}}
            seen, claimed = telling.asked(migration, self.country, waits, claimed_by)
            await self._journal.record(
                "migration.requested",
                reason="it waits for approvals",
                actor=self._actor(migration.requested_by, claimed_by),
                seen=seen,
                claimed=claimed,
            )

        request = await self._requests.open(migration, lifetime, wanted_host, claimed_by, before)
        log.info(
            "request.opened",
            request=request.id,
            sha256=request.sha256,
            vm=migration.vm,
            requester=migration.requested_by,
            destination=f"{migration.destination_site}/{migration.destination_host}",
            policy=self._policy.sha256,
        )
        return request.id

    def claims(self, migration: Migration, source: Identity) -> None:
        """Raises PermissionDenied unless a migration speaks for people of the site alone whose gateway brings it."""
        for text in (migration.requested_by, *(approval.approver for approval in migration.approvals)):
            if operator(text).home != source.home:
                raise PermissionDenied(f"site {source.site} cannot speak for {text[:200]}")

    def oversee(self, who: Identity, action: str, migration: Migration) -> pb.Decision:
        """Raises PolicyRefused unless somebody may move the VM of a migration this way, whatever the time. Logged."""
        rules = self._rules()
        asked = Migration()
        asked.CopyFrom(migration)
        asked.requested_by = str(who)
        asked.ClearField("approvals")
        step = in_scope(rules, request_of(asked))
        verdict = Verdict.ALLOWED if step.passed else Verdict.REFUSED
        decision = Decision(verdict, f'{step.check} "{step.rule}"' if step.rule else "default deny", (step,))
        told = self._told(decision, action, asked, digest(asked), "")
        self.record(told, asked)
        if error := refusal(told):
            raise error
        return told

    # Requests

    async def requests(self) -> list[ApprovalRequest]:
        """All of them, newest first, each with what it waits for by the policy of now."""
        return [self._judged(request) for request in await self._requests.all()]

    async def request(self, prefix: str) -> ApprovalRequest:
        """One. Raises NotFound or UsageError."""
        return self._judged(await self._requests.find(prefix))

    async def waiting_for(self, who: str, vm: str, site: str) -> ApprovalRequest | None:
        """The newest request of somebody to move a VM (by name or UUID) to a site that is not over, where they left the host open."""
        return next(
            (
                each
                for each in await self._requests.all()
                if each.state in OPEN
                and not each.wanted_host
                and not each.claimed_by
                and each.migration.requested_by == who
                and each.migration.destination_site == site
                and vm in {each.migration.vm, each.migration.vm_uuid}
            ),
            None,
        )

    async def approve(self, prefix: str, sha256: str, who: Identity) -> ApprovalRequest:
        """Somebody's yes to exactly what they have read. Raises PolicyRefused if theirs does not count, Conflict, or NotRecorded."""
        request = await self._requests.find(prefix)
        if sha256 != request.sha256:
            raise Conflict(f"request {request.id} is not what was read: look at it again with `landbridge requests`")
        if str(who) == request.migration.requested_by:
            refused = PolicyRefused("nobody approves what they have asked for themselves: another approver must")
            self._refuse(who, f"approval of request {request.id}", refused.message)
            raise refused
        if not may_approve(self._rules(), request_of(request.migration), who):
            refused = PolicyRefused(
                f"no rule of four-eyes of this site waits for the approval of {who}: see the policy file"
            )
            self._refuse(who, f"approval of request {request.id}", refused.message)
            raise refused
        if request.state in OPEN and all(each.approver != str(who) for each in request.approvals):
            yes = pb.Approval(approver=str(who))
            yes.at.FromDatetime(self._clock())
            await self._record_approval(request, [yes], actor=certified(who))
        approved = self._judged(await self._requests.approve(request, who))
        log.info(
            "request.approved", request=request.id, sha256=request.sha256, who=str(who), policy=self._policy.sha256
        )
        return approved

    async def deny(self, prefix: str, reason: str, who: Identity) -> ApprovalRequest:
        """Somebody's no, which ends a request. Raises Conflict if it is over, and UsageError without a reason."""
        if not reason.strip() or len(reason) > REASON_CHARACTERS:
            raise UsageError(f"say why it is denied, in at most {REASON_CHARACTERS} characters")
        request = await self._requests.find(prefix)
        denied = self._judged(await self._requests.deny(request, who, reason))
        log.warning(
            "request.denied",
            request=request.id,
            sha256=request.sha256,
            who=str(who),
            why=reason,
            policy=self._policy.sha256,
        )
        # A no counts also while the log cannot be written.
        seen, claimed = self._request_facts(request, {})
        self._refusals.tell(
            "migration.denied",
            str(who),
            f"request {request.id}",
            reason=reason,
            actor=certified(who),
            seen=seen,
            claimed=claimed,
        )
        return denied

    def _request_facts(self, request: ApprovalRequest, more: dict[str, Value]) -> tuple[Facts, Facts]:
        """What is seen of a request, and what is claimed."""
        bound: dict[str, Value] = {"request": {"id": request.id, "sha256": request.sha256}, **more}
        return telling.asked(request.migration, self.country, bound, request.claimed_by)

    async def _record_approval(
        self, request: ApprovalRequest, approvals: Sequence[pb.Approval], *, actor: Facts = NOTHING, migration: str = ""
    ) -> None:
        seen, claimed = self._request_facts(request, telling.approvers(approvals))
        await self._journal.record("migration.approved", actor=actor, migration=migration, seen=seen, claimed=claimed)

    async def note(
        self, event: str, who: Identity, comment: str, *, subject: str = "", migration: Migration | None = None
    ) -> None:
        """Record what somebody is about to change, before it is done. Raises NotRecorded: then it is not."""
        seen: dict[str, Value] = {} if migration is None else telling.about(migration, self.country)
        if subject:
            seen["change"] = {"subject": subject, "comment": comment}
        id_ = "" if migration is None else migration.id
        await self._journal.record(event, reason=comment, actor=certified(who), migration=id_, seen=seen)

    def _refuse(self, who: Identity, what: str, reason: str) -> None:
        self._refusals.tell("access.denied", str(who), what, reason=reason, actor=certified(who))

    def _actor(self, requester: str, claimed_by: str) -> Facts:
        if claimed_by:
            return telling.claimed(requester, claimed_by)
        return certified(operator(requester)) if requester else NOTHING

    async def take(self, decision: pb.Decision, migration: str) -> None:
        """Use up the request that a decision rests on, if it rests on one. Raises Conflict if somebody was faster, or NotRecorded."""
        if decision.request:
            request = await self._requests.find(decision.request)
            if request.approvals:
                # With the migration's id at last: its receipt says who has approved it, and exactly what.
                await self._record_approval(request, request.approvals, migration=migration)
            await self._requests.take(decision.request, migration)
            log.info("request.used", request=decision.request, migration=migration)

    async def give_back(self, decision: pb.Decision, migration: str) -> None:
        """Undo `take`."""
        if decision.request:
            await self._requests.give_back(decision.request, migration)

    def _judged(self, request: ApprovalRequest) -> ApprovalRequest:
        """The request with what it waits for."""
        rules = self._policy.rules
        if request.state == RequestState.REQUEST_STATE_WAITING and rules is not None:
            decision = decide(rules, request_of(request.migration, approvers(request)), self._clock())
            request.waits_for = decision.reason
            if decision.verdict is Verdict.ALLOWED:
                request.state = RequestState.REQUEST_STATE_APPROVED
        return request

    # Telling

    def _told(self, decision: Decision, action: str, migration: Migration, sha256: str, request: str) -> pb.Decision:
        told = pb.Decision(
            site=self._here.site,
            action=action,
            verdict=_VERDICTS[decision.verdict],
            rule=decision.rule,
            steps=[
                pb.DecisionStep(check=step.check, rule=step.rule, passed=step.passed, sentence=step.sentence)
                for step in decision.steps
            ],
            policy_sha256=self._policy.sha256,
            requester=migration.requested_by,
            request_sha256=sha256,
            request=request,
            break_glass=migration.break_glass if decision.glass_broken else "",
            verify_disks=decision.verify_disks,
            grounds=decision.grounds.message(),
        )
        told.decided_at.FromDatetime(self._clock())
        return told

    def record(self, decision: pb.Decision, migration: Migration, claimed_by: str = "") -> None:
        """Log a decision, of this site or of the other one, that was acted upon; a refusal is in the audit log, too."""
        if decision.verdict == pb.Verdict.VERDICT_REFUSED:
            self._record_denial(decision, migration, claimed_by)
        tell = log.info if decision.verdict == pb.Verdict.VERDICT_ALLOWED else log.warning
        facts = {
            "site": decision.site,
            "action": decision.action,
            "verdict": pb.Verdict.Name(decision.verdict).removeprefix("VERDICT_").lower(),
            "rule": decision.rule,
            "requester": decision.requester,
            "vm": migration.vm,
            "migration": migration.id,
            "source": f"{migration.source_site}/{migration.source_host}",
            "destination": f"{migration.destination_site}/{migration.destination_host}",
            "request": decision.request,
            "request_sha256": decision.request_sha256,
            "policy": decision.policy_sha256,
        }
        tell("policy.decided", **facts)
        if decision.break_glass:
            log.warning("policy.glass_broken", why=decision.break_glass, **facts)

    def _record_denial(self, decision: pb.Decision, migration: Migration, claimed_by: str) -> None:
        policy = telling.policy(decision)
        bound: dict[str, Value] = {"request": {"sha256": decision.request_sha256}} if decision.request_sha256 else {}
        seen, claimed = telling.asked(migration, self.country, bound, claimed_by)
        if decision.site == self._here.site:
            seen |= policy
        else:
            claimed |= policy
        self._refusals.tell(
            "migration.denied" if decision.action == "migrate" else "access.denied",
            claimed_by or decision.requester,
            f"{decision.action} {migration.vm_uuid} to {migration.destination_site}/{migration.destination_host}",
            reason=telling.sentence(decision),
            actor=self._actor(decision.requester, claimed_by),
            migration=migration.id,
            seen=seen,
            claimed=claimed,
        )


def _refuse_all() -> Decision:
    return Decision(Verdict.REFUSED, "no policy", (Step(Check.PERMIT, "", False, NO_POLICY),))


def refusal(decision: pb.Decision) -> LandbridgeError | None:
    """The error that a decision is for whoever asked; None if it is a yes."""
    if decision.verdict == pb.Verdict.VERDICT_ALLOWED:
        return None
    details = {"rule": decision.rule, "site": decision.site, "request": decision.request}
    why = decision.steps[0].sentence if decision.steps else "it gave no reason"
    sentence = f"the policy of site {decision.site} refuses it by {decision.rule or 'no rule'}: {why}"
    if decision.verdict == pb.Verdict.VERDICT_APPROVAL:
        return ApprovalNeeded(f"site {decision.site} waits for approvals by {decision.rule}: {why}", details=details)
    return PolicyRefused(sentence, details=details)

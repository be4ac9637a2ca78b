"""What a policy says to a request at an instant. Pure: rules, request and clock in, a decision out.

Looked at in this order, all of it, so that a decision can be explained; the first that refuses is the rule that decided.

1. role         who asks is no operator of this site                            at the source; a destination cannot know
2. forbid       a rule that forbids and fits                                    no permission outweighs it
3. residency    the destination is no place for the VM's classification         and nothing overrides it
4. permit       no rule that permits fits                                       default deny
5. purpose      who asks does not say why, and is to                            only where an entry of [[transfers]] demands it
6. break-glass  somebody asks to override what follows, and may not             at the source; elsewhere it does not count
7. freeze       it is a time in which nothing moves
8. four-eyes    so many others have not approved                                this one waits, instead of refusing

If nothing refuses, the first rule that permits decided.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, time
from enum import StrEnum
from fnmatch import fnmatchcase

from certs.identity import Identity
from gateway.authorization import freezes
from gateway.authorization.request import NOTHING_SAID, Grounds, Request
from gateway.authorization.roles import OperatorRole
from gateway.authorization.rules import UNCLASSIFIED, FourEyes, Freeze, Rules, Selecting

DEFAULT_DENY = "default deny"


class Verdict(StrEnum):
    """What is decided."""

    ALLOWED = "allowed"
    REFUSED = "refused"
    # Refused until others have approved.
    APPROVAL = "approval"


class Check(StrEnum):
    """What is looked at."""

    ROLE = "role"
    FORBID = "forbid"
    RESIDENCY = "residency"
    PERMIT = "permit"
    PURPOSE = "purpose"
    BREAK_GLASS = "break-glass"
    FREEZE = "freeze"
    FOUR_EYES = "four-eyes"


@dataclass(frozen=True)
class Step:
    """One thing that was looked at. `rule` is its name in the file; empty where none fits."""

    check: Check
    rule: str
    passed: bool
    sentence: str


@dataclass(frozen=True)
class Decision:
    """What is decided, by which rule, and all that was looked at."""

    verdict: Verdict
    # The check and the name of the rule, such as `forbid "no payroll abroad"`.
    rule: str
    steps: tuple[Step, ...]
    # Freezes or four-eyes would have refused, and were overridden.
    glass_broken: bool = False
    # A rule that permits it has the disks compared.
    verify_disks: bool = False
    # Why it moves, and by what right, as this policy has it.
    grounds: Grounds = NOTHING_SAID

    @property
    def reason(self) -> str:
        """Why it is no yes; empty if it is."""
        return "" if self.verdict is Verdict.ALLOWED else next(s.sentence for s in self.steps if not s.passed)


def decide(rules: Rules, request: Request, now: datetime) -> Decision:
    """The decision about a request at `now`, which is aware."""
    request = _known(rules, request)
    firm = (
        *_role(rules, request),
        *_forbidden(rules, request),
        _residency(rules, request),
        _permitted(rules, request),
        *_purpose(rules, request),
    )
    why = grounds(rules, request)
    glass = tuple(_glass(rules, request))
    soft = (*_frozen(rules, request, now), *_four_eyes(rules, request))
    steps: tuple[Step, ...] = (*firm, *glass, *soft)
    overridden = any(step.passed for step in glass)
    refusing = [step for step in steps if not step.passed and not (overridden and step in soft)]
    refusing = [step for step in refusing if not (step.check is Check.BREAK_GLASS and _is_claimed(rules, request))]
    broken = overridden and any(not step.passed for step in soft)
    if not refusing:
        by = next(step for step in firm if step.check is Check.PERMIT)
        proves = _proves(rules, request)
        return Decision(Verdict.ALLOWED, _named(by), tuple(_override(steps)), broken, proves, why)
    first = refusing[0]
    verdict = Verdict.APPROVAL if first.check is Check.FOUR_EYES else Verdict.REFUSED
    others = tuple(step for step in steps if step is not first)
    return Decision(verdict, _named(first), (first, *others), verify_disks=_proves(rules, request), grounds=why)


def grounds(rules: Rules, request: Request) -> Grounds:
    """Why something moves, and by what right, as this policy has it: of each, what the first entry that fits says."""
    request = _known(rules, request)
    found = [entry for entry in rules.transfers if fits(entry, rules, request)]
    countries = [
        rules.sites[site].country for site in (request.source_site, request.destination_site) if site in rules.sites
    ]
    is_domestic = len(countries) == 2 and countries[0] == countries[1] != ""
    return Grounds(
        next((entry.purpose for entry in found if entry.purpose), ""),
        next((entry.legal_basis for entry in found if entry.legal_basis), ""),
        next((entry.transfer_mechanism for entry in found if entry.transfer_mechanism and not is_domestic), ""),
    )


def in_scope(rules: Rules, request: Request) -> Step:
    """Whether somebody may have to do with a VM's migration that is under way or has ended: the permission alone, at any time."""
    request = _known(rules, request)
    forbidden = next((step for step in _forbidden(rules, request) if not step.passed), None)
    return forbidden or _permitted(rules, request)


def _known(rules: Rules, request: Request) -> Request:
    """The request with what this policy says of the VM, which comes before what the VM or another site says of it."""
    return replace(request, labels=rules.labels(request.vm, request.labels))


def fits(entry: Selecting, rules: Rules, request: Request) -> bool:
    """Whether an entry means a request. The VM's labels are those of the policy already."""
    labels = request.labels
    return (
        (entry.who is None or any(each.fits(request.requester, rules.here) for each in entry.who))
        and (entry.vms is None or any(fnmatchcase(request.vm, each) for each in entry.vms))
        and (entry.owners is None or labels.owner in entry.owners)
        and (entry.tags is None or not labels.tags.isdisjoint(entry.tags))
        and (entry.classifications is None or (labels.classification or UNCLASSIFIED) in entry.classifications)
        and (
            entry.source is None
            or any(each.fits(request.source_site, request.source_host, rules.sites) for each in entry.source)
        )
        and (
            entry.destination is None
            or any(
                each.fits(request.destination_site, request.destination_host, rules.sites) for each in entry.destination
            )
        )
    )


def _role(rules: Rules, request: Request) -> Iterator[Step]:
    if not _is_claimed(rules, request):
        may = OperatorRole.OPERATOR in rules.roles_of(request.requester)
        is_one = f"{called(rules, request.requester)} is {'an' if may else 'no'} operator of site {rules.site}"
        yield Step(Check.ROLE, OperatorRole.OPERATOR, may, is_one)


def _forbidden(rules: Rules, request: Request) -> Iterator[Step]:
    found = [rule for rule in rules.rules if rule.effect == "forbid" and fits(rule, rules, request)]
    for rule in found:
        yield Step(Check.FORBID, rule.name, False, f'the rule "{rule.name}" forbids it')
    if not found:
        yield Step(Check.FORBID, "", True, "no rule forbids it")


def _residency(rules: Rules, request: Request) -> Step:
    if rules.residency is None:
        return Step(Check.RESIDENCY, "", True, "the policy says nothing of residency")
    kind = request.labels.classification or UNCLASSIFIED
    allowed = rules.residency.get(kind)
    if allowed is None:
        sentence = f"{request.vm} is {kind}, and [residency] does not say where such VMs may be"
        return Step(Check.RESIDENCY, kind, False, sentence)
    if "*" in allowed:
        return Step(Check.RESIDENCY, kind, True, f"{kind} VMs may be anywhere")
    place = rules.sites.get(request.destination_site)
    where = [] if place is None else [part for part in (place.country, place.zone) if part]
    if not where:
        sentence = f"{request.vm} is {kind}, and [sites] does not say where {request.destination_site} is"
        return Step(Check.RESIDENCY, kind, False, sentence)
    if not any(part in allowed for part in where):
        may, found = ", ".join(allowed) or "no place", ", ".join(where)
        sentence = f"{request.vm} is {kind} and may be in {may}, and {request.destination_site} is in {found}"
        return Step(Check.RESIDENCY, kind, False, sentence)
    return Step(Check.RESIDENCY, kind, True, f"{kind} VMs may be in {next(part for part in where if part in allowed)}")


def _permitted(rules: Rules, request: Request) -> Step:
    found = next((rule for rule in rules.rules if rule.effect == "permit" and fits(rule, rules, request)), None)
    if found is None:
        return Step(Check.PERMIT, "", False, f"no rule permits {_what(rules, request)}")
    return Step(Check.PERMIT, found.name, True, f'the rule "{found.name}" permits it')


def _purpose(rules: Rules, request: Request) -> Iterator[Step]:
    demanding = next((each for each in rules.transfers if each.demand_purpose and fits(each, rules, request)), None)
    if demanding is not None:
        given = bool(request.purpose.strip())
        says = "and one is given" if given else "and none is given: say why with --purpose"
        yield Step(Check.PURPOSE, demanding.name, given, f'"{demanding.name}" demands a purpose, {says}')


def _proves(rules: Rules, request: Request) -> bool:
    """Whether any rule that permits it has the disks compared: their order does not matter."""
    return any(rule.verify_disks for rule in rules.rules if rule.effect == "permit" and fits(rule, rules, request))


def _glass(rules: Rules, request: Request) -> Iterator[Step]:
    if not request.break_glass:
        return
    may = any(each.fits(request.requester, rules.here) for each in rules.break_glass.who)
    says = "may break the glass" if may else "may not break the glass here: [break_glass] does not name them"
    yield Step(Check.BREAK_GLASS, "break_glass", may, f"{called(rules, request.requester)} {says}")


def _frozen(rules: Rules, request: Request, now: datetime) -> Iterator[Step]:
    found = [(freeze, _until(freeze, now)) for freeze in rules.freezes if fits(freeze, rules, request)]
    closed = [(freeze, until) for freeze, until in found if until is not None]
    for freeze, until in closed:
        says = f"{until.astimezone(freeze.timezone):%Y-%m-%d %H:%M %Z}"
        yield Step(Check.FREEZE, freeze.name, False, f'the freeze "{freeze.name}" lasts until {says}')
    if not closed:
        yield Step(Check.FREEZE, "", True, "no freeze holds it now")


def _until(freeze: Freeze, now: datetime) -> datetime | None:
    """When a freeze ends that holds now; None if it does not."""
    match freeze.begins, freeze.ends:
        case datetime() as begins, datetime() as ends:
            return freezes.once(begins, ends, freeze.timezone, now)
        case time() as begins, time() as ends:
            return freezes.weekly(frozenset(freeze.days or ()), begins, ends, freeze.timezone, now)
    return None


def _four_eyes(rules: Rules, request: Request) -> Iterator[Step]:
    found = [entry for entry in rules.four_eyes if fits(entry, rules, request)]
    for entry in found:
        yes = sorted(who for who in request.approvals if counts(entry, rules, request, who))
        names = f" (by {', '.join(called(rules, each) for each in yes)})" if yes else ""
        by = f" of {', '.join(map(str, entry.by))}" if entry.by is not None else ""
        sentence = f'"{entry.name}" takes {_approvals(entry.approvals)}{by}, and has {len(yes)}{names}'
        yield Step(Check.FOUR_EYES, entry.name, len(yes) >= entry.approvals, sentence)
    if not found:
        yield Step(Check.FOUR_EYES, "", True, "nobody else has to approve")


def counts(entry: FourEyes, rules: Rules, request: Request, who: Identity) -> bool:
    """Whether somebody's approval counts: never the requester's; of this site an approver's; of others if they are named."""
    if who == request.requester:
        return False
    if entry.by is not None and not any(each.fits(who, rules.here) for each in entry.by):
        return False
    if who.home == rules.here:
        return OperatorRole.APPROVER in rules.roles_of(who)
    return entry.by is not None


def may_approve(rules: Rules, request: Request, who: Identity) -> bool:
    """Whether somebody's approval would count for anything that the request takes."""
    request = _known(rules, request)
    return any(counts(entry, rules, request, who) for entry in rules.four_eyes if fits(entry, rules, request))


def _is_claimed(rules: Rules, request: Request) -> bool:
    return request.source_site != rules.site


def _override(steps: Sequence[Step]) -> Iterator[Step]:
    """The steps of what is allowed: those that would have refused it were overridden."""
    for step in steps:
        is_overridden = not step.passed and step.check in {Check.FREEZE, Check.FOUR_EYES}
        yield Step(step.check, step.rule, True, f"{step.sentence}; overridden") if is_overridden else step


def _named(step: Step) -> str:
    return f'{step.check} "{step.rule}"' if step.rule else DEFAULT_DENY


def _approvals(count: int) -> str:
    return "1 approval" if count == 1 else f"{count} approvals"


def called(rules: Rules, who: Identity) -> str:
    """Somebody as the policy file writes them."""
    if who.trust_domain != rules.trust_domain:
        return str(who)
    return who.name if who.site == rules.site else f"{who.site}/{who.name}"


def _what(rules: Rules, request: Request) -> str:
    source = "/".join(filter(None, (request.source_site, request.source_host)))
    destination = "/".join(filter(None, (request.destination_site, request.destination_host)))
    return f"{called(rules, request.requester)} to move {request.vm} from {source} to {destination}"

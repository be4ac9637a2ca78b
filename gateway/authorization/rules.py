"""The policy file: its types and its parser. Pure: text in, rules or one sentence with line and key out.

    site = "fra"                    whose policy it is
    trust_domain = "example.org"
    [roles]                         who is what: viewer, operator, approver, auditor, admin
    [sites.ams]                     where sites are: country, zone
    [[vms]]                         what VMs are, by their names: classification, owner, tags
    [[rules]]                       what is permitted, and what is forbidden
    [residency]                     in which countries and zones VMs of a classification may be
    [[freezes]]                     when nothing moves
    [[four_eyes]]                   what others must approve
    [[transfers]]                   why VMs are moved, and by what right
    [break_glass]                   who may override freezes and four-eyes, with a reason
    [[tests]]                       what this file is to decide: `landbridge policy test`

A VM is what the file says of its name, entry by entry, and for the rest what its own definition says in <metadata>. Whoever is root
on its host can write that, so what matters is to be said here.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from datetime import datetime, time
from fnmatch import fnmatchcase
from typing import Annotated, Literal, Self
from zoneinfo import ZoneInfo

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from certs.identity import Identity, Site
from gateway.authorization import patterns
from gateway.authorization.patterns import Person, Where
from gateway.authorization.request import Labels
from gateway.authorization.roles import OperatorRole
from landbridge.config import Settings, said_of
from landbridge.errors import ConfigError, IdentityError

# Characters of a policy file, and entries of one list in it: more is a mistake, or somebody who wants to keep the gateway busy.
MOST_CHARACTERS = 1 << 20
MOST_ENTRIES = 1000
# Years of a freeze; others are slips of the pen, and beyond what clocks can be asked.
YEARS = range(2000, 2200)
LONGEST_EXPIRY_HOURS = 24 * 31
# Of one rule of four-eyes.
MOST_APPROVALS = 16
# The classification of a VM that has none.
UNCLASSIFIED = "unclassified"

# By what right data may be processed: GDPR art. 6(1) (a) to (f); what LGPD art. 7 has beside these; and that of a processor, who has
# instructions instead (GDPR art. 28, LGPD art. 39).
LegalBasis = Literal[
    "consent",
    "contract",
    "legal-obligation",
    "vital-interests",
    "public-task",
    "legitimate-interests",
    "research",
    "legal-claims",
    "health-protection",
    "credit-protection",
    "controller-instructions",
]
# And brought to another country: GDPR art. 45, 46, 47 and 49, LGPD art. 33; not-needed is within the EEA, say.
TransferMechanism = Literal[
    "not-needed",
    "adequacy",
    "scc-eu",
    "scc-anpd",
    "bcr",
    "specific-clauses",
    "code-of-conduct",
    "certification",
    "derogation",
]

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


def _zone(value: object) -> ZoneInfo:
    if isinstance(value, ZoneInfo):
        return value
    try:
        return ZoneInfo(value if isinstance(value, str) else "")
    except (OSError, ValueError, KeyError) as error:  # ZoneInfoNotFoundError is a KeyError
        raise ValueError(f"{str(value)[:80]!r} is no time zone known here: write one such as Europe/Berlin") from error


def _day(value: object) -> int:
    if value in DAYS:
        return DAYS.index(str(value))
    raise ValueError(f"{str(value)[:80]!r} is no day: write {', '.join(DAYS)}")


def _unique(name: str, entries: Sequence[Named]) -> None:
    seen: set[str] = set()
    for entry in entries:
        if entry.name in seen:
            raise ValueError(f"two of [[{name}]] are called {entry.name!r}: a decision names one")
        seen.add(entry.name)


Text = Annotated[str, Field(min_length=1, max_length=200)]
People = Annotated[tuple[Annotated[Person, BeforeValidator(patterns.person)], ...], Field(max_length=MOST_ENTRIES)]
Places = Annotated[tuple[Annotated[Where, BeforeValidator(patterns.where)], ...], Field(max_length=MOST_ENTRIES)]
Texts = Annotated[tuple[Text, ...], Field(max_length=MOST_ENTRIES)]
Areas = Annotated[tuple[Annotated[str, BeforeValidator(patterns.area)], ...], Field(max_length=MOST_ENTRIES)]


class Entry(Settings):
    """Base of every table of the file."""

    model_config = Settings.model_config | {"arbitrary_types_allowed": True}


class SiteFacts(Entry):
    """Where a site is."""

    country: Annotated[str, BeforeValidator(patterns.country)] = ""
    zone: Annotated[str, BeforeValidator(patterns.zone)] = ""


class VmFacts(Entry):
    """What VMs are whose names fit; what is None is left to the next entry that fits, and in the end to the VM's own definition."""

    names: Annotated[Texts, Field(min_length=1)]
    classification: Text | None = None
    owner: Text | None = None
    tags: Texts | None = None

    def fits(self, name: str) -> bool:
        """Whether a VM is meant."""
        return any(fnmatchcase(name, pattern) for pattern in self.names)


class Named(Entry):
    """What a decision may name."""

    name: Text


class Selecting(Named):
    """What is meant by an entry: all that is said must fit, and of what is not said, anything does."""

    who: People | None = None
    vms: Texts | None = None
    owners: Texts | None = None
    # At least one of them.
    tags: Texts | None = None
    classifications: Texts | None = None
    source: Places | None = Field(default=None, alias="from")
    destination: Places | None = Field(default=None, alias="to")


class Rule(Selecting):
    """What is permitted or forbidden. One that permits says who, which VMs, from where and to where: nothing by omission."""

    effect: Literal["permit", "forbid"]
    # What it permits has the disks at both ends compared, and the source is not settled before; also where another rule permits it, too.
    verify_disks: bool = False

    @model_validator(mode="after")
    def _is_explicit(self) -> Self:
        if self.effect == "forbid" and self.verify_disks:
            raise ValueError("a rule that forbids compares no disks: leave verify_disks out")
        if self.effect == "permit":
            named = {"who": self.who, "from": self.source, "to": self.destination}
            missing = [name for name, given in named.items() if not given]
            if not (self.vms or self.owners or self.tags or self.classifications):
                missing.append("vms (or owners, tags or classifications)")
            if missing:
                raise ValueError(f"a rule that permits says all of it: add {' and '.join(missing)}; * is for all")
        return self


class Freeze(Selecting):
    """When nothing that is meant moves: once, or on days of each week, by the clock of a time zone."""

    timezone: Annotated[ZoneInfo, BeforeValidator(_zone)]
    begins: datetime | time
    ends: datetime | time
    days: Annotated[tuple[Annotated[int, BeforeValidator(_day)], ...], Field(min_length=1, max_length=7)] | None = None

    @model_validator(mode="after")
    def _is_window(self) -> Self:
        begins, ends = self.begins, self.ends
        if begins.tzinfo is not None or ends.tzinfo is not None:
            raise ValueError("begins and ends are times by the clock of `timezone`: leave the offset out")
        if isinstance(begins, datetime) and isinstance(ends, datetime):
            if self.days is not None:
                raise ValueError("with days, begins and ends are times such as 08:00:00, without a date")
            if not begins < ends:
                raise ValueError("it ends before it begins")
            if begins.year not in YEARS or ends.year not in YEARS:
                raise ValueError(f"a freeze lies in the years {YEARS.start} to {YEARS.stop - 1}")
        elif isinstance(begins, datetime) or isinstance(ends, datetime):
            raise ValueError("begins and ends are both a date with a time, or both a time")  # noqa: TRY004 - as pydantic wants it
        elif self.days is None:
            raise ValueError('with times alone, say on which days: days = ["mon", "tue"]')
        return self


class FourEyes(Selecting):
    """What so many others must approve, each of them once, and never the one who asks."""

    approvals: int = Field(ge=1, le=MOST_APPROVALS)
    # Absent: whoever is an approver of this site. People of other sites count only where they are named here.
    by: People | None = None

    @model_validator(mode="after")
    def _can_be_had(self) -> Self:
        if self.by is not None and all(each.is_exact for each in self.by) and len(set(self.by)) < self.approvals:
            raise ValueError(f"{self.approvals} approvals cannot come from {len(set(self.by))} people")
        return self


class Transfer(Selecting):
    """Why what is meant moves, and by what right; what is None is left to the next entry that fits."""

    purpose: Text | None = None
    legal_basis: LegalBasis | None = None
    # Between two countries.
    transfer_mechanism: TransferMechanism | None = None
    # Who asks must say why, whatever the policy says of it.
    demand_purpose: bool = False

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not (self.purpose or self.legal_basis or self.transfer_mechanism or self.demand_purpose):
            raise ValueError("it says nothing: add purpose, legal_basis, transfer_mechanism or demand_purpose")
        return self


class BreakGlass(Entry):
    """Who may override freezes and four-eyes, with a reason. What is forbidden, not permitted, or against residency stays so."""

    who: People = ()


class Approvals(Entry):
    """How long a request waits for approvals, and what was approved may be used."""

    expire_hours: float = Field(default=24.0, gt=0, le=LONGEST_EXPIRY_HOURS)


class Case(Named):
    """What this file is to decide about something."""

    who: Text
    vm: Text
    source: Text = Field(alias="from")
    destination: Text = Field(alias="to")
    classification: str = ""
    owner: str = ""
    tags: Texts = ()
    approved_by: Texts = ()
    break_glass: bool = False
    purpose: str = ""
    # With an offset; only a file without freezes can do without.
    at: datetime | None = None
    expect: Literal["allowed", "refused", "approval"]
    # The rule that is to decide.
    rule: str | None = None

    @model_validator(mode="after")
    def _is_instant(self) -> Self:
        if self.at is not None and (self.at.tzinfo is None or self.at.year not in YEARS):
            raise ValueError("`at` is an instant: write it with its offset, such as 2026-12-24T18:00:00+01:00")
        return self


class Rules(Entry):
    """The whole file."""

    site: str
    trust_domain: str
    roles: Mapping[OperatorRole, People] = Field(default_factory=dict)
    sites: Mapping[str, SiteFacts] = Field(default_factory=dict)
    vms: Annotated[tuple[VmFacts, ...], Field(max_length=MOST_ENTRIES)] = ()
    rules: Annotated[tuple[Rule, ...], Field(max_length=MOST_ENTRIES)] = ()
    # By classification. None: the file says nothing of residency. Else a VM whose classification is not in it moves nowhere.
    residency: Mapping[str, Areas] | None = None
    freezes: Annotated[tuple[Freeze, ...], Field(max_length=MOST_ENTRIES)] = ()
    four_eyes: Annotated[tuple[FourEyes, ...], Field(max_length=MOST_ENTRIES)] = ()
    transfers: Annotated[tuple[Transfer, ...], Field(max_length=MOST_ENTRIES)] = ()
    break_glass: BreakGlass = BreakGlass()
    approvals: Approvals = Approvals()
    tests: Annotated[tuple[Case, ...], Field(max_length=MOST_ENTRIES)] = ()

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        try:
            Site(self.trust_domain, self.site)
        except IdentityError as error:
            raise ValueError(error.message) from error
        for name, entries in (
            ("rules", self.rules),
            ("freezes", self.freezes),
            ("four_eyes", self.four_eyes),
            ("transfers", self.transfers),
            ("tests", self.tests),
        ):
            _unique(name, entries)
        if self.freezes and (case := next((case for case in self.tests if case.at is None), None)):
            raise ValueError(f"with freezes, each test says when: add `at` to {case.name!r}")
        areas = {"*"} | {part for site in self.sites.values() for part in (site.country, site.zone)}
        for classification, allowed in (self.residency or {}).items():
            if unknown := sorted(set(allowed) - areas):
                raise ValueError(f"residency.{classification} allows {unknown[0]!r}, where no site of [sites] is")
        return self

    @property
    def here(self) -> Site:
        """Whose policy this is."""
        return Site(self.trust_domain, self.site)

    def roles_of(self, who: Identity) -> frozenset[OperatorRole]:
        """What somebody is here; nobody of another site is anything."""
        if who.home != self.here:
            return frozenset()
        return frozenset(
            role for role, people in self.roles.items() if any(each.fits(who, self.here) for each in people)
        )

    def labels(self, name: str, own: Labels) -> Labels:
        """What a VM is: by this file, and for the rest by `own`, which its definition (or the other site) says."""
        fitting = [entry for entry in self.vms if entry.fits(name)]
        tags = next((entry.tags for entry in fitting if entry.tags is not None), None)
        return Labels(
            owner=next((entry.owner for entry in fitting if entry.owner is not None), own.owner),
            classification=next(
                (e.classification for e in fitting if e.classification is not None), own.classification
            ),
            tags=own.tags if tags is None else frozenset(tags),
        )


def parse(text: str, name: str) -> Rules:
    """The rules of a file's text. Raises ConfigError that names the first mistake with `name`, its line and its key."""
    if len(text) > MOST_CHARACTERS:
        raise ConfigError(f"the policy {name} has {len(text)} characters: at most {MOST_CHARACTERS} are read")
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"the policy {name} is not TOML: {error}") from error
    try:
        return Rules.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = _place(first["loc"], document)
        line = _line(text, place)
        said = said_of(f"line {line}, {_key(place)}" if place else f"line {line}", first)
        more = f" (and {error.error_count() - 1} more mistakes)" if error.error_count() > 1 else ""
        raise ConfigError(f"the policy {name} is wrong at {said}{more}") from error


def _place(loc: Sequence[str | int], document: object) -> list[str | int]:
    """The part of pydantic's place that is in the document: it adds names of types."""
    place: list[str | int] = []
    at = document
    for part in loc:
        if isinstance(at, dict) and isinstance(part, str):
            place.append(part)
            at = at.get(part)
            if at is None:
                break
        elif isinstance(at, list) and isinstance(part, int) and part < len(at):
            place.append(part)
            at = at[part]
    return place


def _key(place: Sequence[str | int]) -> str:
    """As TOML people say it: `rules[2].who`; entries are counted from 1."""
    return "".join(f"[{part + 1}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")


_HEADER = re.compile(r"\s*(\[\[?)\s*([^\]]+?)\s*\]\]?\s*(#.*)?")


def _line(text: str, place: Sequence[str | int]) -> int:
    """The line on which a place stands, as nearly as its table's header and its key tell; the first if nothing does."""
    wanted = [part for part in place if isinstance(part, str)]
    number = next((part for part in place if isinstance(part, int)), 0)
    found, seen, within = 1, -1, True
    for index, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.fullmatch(line):
            names = [part.strip().strip("\"'") for part in header[2].split(".")]
            within = names == wanted[: len(names)]
            if within and header[1] == "[[":
                seen += 1
                within = seen == number
            if within:
                found = index
        elif within and any(_is_key(line, key) for key in wanted):
            found = index
            if _is_key(line, wanted[-1]):
                break
    return found


def _is_key(line: str, key: str) -> bool:
    name, equals, _ = line.partition("=")
    return bool(equals) and name.strip().strip("\"'") == key

"""Names of people, places and VMs, as the policy file writes them: exact, or with `*` and `?` where that is meant. Pure.

    people    alice                    an operator of this site
              ams/alice                an operator of another site, of this site's trust domain
              spiffe://example.org/site/ams/operator/alice
    places    ams    ams/host-b        a site, whatever the host; a host of a site
              country:NL    zone:eu    every site that the policy file has there
    VMs       web-*                    by name, as in a shell

A wildcard stays within its part: `ams/*` is every operator of ams, and of no other site.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Protocol

from certs.identity import Identity, Role, Site

_PART = re.compile(r"[a-z0-9*?]([a-z0-9.*?-]{0,126}[a-z0-9*?])?")
_COUNTRY = re.compile("[A-Z]{2}")
_ZONE = re.compile("[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


class Located(Protocol):
    """Where a site is."""

    @property
    def country(self) -> str:
        """Two letters, or empty."""
        ...

    @property
    def zone(self) -> str:
        """A word of the policy file's own, or empty."""
        ...


@dataclass(frozen=True)
class Person:
    """A pattern of operators; an empty part is what this site has."""

    trust_domain: str
    site: str
    name: str

    def fits(self, who: Identity, here: Site) -> bool:
        """Whether somebody is meant."""
        return (
            who.role is Role.OPERATOR
            and fnmatchcase(who.trust_domain, self.trust_domain or here.trust_domain)
            and fnmatchcase(who.site, self.site or here.site)
            and fnmatchcase(who.name, self.name)
        )

    @property
    def is_exact(self) -> bool:
        """Whether it means one person."""
        return not any(sign in part for part in (self.trust_domain, self.site, self.name) for sign in "*?")

    def __str__(self) -> str:
        if self.trust_domain:
            return f"spiffe://{self.trust_domain}/site/{self.site}/operator/{self.name}"
        return f"{self.site}/{self.name}" if self.site else self.name


def person(value: object) -> Person:
    """Read one. Raises ValueError, as pydantic wants it."""
    if isinstance(value, Person):
        return value
    match value.split("/") if isinstance(value, str) else []:
        case [name] if _are_parts(name):
            return Person("", "", name)
        case [site, name] if _are_parts(site, name):
            return Person("", site, name)
        case ["spiffe:", "", domain, "site", site, "operator", name] if _are_parts(domain, site, name):
            return Person(domain, site, name)
    raise ValueError(
        f"{_shown(value)} names nobody: write NAME, SITE/NAME or spiffe://TRUST-DOMAIN/site/SITE/operator/NAME, "
        "with * and ? where several are meant"
    )


@dataclass(frozen=True)
class Where:
    """A pattern of places: by site and host, or by country, or by zone."""

    site: str = ""
    host: str = ""
    country: str = ""
    zone: str = ""

    def fits(self, site: str, host: str, located: Mapping[str, Located]) -> bool:
        """Whether a host is meant, or (with an empty name) a site whatever its host; `located` has where sites are."""
        if self.country or self.zone:
            place = located.get(site)
            return place is not None and (self.country, self.zone) in {(place.country, ""), ("", place.zone)}
        return fnmatchcase(site, self.site) and (not self.host or (bool(host) and fnmatchcase(host, self.host)))

    def __str__(self) -> str:
        if self.country or self.zone:
            return f"country:{self.country}" if self.country else f"zone:{self.zone}"
        return f"{self.site}/{self.host}" if self.host else self.site


def where(value: object) -> Where:
    """Read one. Raises ValueError, as pydantic wants it."""
    if isinstance(value, Where):
        return value
    text = value if isinstance(value, str) else ""
    kind, colon, word = text.partition(":")
    if colon and kind == "country" and _COUNTRY.fullmatch(word):
        return Where(country=word)
    if colon and kind == "zone" and _ZONE.fullmatch(word):
        return Where(zone=word)
    match text.split("/"):
        case [site] if _are_parts(site):
            return Where(site)
        case [site, host] if _are_parts(site, host):
            return Where(site, host)
    raise ValueError(
        f"{_shown(value)} is no place: write SITE, SITE/HOST, country:NL or zone:NAME, with * and ? in names where several are meant"
    )


def country(value: object) -> str:
    """Read a country's two letters (ISO 3166-1). Raises ValueError."""
    if isinstance(value, str) and _COUNTRY.fullmatch(value):
        return value
    raise ValueError(f"{_shown(value)} is no country: write its two capital letters, such as NL")


def zone(value: object) -> str:
    """Read the name of a zone. Raises ValueError."""
    if isinstance(value, str) and _ZONE.fullmatch(value):
        return value
    raise ValueError(f"{_shown(value)} is no zone: write a word of a-z, 0-9 and -, such as eu")


def area(value: object) -> str:
    """Read a country, a zone, or * for everywhere. Raises ValueError."""
    if isinstance(value, str) and (value == "*" or _COUNTRY.fullmatch(value) or _ZONE.fullmatch(value)):
        return value
    raise ValueError(f"{_shown(value)} is neither a country such as NL, nor a zone such as eu, nor * for everywhere")


def _are_parts(*parts: str) -> bool:
    return all(_PART.fullmatch(part) for part in parts)


def _shown(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    return repr(text if len(text) <= 80 else f"{text[:80]}...")

"""gateway/authorization/patterns.py"""

from __future__ import annotations

import pytest

from certs.identity import Identity, Role, Site
from gateway.authorization import patterns
from gateway.authorization.rules import SiteFacts
from tests.unit.policies import who

HERE = Site("example.org", "fra")
PLACES = {"fra": SiteFacts(country="DE", zone="eu"), "ams": SiteFacts(country="NL", zone="eu"), "lab": SiteFacts()}


@pytest.mark.parametrize(
    ("pattern", "meant", "not_meant"),
    [
        ("alice", [who("alice")], [who("alice2"), who("alice", "ams"), who("alice", "fra", "else.where")]),
        ("al*", [who("alice"), who("al")], [who("bob"), who("alice", "ams")]),
        ("*", [who("alice")], [who("alice", "ams")]),
        ("ams/alice", [who("alice", "ams")], [who("alice"), who("alice", "ams", "else.where")]),
        ("*/alice", [who("alice"), who("alice", "ams")], [who("bob"), who("alice", "ams", "else.where")]),
        ("spiffe://else.where/site/ams/operator/alice", [who("alice", "ams", "else.where")], [who("alice", "ams")]),
        ("spiffe://*.where/site/*/operator/a?ice", [who("alice", "lon", "else.where")], [who("alice", "lon")]),
    ],
)
def test_a_pattern_means_these_people_and_not_those(
    pattern: str, meant: list[Identity], not_meant: list[Identity]
) -> None:
    person = patterns.person(pattern)
    assert all(person.fits(each, HERE) for each in meant)
    assert not any(person.fits(each, HERE) for each in not_meant)
    assert str(person) == pattern
    assert patterns.person(person) is person


def test_only_operators_are_people() -> None:
    assert not patterns.person("*").fits(Identity("example.org", "fra", Role.HOST, "alice"), HERE)
    assert not patterns.person("gw").fits(Identity("example.org", "fra", Role.GATEWAY, "gw"), HERE)


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "Alice",
        "a b",
        "a/b/c",
        "/a",
        "a/",
        "[ab]",
        "spiffe://x/site/y/host/z",
        "spiffe://x/site/y/operator/",
        "spiffe://X/site/y/operator/z",
        "spiffe://x/site/Y/operator/z",
        "A/b",
        "a/B",
        7,
        ["a"],
    ],
)
def test_what_is_no_person_is_said_with_what_is(wrong: object) -> None:
    with pytest.raises(ValueError, match="names nobody: write NAME"):
        patterns.person(wrong)


@pytest.mark.parametrize(("text", "exact"), [("alice", True), ("ams/alice", True), ("a*", False), ("?/alice", False)])
def test_a_name_without_wildcards_means_one_person(text: str, exact: bool) -> None:
    assert patterns.person(text).is_exact is exact


@pytest.mark.parametrize(
    ("pattern", "meant", "not_meant"),
    [
        ("ams", [("ams", "a"), ("ams", "")], [("ams2", "a"), ("fra", "a")]),
        ("a*", [("ams", "a")], [("fra", "ams")]),
        ("ams/host-?", [("ams", "host-b")], [("ams", "host-bb"), ("ams", ""), ("fra", "host-b")]),
        ("*/host-b", [("ams", "host-b"), ("fra", "host-b")], [("ams", "b")]),
        ("*/*", [("ams", "host-b")], [("ams", "")]),
        ("country:NL", [("ams", "a")], [("fra", "a"), ("lab", "a"), ("nowhere", "a")]),
        ("zone:eu", [("ams", "a"), ("fra", "")], [("lab", "a"), ("nowhere", "a")]),
    ],
)
def test_a_pattern_means_these_places_and_not_those(
    pattern: str, meant: list[tuple[str, str]], not_meant: list[tuple[str, str]]
) -> None:
    place = patterns.where(pattern)
    assert all(place.fits(site, host, PLACES) for site, host in meant)
    assert not any(place.fits(site, host, PLACES) for site, host in not_meant)
    assert str(place) == pattern
    assert patterns.where(place) is place


@pytest.mark.parametrize(
    "wrong",
    ["", "A", "a/b/c", "country:nl", "country:NLD", "zone:", "zone:EU", "planet:mars", "A/b", "a/B", "zone:a:b", 7],
)
def test_what_is_no_place_is_said_with_what_is(wrong: object) -> None:
    with pytest.raises(ValueError, match="is no place: write SITE"):
        patterns.where(wrong)


def test_countries_zones_and_areas_are_told_apart_by_their_letters() -> None:
    assert patterns.country("NL") == "NL"
    assert patterns.zone("eu-west") == "eu-west"
    assert [patterns.area(each) for each in ("NL", "eu", "*")] == ["NL", "eu", "*"]
    for read, wrong in (
        (patterns.country, "nl"),
        (patterns.country, "NLX"),
        (patterns.country, 5),
        (patterns.zone, "EU"),
        (patterns.zone, "eu-"),
        (patterns.zone, None),
        (patterns.area, "Nl"),
        (patterns.area, "**"),
        (patterns.area, 5),
    ):
        with pytest.raises(ValueError, match=r"write|is neither"):
            read(wrong)


@pytest.mark.parametrize(
    ("wrong", "shown"),
    [("A" * 80, f"'{'A' * 80}'"), ("A" * 81, f"'{'A' * 80}...'"), (["a"], "\"['a']\"")],
)
def test_what_is_wrong_is_shown_and_a_long_mistake_in_part(wrong: object, shown: str) -> None:
    with pytest.raises(ValueError, match="names nobody") as error:
        patterns.person(wrong)
    assert str(error.value) == (
        f"{shown} names nobody: write NAME, SITE/NAME or spiffe://TRUST-DOMAIN/site/SITE/operator/NAME, "
        "with * and ? where several are meant"
    )
    with pytest.raises(ValueError, match="is no place") as error:
        patterns.where(wrong)
    assert str(error.value).startswith(f"{shown} is no place: write SITE")

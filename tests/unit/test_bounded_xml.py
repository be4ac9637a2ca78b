"""XML from another site: what comes out, and what is refused before anything comes out."""

from __future__ import annotations

import pytest

from agent.stream import bounded_xml
from landbridge.errors import ProtocolError


def attributes(count: int) -> str:
    return " ".join(f"b{number}=''" for number in range(count))


def test_elements_attributes_text_and_namespaces_come_out_as_elementtree_names_them() -> None:
    root = bounded_xml.parse("<a xmlns:q='urn:q' b='1'> t &amp; &#65;<q:c q:d='2'/><![CDATA[<e>]]></a>")
    assert (root.tag, root.attrib, root.text) == ("a", {"b": "1"}, " t & A")
    assert (root[0].tag, root[0].attrib, root[0].tail) == ("{urn:q}c", {"{urn:q}d": "2"}, "<e>")


def test_comments_are_as_nothing() -> None:
    assert bounded_xml.parse("<a>b<!-- c -->d</a>").text == "bd"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("<!DOCTYPE a><a/>", "has a DTD"),
        ("<!DOCTYPE a [<!ENTITY e 'x'>]><a>&e;</a>", "has a DTD"),
        ("<!DOCTYPE a SYSTEM 'file:///etc/passwd'><a/>", "has a DTD"),
        ("<a>&e;</a>", "cannot be read: undefined entity"),
        ("<?xml version='1.0' encoding='UTF-7'?><a/>", "has an XML declaration"),
        ("<a><?php x?></a>", "has a processing instruction"),
        ("", "cannot be read"),
        ("<a>", "cannot be read"),
        ("<a/><b/>", "cannot be read"),
        ("<a b='1' b='2'/>", "cannot be read"),
        ("<a>\0</a>", "cannot be read"),
        ("<q:a/>", "cannot be read"),
        ("<a>\ud800</a>", "cannot be read"),
        ("<a>" * 33 + "</a>" * 33, "more than 32 levels"),
        (f"<a>{'<b/>' * 20_000}</a>", "more than 20,000 elements"),
        (f"<a {attributes(65)}/>", "more than 64 attributes"),
        (f"<a>{' ' * (1 << 20)}</a>", "1,048,583 bytes, more than 1,048,576"),
    ],
)
def test_what_two_parsers_could_read_in_two_ways_and_what_is_too_much_is_refused(text: str, says: str) -> None:
    with pytest.raises(ProtocolError, match=says):
        bounded_xml.parse(text)


def test_levels_are_those_that_are_open_and_not_all_that_were() -> None:
    assert len(bounded_xml.parse(f"<a>{'<b><c/></b>' * 40}</a>")) == 40
    with pytest.raises(ProtocolError, match="more than 32 levels"):
        bounded_xml.parse(f"<a>{'<b><c/></b>' * 40}{'<d>' * 32}{'</d>' * 32}</a>")


def test_as_much_as_is_allowed_is_read() -> None:
    assert len(bounded_xml.parse(f"<a>{'<b/>' * 19_999}</a>")) == 19_999
    root = bounded_xml.parse("<a>" * 32 + "</a>" * 32)
    assert root[0].tag == "a"
    assert len(bounded_xml.parse(f"<a {attributes(64)}/>").attrib) == 64
    assert bounded_xml.parse(f"<a>{' ' * ((1 << 20) - 7)}</a>").text

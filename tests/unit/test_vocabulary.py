"""How a vocabulary is read, and what it finds."""

from __future__ import annotations

import pytest

from agent.stream import bounded_xml, vocabulary
from agent.stream.vocabulary import MOST_TEXT, MOST_VALUE, SHOWN, Problem, Word, check, shown

GROUPS = {"common": "alias name\naddress type\n  zpci uid\n"}
TABLE = """
root kind! other

  open *
  text = unit
  device &common name
    alias more
    inner
"""
ROOT = vocabulary.read(TABLE, GROUPS)


def found(xml: str, **more: object) -> list[str]:
    return [str(problem) for problem in check(bounded_xml.parse(xml), ROOT, {}, **more)]  # type: ignore[arg-type]


def test_a_table_is_read_by_its_indentation_and_groups_are_copies() -> None:
    root = ROOT.children["root"]
    assert (root.attributes, root.required, root.has_text, root.is_open) == ({"kind", "other"}, {"kind"}, False, False)
    assert set(root.children) == {"open", "text", "device"}
    assert root.children["open"] == Word(is_open=True)
    assert root.children["text"] == Word(attributes={"unit"}, has_text=True)
    device = root.children["device"]
    assert device.attributes == {"name"}
    assert device.children["alias"].attributes == {"name", "more"}
    assert device.children["address"].children["zpci"].attributes == {"uid"}
    assert device.children["inner"] == Word()
    assert vocabulary.read(TABLE, GROUPS) == ROOT
    assert vocabulary.read("a\n  b\n").children["a"].children["b"] == Word()


def test_what_is_in_the_table_has_no_problem() -> None:
    xml = "<root kind='1'><open><q:x xmlns:q='u'><y/></q:x></open><text unit='b'>t</text><device><alias more='1'/></device></root>"
    assert found(xml) == []


@pytest.mark.parametrize(
    ("xml", "says"),
    [
        ("<other/>", ["the element <other> is not allowed here (other)"]),
        ("<root/>", ["<root> must have the attribute kind (root/@kind)"]),
        ("<root kind='1' x='2'/>", ["the attribute x='2' is not allowed (root/@x)"]),
        ("<root kind='1'><x/></root>", ["the element <x> is not allowed (root/x)"]),
        ("<root kind='1'><open><x/></open></root>", ["the element <x> is not allowed (root/open/x)"]),
        ("<root kind='1'>t</root>", ["the text 't' is not allowed here (root)"]),
        ("<root kind='1'><device/>t</root>", ["the text 't' is not allowed here (root/device)"]),
        (
            "<root kind='1'><text>t<x/></text></root>",
            ["the text 't' is not allowed here (root/text)", "the element <x> is not allowed (root/text/x)"],
        ),
    ],
)
def test_everything_else_has_one(xml: str, says: list[str]) -> None:
    assert found(xml) == says


def test_a_part_may_be_left_to_somebody_else_and_paths_may_be_allowed_beyond_the_table() -> None:
    xml = "<root kind='1'><x y='1'>t</x></root>"
    assert found(xml, skip="root/x") == []
    assert found(xml, also={"root/x"}) == ["the attribute y='1' is not allowed (root/x/@y)"]
    assert found(xml, also={"root/x", "root/x/@y"}) == []


def test_values_are_held_against_rules_and_are_as_long_as_they_may_be() -> None:
    def problems(text: str, kind: str = "1") -> list[str]:
        root = bounded_xml.parse(f"<root kind='{kind}'><text>{text}</text></root>")
        return [str(p) for p in check(root, ROOT, {"root/text": "good".__eq__, "root/@kind": lambda k: k != "2"})]

    assert problems("good") == []
    assert problems("bad") == ["text 'bad' is not allowed (root/text)"]
    assert problems("") == ["text '' is not allowed (root/text)"]
    assert problems("good", "2") == ["kind '2' is not allowed (root/@kind)"]
    assert problems("good", "x" * MOST_VALUE) == []
    assert "1,025 characters is longer than 1,024 (root/@kind)" in problems("good", "x" * (MOST_VALUE + 1))[0]
    assert check(bounded_xml.parse(f"<root kind='1'><text>{'x' * MOST_TEXT}</text></root>"), ROOT, {}) == []
    assert len(check(bounded_xml.parse(f"<root kind='1'><text>{'x' * (MOST_TEXT + 1)}</text></root>"), ROOT, {})) == 1


def test_what_is_shown_fits_a_line() -> None:
    assert shown("x" * SHOWN) == "x" * SHOWN
    assert shown("x" * (SHOWN + 1)) == "x" * SHOWN + "…"
    assert shown("a\nb\x1b") == "a?b?"
    assert len(Problem("x" * 9000, "y").where) == SHOWN + 1

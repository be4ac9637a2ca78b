"""An allow-list of XML: which elements may stand where, with which attributes; and what their values may be.

A vocabulary is written as a table, one element a line, indented below the one in which it stands:

    disk type! device          attributes; one with `!` must be there
      source file
      readonly
    name =                     `=`: text may stand in it, and no elements beside it
    driver &device             `&group`: what the group has, too; a second line for an element adds to the first
    metadata *                 `*`: anything that is in a namespace of its own may stand below it

`check` names every element, attribute and value that the table does not have, by its path: "domain/devices/disk/@type".
"""

from __future__ import annotations

import copy
import xml.etree.ElementTree as ET  # for types; input goes through bounded_xml
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

# Characters of a value, or of a text, that has no rule of its own.
MOST_VALUE = 1024
MOST_TEXT = 8192
# Characters of a value that are shown.
SHOWN = 120
# Problems of one document that are told; one is enough to refuse it.
MOST_PROBLEMS = 20


@dataclass(frozen=True, slots=True)
class Problem:
    """What is not allowed: where, and a clause that says what."""

    where: str
    what: str

    def __post_init__(self) -> None:
        # Paths have names in them that somebody else has chosen.
        object.__setattr__(self, "where", shown(self.where))

    def __str__(self) -> str:
        return f"{self.what} ({self.where})"


@dataclass
class Word:
    """One element of the vocabulary."""

    attributes: set[str] = field(default_factory=set)
    required: set[str] = field(default_factory=set)
    children: dict[str, Word] = field(default_factory=dict)
    has_text: bool = False
    is_open: bool = False


class Rule(Protocol):
    """Says whether a value may stand."""

    def __call__(self, value: str, /) -> bool: ...


def read(table: str, groups: Mapping[str, str] | None = None) -> Word:
    """The vocabulary of a table; its root has the outermost elements as children."""
    known = {name: read(text) for name, text in (groups or {}).items()}
    root = Word()
    above = [root]
    for line in filter(str.strip, table.splitlines()):
        level = (len(line) - len(line.lstrip())) // 2
        name, *rest = line.split()
        word = above[level].children.setdefault(name, Word())
        for item in rest:
            _add(word, item, known)
        del above[level + 1 :]
        above.append(word)
    return root


def _add(word: Word, item: str, groups: Mapping[str, Word]) -> None:
    match item[0]:
        case "=":
            word.has_text = True
        case "*":
            word.is_open = True
        case "&":
            word.children.update(copy.deepcopy(groups[item[1:]].children))
        case _:
            word.attributes.add(item.rstrip("!"))
            if item.endswith("!"):
                word.required.add(item.rstrip("!"))


def check(
    root: ET.Element, vocabulary: Word, rules: Mapping[str, Rule], also: Collection[str] = (), *, skip: str = ""
) -> list[Problem]:
    """What of a document is not allowed; at most MOST_PROBLEMS.

    `rules` are for values, by their path. `also` are paths of elements and attributes that are allowed beyond the vocabulary.
    The element at the path `skip` is left to somebody else.
    """
    checking = _Checking(rules, frozenset(also), skip)
    word = vocabulary.children.get(root.tag)
    if word is None:
        return [Problem(root.tag, f"the element <{shown(root.tag)}> is not allowed here")]
    found: list[Problem] = []
    for problem in checking.element(root, root.tag, word):
        found.append(problem)
        if len(found) == MOST_PROBLEMS:
            break
    return found


@dataclass(frozen=True)
class _Checking:
    rules: Mapping[str, Rule]
    also: frozenset[str]
    skip: str

    def element(self, element: ET.Element, path: str, word: Word) -> Iterator[Problem]:
        for name, value in element.attrib.items():
            where = f"{path}/@{name}"
            if name not in word.attributes and where not in self.also:
                yield Problem(where, f"the attribute {shown(name)}='{shown(value)}' is not allowed")
            else:
                yield from self._value(value, where, MOST_VALUE)
        for name in sorted(word.required - element.attrib.keys()):
            yield Problem(f"{path}/@{name}", f"<{shown(element.tag)}> must have the attribute {name}")
        yield from self._text(element, path, word)
        for child in element:
            yield from self._child(child, f"{path}/{child.tag}", word)

    def _child(self, child: ET.Element, path: str, word: Word) -> Iterator[Problem]:
        if (child.tail or "").strip():
            yield Problem(path, f"the text {shown(child.tail or '')!r} is not allowed here")
        following = word.children.get(child.tag)
        if path == self.skip or (word.is_open and child.tag.startswith("{")):
            return
        if following is not None:
            yield from self.element(child, path, following)
        elif path in self.also:
            yield from self.element(child, path, Word(has_text=True))
        else:
            yield Problem(path, f"the element <{shown(child.tag)}> is not allowed")

    def _text(self, element: ET.Element, path: str, word: Word) -> Iterator[Problem]:
        text = element.text or ""
        if word.has_text and len(element) == 0:
            if text or path in self.rules:
                yield from self._value(text, path, MOST_TEXT)
        elif text.strip():
            yield Problem(path, f"the text {shown(text)!r} is not allowed here")

    def _value(self, value: str, where: str, most: int) -> Iterator[Problem]:
        if len(value) > most:
            yield Problem(where, f"a value of {len(value):,} characters is longer than {most:,}")
        rule = self.rules.get(where)
        if rule is not None and not rule(value):
            yield Problem(where, f"{_label(where)} {shown(value)!r} is not allowed")


def _label(where: str) -> str:
    """What a value is called in a sentence: "emulator", "disk source file"."""
    parts = [part.removeprefix("@") for part in where.split("/")]
    return " ".join(parts[2:] if parts[:2] == ["domain", "devices"] else parts[1:] or parts)


def shown(value: str) -> str:
    """A value as it can be shown: bounded, and printable."""
    cut = value if len(value) <= SHOWN else value[:SHOWN] + "…"
    return "".join(c if c.isprintable() else "?" for c in cut)

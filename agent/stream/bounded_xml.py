"""XML from another site: read within bounds, and nothing of it that two parsers could understand in two ways.

Refused: DTDs and entities, an XML declaration (it may name an encoding that libxml2 follows and this does not), processing
instructions, and more bytes, elements or levels than any definition has. Elements come out as ElementTree names them: a tag in a
namespace is "{namespace}name".
"""

from __future__ import annotations

import xml.etree.ElementTree as ET  # for the types of what comes out
from typing import NoReturn
from xml.parsers import expat

from landbridge.errors import ProtocolError

# libvirt's own limit for a string is 4 MiB; a definition has some kilobytes, and one of 64 disks and interfaces some hundred.
MOST_BYTES = 1 << 20
MOST_ELEMENTS = 20_000
MOST_LEVELS = 32
MOST_ATTRIBUTES = 64


def parse(text: str) -> ET.Element:
    """The root element. Raises ProtocolError, whose message is a clause: "has a DTD"."""
    if len(data := text.encode("utf-8", "surrogatepass")) > MOST_BYTES:
        raise ProtocolError(f"has {len(data):,} bytes, more than {MOST_BYTES:,}")
    return _Reading().read(data)


def _refuse(what: str) -> NoReturn:
    raise ProtocolError(what)


class _Reading:
    """One document."""

    def __init__(self) -> None:
        self._builder = ET.TreeBuilder()
        self._elements = self._levels = 0
        self._parser = parser = expat.ParserCreate("utf-8", "}")
        parser.buffer_text = True
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._builder.data
        parser.StartDoctypeDeclHandler = lambda *_: _refuse("has a DTD")
        # Without a DTD there are no entities, but for the five that XML has itself.
        parser.XmlDeclHandler = lambda *_: _refuse("has an XML declaration")
        parser.ProcessingInstructionHandler = lambda *_: _refuse("has a processing instruction")

    def read(self, data: bytes) -> ET.Element:
        """All of it."""
        try:
            self._parser.Parse(data, True)
            return self._builder.close()
        except expat.ExpatError as error:
            raise ProtocolError(f"cannot be read: {error}") from None
        except AssertionError:
            raise ProtocolError("cannot be read: it is empty") from None

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        self._elements += 1
        self._levels += 1
        if self._elements > MOST_ELEMENTS:
            _refuse(f"has more than {MOST_ELEMENTS:,} elements")
        if self._levels > MOST_LEVELS:
            _refuse(f"has more than {MOST_LEVELS} levels")
        if len(attributes) > MOST_ATTRIBUTES:
            _refuse(f"has an element with more than {MOST_ATTRIBUTES} attributes")
        self._builder.start(_name(tag), {_name(key): value for key, value in attributes.items()})

    def _end(self, tag: str) -> None:
        self._levels -= 1
        self._builder.end(_name(tag))


def _name(tag: str) -> str:
    return f"{{{tag}" if "}" in tag else tag

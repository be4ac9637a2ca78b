"""Messages as JSON, one object per line: what `--json` prints. `docs/cli-json.md` lists the fields.

The fields are the contract's, and as stable as the contract: every field is always there. An enum is its
word in lower case, a timestamp is RFC 3339 in UTC, and what is not set is null. Each object begins with its
"type".
"""

import json
from typing import TYPE_CHECKING, TypeAlias

import click
from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from gateway.cli import words

if TYPE_CHECKING:
    from google._upb._message import FieldDescriptor as UpbFieldDescriptor

    _Field: TypeAlias = FieldDescriptor | UpbFieldDescriptor


def write(kind: str, message: Message) -> None:
    """One line on standard output; ASCII only, so that no terminal or encoding changes it."""
    click.echo(json.dumps({"type": kind, **as_object(message)}))


def as_object(message: Message) -> dict[str, object]:
    """All fields of a message, by their names."""
    return {field.name: _field(message, field) for field in message.DESCRIPTOR.fields}


def _field(message: Message, field: "_Field") -> object:
    value = getattr(message, field.name)
    if field.is_repeated:
        return [_value(item, field) for item in value]
    if field.has_presence and not message.HasField(field.name):
        return None
    return _value(value, field)


def _value(value: object, field: "_Field") -> object:
    if isinstance(value, Timestamp):
        return words.moment(value)
    if isinstance(value, Message):
        return as_object(value)
    if isinstance(field.enum_type, EnumDescriptor) and isinstance(value, int):
        return words.word(field.enum_type, value)
    return value

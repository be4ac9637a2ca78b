"""Configuration files: TOML, checked against a pydantic model; each mistake becomes one sentence with its place."""

from __future__ import annotations

import ipaddress
import json
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationError

from landbridge.errors import ConfigError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_HOST = re.compile(r"[0-9A-Za-z._-]+")
_PORT = re.compile("[0-9]{1,5}")
# Mistakes that one sentence names; of more, it says how many.
_MOST_NAMED = 3
# What pydantic's kinds of mistakes are called here; the others say themselves what a value must be.
_MISTAKES = {
    "missing": "is missing",
    "extra_forbidden": "is no key that is known here",
    "string_type": "must be text, in quotes",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a number that is not infinite",
    "bool_type": "must be true or false",
    "tuple_type": "must be a list, in [ ] (of tables: in [[ ]])",
    "dict_type": "must be a table",
    "model_type": "must be a table",
}


class Address(NamedTuple):
    """A host and a TCP port, written "host:port" or "[v6]:port"."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(value: object) -> Address:
    """Read "host:port". Raises ValueError, as pydantic wants it."""
    if isinstance(value, Address):
        return value
    host, _, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    if not _is_host(host) or not _PORT.fullmatch(port) or int(port) > 65535:
        raise ValueError(f'{value!r} is not an address such as "10.0.0.1:7443"')
    return Address(host.strip("[]"), int(port))


def _is_host(text: str) -> bool:
    if not text.startswith("["):
        return _HOST.fullmatch(text) is not None
    try:
        return text.endswith("]") and ipaddress.IPv6Address(text[1:-1]) is not None
    except ValueError:
        return False


def parse_addresses(value: object) -> tuple[Address, ...]:
    """Read one address or a list of them, at least one. Raises ValueError, as pydantic wants it."""
    if isinstance(value, str | Address):
        return (parse_address(value),)
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(f'{value!r} is neither an address such as "10.0.0.1:7443" nor a list of them')
    return tuple(parse_address(each) for each in value)


AddressField = Annotated[Address, BeforeValidator(parse_address)]
# In the order in which they are tried.
AddressesField = Annotated[tuple[Address, ...], BeforeValidator(parse_addresses)]


def _absolute(path: Path) -> Path:
    if not path.is_absolute():
        raise ValueError(f"{str(path)!r} is not an absolute path")
    return path


# A program is started from anywhere.
PathField = Annotated[Path, AfterValidator(_absolute)]


class Settings(BaseModel):
    """Base of every table of a configuration file: unknown keys are mistakes, and so are numbers that are infinite or none."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Model = TypeVar("Model", bound=Settings)


def load(path: Path, model: type[Model]) -> Model:
    """Read `path` as `model`. Raises ConfigError naming the mistakes and their places."""
    try:
        document = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(
            f"the configuration {path} cannot be read: {error.strerror}; name another with --config"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the configuration {path} is not TOML: {error}") from error
    try:
        # As JSON, for there pydantic can be strict: "4" is no number, and true neither, but a list is a tuple. Nothing takes a date.
        return model.model_validate_json(json.dumps(document, default=lambda date: [[str(date)]]), strict=True)
    except ValidationError as error:
        mistakes = error.errors(include_url=False)
        named = "; ".join(_sentence(each) for each in mistakes[:_MOST_NAMED])
        more = f"; and {len(mistakes) - _MOST_NAMED} more" if len(mistakes) > _MOST_NAMED else ""
        raise ConfigError(f"the configuration {path} is wrong at {named}{more}") from error


def said_of(place: str, mistake: ErrorDetails) -> str:
    """A mistake that pydantic has found, in our words, to go on behind "is wrong at"."""
    if mistake["type"] == "value_error":
        return f"{place}: {mistake['ctx']['error']}"
    said = re.sub("^(?:Input|String|Tuple) should", "must", mistake["msg"]).replace(" after validation", "")
    return f"{place} {_MISTAKES.get(mistake['type'], said)}"


def _sentence(mistake: ErrorDetails) -> str:
    return said_of(".".join(str(part) for part in mistake["loc"]) or "the file", mistake)

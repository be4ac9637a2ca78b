"""Configuration files: TOML, checked against a pydantic model; each mistake becomes one sentence with its place."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, NamedTuple, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from landbridge.errors import ConfigError


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
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f'{value!r} is not an address such as "10.0.0.1:7443"')
    return Address(host.strip("[]"), int(port))


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


class Settings(BaseModel):
    """Base of every table of a configuration file: unknown keys are mistakes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Model = TypeVar("Model", bound=Settings)


def load(path: Path, model: type[Model]) -> Model:
    """Read `path` as `model`. Raises ConfigError naming the first mistake and its place."""
    try:
        document = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(
            f"the configuration {path} cannot be read: {error.strerror}; name another with --config"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the configuration {path} is not TOML: {error}") from error
    try:
        return model.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        more = f" (and {error.error_count() - 1} more mistakes)" if error.error_count() > 1 else ""
        raise ConfigError(f"the configuration {path} is wrong at {place}: {first['msg']}{more}") from error

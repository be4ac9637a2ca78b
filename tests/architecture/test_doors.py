"""Rules about calls and texts, which import-linter cannot see; the rules about imports are in pyproject.toml."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = tuple(
    path
    for room in ("proto", "certs", "agent", "gateway")
    for path in sorted((ROOT / room).rglob("*.py"))
    if not path.stem.endswith(("_pb2", "_pb2_grpc")) and path.stat().st_size
)


def where(path: Path) -> str:
    return str(path.relative_to(ROOT))


def names_in(path: Path) -> Iterator[str]:
    """Every dotted name that a module uses, and every name that it imports from elsewhere, as `module.name`."""
    for part in ast.walk(ast.parse(path.read_text())):
        if isinstance(part, ast.Attribute):
            yield ast.unparse(part)
        elif isinstance(part, ast.ImportFrom):
            yield from (f"{part.module}.{name.name}" for name in part.names)


def users_of(*wanted: str) -> set[str]:
    """The modules that use one of these names, by their last part and what stands before it."""
    return {where(path) for path in PRODUCT if any(name in wanted for name in names_in(path))}


def test_the_doors_are_looked_for_where_the_product_is() -> None:
    assert {"proto/landbridge/channel.py", "certs/tls.py", "agent/relay.py", "gateway/main.py"} <= {
        where(path) for path in PRODUCT
    }


def test_logging_is_configured_in_one_place() -> None:
    assert users_of("structlog.configure", "structlog.configure_once", "logging.basicConfig") == {
        "proto/landbridge/log.py"
    }


def test_credentials_are_made_in_one_place() -> None:
    makers = [
        f"grpc.{name}"
        for name in ("ssl_channel_credentials", "ssl_server_credentials", "dynamic_ssl_server_credentials")
    ]
    assert users_of(*makers) == {"certs/tls.py"}
    assert users_of("ssl.SSLContext", "ssl.create_default_context") - {"certs/living.py"} == {"certs/tls.py"}


def test_no_port_is_opened_without_tls() -> None:
    opened = {
        name
        for path in PRODUCT
        for name in names_in(path)
        if name.endswith((".add_insecure_port", ".insecure_channel", "._create_unverified_context"))
    }
    assert opened == set()


@pytest.mark.parametrize("path", PRODUCT, ids=where)
def test_every_module_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))

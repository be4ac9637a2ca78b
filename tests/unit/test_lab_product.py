"""What the lab writes for the product: as it was for one gateway at each site, and lists for two."""

from __future__ import annotations

import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from agent.config import AgentSettings
from certs.identity import Role
from certs.store import load_identity
from gateway.config import GatewayConfig
from landbridge import config
from tests.lab.network import Network
from tests.lab.product import Product


@pytest.fixture
def product(tmp_path: Path) -> Product:
    (tmp_path / "run").mkdir()
    return Product({}, Network("unit"), tmp_path / "run", tmp_path / "big")


def written(product: Product, name: str) -> dict[str, Any]:
    return tomllib.loads(product._config(name).read_text())


def test_one_gateway_at_each_site_is_configured_with_single_addresses(product: Product) -> None:
    product.configure()
    assert [seat.label for seat in product.seats()] == ["east-gw", "west-gw"]
    gateway = written(product, "east-gw")
    assert gateway["name"] == "gw-1"
    assert gateway["listen"] == {
        "operators": "10.71.1.1:7443",
        "agents": "10.71.1.1:7444",
        "peers": "10.71.0.1:7443",
        "tunnel": "10.71.0.1:7445",
        "enrolment": "10.71.1.1:7446",
    }
    (site,) = gateway["sites"]
    assert (site["name"], site["peers"], site["tunnel"]) == ("west", "10.71.0.2:7443", "10.71.0.2:7445")
    assert gateway["patience"] == {"agent": 10.0, "cleanup": 5.0}
    assert written(product, "east-1")["gateway"] == {
        "control": ["10.71.1.1:7443"],
        "stream": ["10.71.1.1:7444"],
    }
    assert product.operator_environment("east")["LANDBRIDGE_GATEWAY"] == "10.71.1.1:7443"


def test_the_product_accepts_what_is_written_for_one_gateway(product: Product) -> None:
    product.configure()
    for name in ("east-gw", "west-gw"):
        config.load(product._config(name), GatewayConfig)
    for name in ("east-1", "east-2", "west-1", "west-2"):
        config.load(product._config(name), AgentSettings)


def test_two_gateways_of_a_site_have_a_store_in_common_and_all_else_apart(product: Product) -> None:
    product.configure(standby=True)
    first, second = written(product, "west-gw"), written(product, "west-gw-2")
    assert second["name"] == "gw-2"
    assert first["store"] == second["store"]
    assert not set(first["listen"].values()) & set(second["listen"].values())
    assert first["identity"] != second["identity"]
    assert first["sites"] == second["sites"]


def test_with_a_standby_everybody_knows_both_the_first_one_first(product: Product) -> None:
    product.configure(standby=True)
    (site,) = written(product, "east-gw")["sites"]
    assert site["peers"] == ["10.71.0.2:7443", "10.71.0.2:8443"]
    assert site["tunnel"] == ["10.71.0.2:7445", "10.71.0.2:8445"]
    assert written(product, "east-2")["gateway"] == {
        "control": ["10.71.1.1:7443", "10.71.1.1:8443"],
        "stream": ["10.71.1.1:7444", "10.71.1.1:8444"],
    }
    assert product.operator_environment("west")["LANDBRIDGE_GATEWAY"] == "10.71.2.1:7443,10.71.2.1:8443"


def test_the_standby_is_gone_when_the_lab_is_configured_without(product: Product) -> None:
    product.configure(standby=True)
    product.configure()
    assert [seat.label for seat in product.seats()] == ["east-gw", "west-gw"]


def test_the_limit_of_an_outage_is_written_if_one_is_asked_for(product: Product) -> None:
    product.configure(outage=20)
    assert written(product, "east-gw")["patience"]["outage"] == 20


def test_each_gateway_has_an_identity_of_its_own_that_trusts_the_other_site(product: Product) -> None:
    product.issue()
    for site, name in (("east", "gw-1"), ("east", "gw-2"), ("west", "gw-1"), ("west", "gw-2")):
        stored = load_identity(product.identity(site, "gateway", name), datetime.now(UTC))
        assert (stored.identity.role, stored.identity.site, stored.identity.name) == (Role.GATEWAY, site, name)
        assert len(stored.trust.roots) == 2

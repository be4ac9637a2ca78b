"""What the documents say of files, commands and configuration is so."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import click
import pytest

from agent.config import AgentSettings, FirewallSettings
from gateway.authorization import cases, rules
from gateway.cli import cli
from gateway.config import GatewayConfig
from landbridge.config import Settings

ROOT = Path(__file__).resolve().parents[2]
CONFIGURATION = (ROOT / "docs/configuration.md").read_text()
POLICY = (ROOT / "docs/policy.md").read_text()
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


class Firewall(Settings):
    """That section of an agent's file."""

    firewall: FirewallSettings


@pytest.mark.parametrize(
    ("name", "model"), [("agent", AgentSettings), ("gateway", GatewayConfig), ("firewall", Firewall)]
)
def test_the_documented_configuration_is_accepted(name: str, model: type[Settings]) -> None:
    blocks = re.findall(rf"^```toml {name}\n(.*?)^```", CONFIGURATION, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 1
    model.model_validate(tomllib.loads(blocks[0]))


def test_the_documented_policy_is_right_and_holds_its_own_tests() -> None:
    (block,) = re.findall(r"^```toml policy\n(.*?)^```", POLICY, re.MULTILINE | re.DOTALL)
    outcomes = cases.run(rules.parse(block, "docs/policy.md"))
    assert [outcome.wrong for outcome in outcomes] == [""]
    assert f"holds  {outcomes[0].case.name}: refused by {outcomes[0].decision.rule}\n" in POLICY


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_what_a_document_points_to_is_there(document: Path) -> None:
    text = document.read_text()
    links = [document.parent / link for link in re.findall(r"\]\((?!https?:)([^)#]+)", text)]
    paths = [ROOT / path for path in re.findall(r"`((?:\.ci|agent|certs|docs|gateway|proto|tests)/[\w./-]+)`", text)]
    assert [str(path) for path in (*links, *paths) if not path.exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_the_commands_that_a_document_names_exist(document: Path) -> None:
    text = document.read_text()
    made = set(re.findall(r"[`$] ?make ([a-z]+)", text))
    asked = set(re.findall(r"[`$] ?landbridge ([a-z]+)", text))
    assert made <= TARGETS
    assert asked <= set(cli.list_commands(click.Context(cli)))


def test_every_decision_says_what_it_costs() -> None:
    for path in sorted((ROOT / "docs/adr").glob("*.md")):
        assert "## Consequences" in path.read_text(), path.name
        assert "**" in path.read_text().partition("## Consequences")[2], f"{path.name} names no cost in bold"

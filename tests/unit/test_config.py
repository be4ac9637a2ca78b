"""Configuration files: what is right is read, and each mistake is one sentence with its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.config import AgentSettings
from gateway.config import GatewayConfig
from landbridge.config import Address, load, parse_address, parse_addresses
from landbridge.errors import ConfigError

AGENT = """\
site = "fra"
name = "fra-1"
[identity]
directory = "/etc/landbridge/identity"
[listen]
control = "10.0.0.1:7443"
stream = "[fd00::1]:7444"
[gateway]
stream = ["10.0.0.9:7444", "gw-2.fra.example.org:7444"]
"""
GATEWAY = """\
site = "fra"
name = "gw-1"
[identity]
directory = "/etc/landbridge/identity"
[listen]
operators = "10.0.0.9:7443"
agents = "10.0.0.9:7444"
peers = "192.0.2.1:7443"
tunnel = "192.0.2.1:7445"
[[hosts]]
name = "fra-1"
control = "10.0.0.1:7443"
stream = "10.0.0.1:7444"
[[sites]]
name = "ams"
peers = "198.51.100.1:7443"
tunnel = "198.51.100.1:7445"
[sites.pools]
images = "fast"
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "landbridge.toml"


def test_an_agents_configuration_is_read_with_its_defaults(path: Path) -> None:
    path.write_text(AGENT)
    settings = load(path, AgentSettings)
    assert settings.listen.stream == Address("fd00::1", 7444)
    assert [str(address) for address in settings.gateway.stream] == ["10.0.0.9:7444", "gw-2.fra.example.org:7444"]
    assert settings.libvirt.uri == "qemu:///system"
    assert settings.paths.state == Path("/var/lib/landbridge")


def test_a_gateways_configuration_is_read_with_its_defaults(path: Path) -> None:
    path.write_text(GATEWAY)
    settings = load(path, GatewayConfig)
    assert settings.hosts[0].control == Address("10.0.0.1", 7443)
    assert settings.sites[0].peers == (Address("198.51.100.1", 7443),)
    assert settings.sites[0].pools == {"images": "fast"}
    assert settings.sites[0].networks == {}
    assert settings.store.url == "sqlite:////var/lib/landbridge/gateway.db"
    assert settings.patience.agent > 0


@pytest.mark.parametrize("text", ["10.0.0.1:7443", "[fd00::1]:7443", "gw.example.org:0"])
def test_an_address_is_written_as_it_was_read(text: str) -> None:
    assert str(parse_address(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "10.0.0.1",
        "::1:7443",
        "[10.0.0.1:7443]:7443",
        "[::1:7443",
        "a b:7443",
        "10.0.0.1:\uff17443",
        ":7443",
        "10.0.0.1:",
        "10.0.0.1:x",
        "10.0.0.1:70000",
        "10.0.0.1:-1",
        7443,
        None,
    ],
)
def test_what_is_no_address_is_refused_with_an_example(text: object) -> None:
    with pytest.raises(ValueError, match=r"such as \"10\.0\.0\.1:7443\""):
        parse_address(text)


def test_a_site_has_as_many_addresses_as_gateways(path: Path) -> None:
    path.write_text(GATEWAY.replace('"198.51.100.1:7445"', '["198.51.100.1:7445", "[fd00::1]:7445"]'))
    settings = load(path, GatewayConfig)
    assert [str(address) for address in settings.sites[0].tunnel] == ["198.51.100.1:7445", "[fd00::1]:7445"]


@pytest.mark.parametrize("value", [[], "", ["10.0.0.1"], 7443, None, ["10.0.0.1:1", 7]])
def test_what_is_no_list_of_addresses_is_refused_with_an_example(value: object) -> None:
    with pytest.raises(ValueError, match=r"10\.0\.0\.1:7443"):
        parse_addresses(value)


def test_an_address_that_was_read_is_one_and_not_a_list() -> None:
    address = Address("10.0.0.1", 7443)
    assert parse_addresses(address) == parse_addresses((address,)) == (address,)


MISTAKES = [
    ('site = "fra"', "", "at site is missing"),
    ('site = "fra"', "site = 7", "at site must be text, in quotes"),
    ('site = "fra"', "site = 2026-11-27", "at site must be text, in quotes"),
    ('site = "fra"', 'site = "fra"\ncolour = "red"', "at colour is no key that is known here"),
    ('site = "fra"', 'Site = "fra"', "at site is missing; Site is no key that is known here"),
    ('control = "10.0.0.1:7443"', "", "at listen.control is missing"),
    ('control = "10.0.0.1:7443"', 'control = "10.0.0.1"', "at listen.control: '10.0.0.1' is not an address"),
    ('"gw-2.fra.example.org:7444"', '"gw-2"', "at gateway.stream: 'gw-2' is not an address"),
    ('stream = ["10.0.0.9:7444", "gw-2.fra.example.org:7444"]', "stream = []", "[] is neither an address"),
    ("[gateway]", "[gatewy]", "at gateway is missing; gatewy is no key that is known here"),
    ("[gateway]", "[proof]\nrate = inf\n[gateway]", "at proof.rate must be a number that is not infinite"),
    ("[gateway]", '[proof]\nrate = "5"\n[gateway]', "at proof.rate must be a number"),
    ("[gateway]", '[firewall]\npools = "fast"\n[gateway]', "at firewall.pools must be a list"),
    ("/etc/landbridge/identity", "identity", "at identity.directory: 'identity' is not an absolute path"),
    ('name = "fra-1"', 'name = "fra-1', "is not TOML"),
]


@pytest.mark.parametrize(("right", "wrong", "said"), MISTAKES)
def test_a_mistake_is_one_sentence_with_the_file_and_the_place(path: Path, right: str, wrong: str, said: str) -> None:
    assert AGENT.count(right) == 1
    path.write_text(AGENT.replace(right, wrong))
    with pytest.raises(ConfigError) as caught:
        load(path, AgentSettings)
    assert said in caught.value.message
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ('[tunnel]\nlinks = "4"', "at tunnel.links must be a whole number"),
        ("[tunnel]\nlinks = true", "at tunnel.links must be a whole number"),
        ("[tunnel]\nlinks = 65", "at tunnel.links must be less than or equal to 64"),
        ("[tunnel]\nlimit = inf", "at tunnel.limit must be a number that is not infinite"),
        ("[tunnel]\nlimit = 1e30", "at tunnel.limit must be less than or equal to"),
        ("[patience]\nagent = -1", "at patience.agent must be greater than 0"),
        ("[pages]\nsize = nan", "at pages.size must be a number"),
        ("[pages]\ndirectory = ''", "at pages.directory: '.' is not an absolute path"),
        ("[pages]\ncompare = 'all'", "at pages.compare must be 'vm', 'tenant' or 'site'"),
        ("[audit]\nretention = 99999999999", "at audit.retention must be less than or equal to 36500"),
        ("[[sites]]\nname = 'ams'", "site ams is named twice"),
        ("[[sites]]\nname = 'fra'", "site fra is named twice"),
        ("[[sites]]\nname = 'A B'", "at sites.1.name: 'A B' is no valid site name"),
        ("[[hosts]]\nname = 'fra-1'\ncontrol = 'a:1'\nstream = 'a:2'", "host fra-1 is named twice"),
        ("[a]\n[b]\n[c]\n[d]\n[e]", "c is no key that is known here; and 2 more"),
    ],
)
def test_a_gateway_takes_no_value_that_it_could_not_work_with(path: Path, table: str, said: str) -> None:
    path.write_text(f"{GATEWAY}{table}\n")
    with pytest.raises(ConfigError) as caught:
        load(path, GatewayConfig)
    assert said in caught.value.message


def test_a_file_that_is_not_there_or_is_no_text_is_named(path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read: No such file or directory; name another with --config"):
        load(path, AgentSettings)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not TOML"):
        load(path, AgentSettings)
    with pytest.raises(ConfigError, match="Is a directory"):
        load(path.parent, AgentSettings)


def test_a_site_has_both_kinds_of_addresses_or_neither(path: Path) -> None:
    peers, tunnel = 'peers = "198.51.100.1:7443"\n', 'tunnel = "198.51.100.1:7445"\n'
    path.write_text(GATEWAY.replace(peers, "").replace(tunnel, ""))
    assert load(path, GatewayConfig).sites[0].peers == ()
    path.write_text(GATEWAY.replace(tunnel, ""))
    with pytest.raises(ConfigError, match=r"at sites\.0: .*peers and tunnel are both needed"):
        load(path, GatewayConfig)


SHIPPED = '[audit.ship.siem]\nsyslog = "siem.example.org:6514"\nca = "/etc/ssl/siem.pem"\n'
LINES = '[audit.ship.lines]\nfile = "/var/log/landbridge/audit.jsonl"\n'


def test_the_audit_log_may_be_shipped_to_several_places(path: Path) -> None:
    path.write_text(GATEWAY + SHIPPED + LINES)
    ship = load(path, GatewayConfig).audit.ship
    assert list(ship) == ["siem", "lines"]
    assert ship["siem"].syslog == Address("siem.example.org", 6514)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("[audit.ship.x]\n", "audit.ship.x: syslog = "),
        (LINES + 'syslog = "a:1"\n', "and not both"),
        ('[audit.ship.x]\nsyslog = "a:1"\n', "ca is needed with syslog"),
        (SHIPPED + 'format = "ocsf"\n', "format go with file only"),
        (LINES + 'ca = "/ca.pem"\n', "ca go with syslog only"),
        (SHIPPED + 'key = "/key.pem"\n', "key is needed with certificate only"),
        (LINES.replace("lines", '"../x"'), "must match pattern"),
    ],
)
def test_a_place_to_ship_to_is_one_and_says_what_it_needs(path: Path, table: str, said: str) -> None:
    path.write_text(GATEWAY + table)
    with pytest.raises(ConfigError) as caught:
        load(path, GatewayConfig)
    assert said in caught.value.message

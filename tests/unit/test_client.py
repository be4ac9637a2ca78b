import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

import certs  # noqa: F401 - holds the TLS floor, for which it must be imported before grpc

# isort: split
import grpc

import landbridge
from landbridge.client import _error
from landbridge.errors import (
    Conflict,
    HostUnreachable,
    NotAuthenticated,
    NotFound,
    PreflightFailed,
    ProtocolError,
    Unreachable,
    UsageError,
)
from landbridge.v1 import gateway_pb2 as api
from landbridge.v1 import types_pb2 as types
from tests.unit.fake_gateway import FINDINGS, ID, FakeGateway, completed, copying_memory, requested


@pytest.fixture
def fake() -> Iterator[FakeGateway]:
    with FakeGateway() as fake:
        yield fake


def test_each_verb_returns_the_messages_of_the_contract(fake: FakeGateway) -> None:
    fake.know([completed()])
    fake.hosts, fake.unreachable = [types.Host(name="host-a")], [types.Host(name="host-c")]
    fake.removed = ["a disk"]
    with fake.client() as client:
        assert client.sites() == []
        assert [host.name for host in client.hosts()] == ["host-a"]
        assert [host.name for host in client.vms().unreachable] == ["host-c"]
        assert client.preflight("web-01", "ams").passed
        assert client.migrations() == [client.migration(ID[:4])] == [completed()]
        assert client.cancel(ID) == completed()
        assert client.settle(ID).removed == ["a disk"]
        assert client.activate(ID, source_is_lost="it burns").id == ID
        assert client.migrate("web-01", "ams", "host-b") == requested()
    assert "migrate web-01 ams/host-b" in fake.asked
    assert f"activate {ID}: it burns" in fake.asked


def test_watch_gives_the_migration_now_and_each_change_and_the_end(fake: FakeGateway) -> None:
    fake.know([requested()])
    fake.play(copying_memory(), completed())
    with fake.client() as client:
        assert list(client.watch(ID)) == [requested(), copying_memory(), completed()]


def test_an_error_of_the_gateway_keeps_its_kind_its_sentence_and_its_details(fake: FakeGateway) -> None:
    fake.refuse = HostUnreachable("host-a is down.", details={"host": "host-a"})
    with fake.client() as client, pytest.raises(HostUnreachable, match=r"^host-a is down\.$") as caught:
        client.hosts()
    assert caught.value.details == {"host": "host-a"}


@pytest.mark.parametrize(
    ("ask", "kind"),
    [
        (lambda client: client.migration("0000"), NotFound),
        (lambda client: list(client.watch("0000")), NotFound),
        (lambda client: client.settle(ID), Conflict),
        (lambda client: client.migrate("web-01", "ams"), PreflightFailed),
    ],
)
def test_errors_are_of_the_tree(fake: FakeGateway, ask: object, kind: type[Exception]) -> None:
    fake.know([requested()])
    fake.findings = FINDINGS
    with fake.client() as client, pytest.raises(kind):
        ask(client)  # type: ignore[operator]


def test_an_unreachable_gateway_is_named_by_its_address(fake: FakeGateway) -> None:
    fake.stop()
    with fake.client() as client, pytest.raises(Unreachable, match="connection refused") as caught:
        client.sites()
    assert fake.address in caught.value.message


def test_after_an_unanswered_migrate_the_error_says_that_it_may_have_begun(fake: FakeGateway) -> None:
    fake.stop()
    with fake.client() as client, pytest.raises(Unreachable, match="may have begun"):
        client.migrate("web-01", "ams")


def test_a_gateway_that_vanishes_ends_the_watch_with_unreachable(fake: FakeGateway) -> None:
    fake.know([requested()])
    fake.play(copying_memory(), fake.vanish)
    with fake.client() as client:
        watched = client.watch(ID)
        assert [next(watched), next(watched)] == [requested(), copying_memory()]
        with pytest.raises(Unreachable):
            next(watched)


def test_text_that_is_no_unicode_is_a_usage_error(fake: FakeGateway) -> None:
    with fake.client() as client, pytest.raises(UsageError, match="not Unicode"):
        client.migration("\udcff")


def test_a_limit_is_set_for_a_migration_or_a_tunnel(fake: FakeGateway) -> None:
    fake.know([copying_memory()])
    fake.sites = [api.Site(name="ams")]
    with fake.client() as client:
        client.set_limit(6_250_000, migration=ID[:4])
        assert client.migration(ID).limit == 6_250_000
        client.set_limit(0, migration=ID)
        assert client.migration(ID).limit == 0
        client.set_limit(125_000_000, site="ams")
        client.set_limit(site="ams", links=8)
        (site,) = client.sites()
        assert (site.limit, site.links) == (125_000_000, 8)
        client.set_limit(site="ams", reset=True)
        (site,) = client.sites()
    assert (site.limit, site.links) == (0, 4)


@pytest.mark.parametrize(
    "given",
    [
        {"bytes_per_second": 1},
        {"bytes_per_second": 1, "migration": ID, "site": "ams"},
        {"migration": ID},
        {"site": "ams"},
        {"bytes_per_second": 1, "migration": ID, "links": 4},
        {"bytes_per_second": -1, "migration": ID},
        {"bytes_per_second": 2**64, "site": "ams"},
        {"links": -1, "site": "ams"},
        {"links": 2**32, "site": "ams"},
        {"reset": True},
        {"reset": True, "migration": ID},
        {"reset": True, "site": "ams", "links": 4},
        {"reset": True, "site": "ams", "bytes_per_second": 0},
    ],
)
def test_a_limit_that_says_too_little_or_too_much_is_a_usage_error(fake: FakeGateway, given: dict[str, Any]) -> None:
    with fake.client() as client, pytest.raises(UsageError):
        client.set_limit(**given)
    assert fake.asked == []


# Several gateways of one site


@pytest.fixture
def second() -> Iterator[FakeGateway]:
    with FakeGateway() as fake:
        yield fake


def test_the_first_gateway_that_answers_is_asked_and_asked_again(fake: FakeGateway, second: FakeGateway) -> None:
    fake.stop()
    with fake.client(second) as client:
        assert client.target == f"{fake.address},{second.address}"
        client.sites()
        fake.start()
        client.hosts()
    assert second.asked == ["sites", "hosts"]
    assert fake.asked == []


def test_an_error_that_a_gateway_answers_is_its_answer(fake: FakeGateway, second: FakeGateway) -> None:
    fake.refuse = HostUnreachable("host-a is down.")
    with fake.client(second) as client, pytest.raises(HostUnreachable, match="host-a"):
        client.hosts()
    assert second.asked == []


def test_if_no_gateway_answers_the_error_names_all_of_them(fake: FakeGateway, second: FakeGateway) -> None:
    fake.stop()
    second.stop()
    with fake.client(second) as client:
        for ask in (client.sites, lambda: list(client.watch(ID))):
            with pytest.raises(Unreachable) as caught:
                ask()
            assert fake.address in caught.value.message
            assert second.address in caught.value.message


def test_migrate_goes_on_to_the_next_gateway_if_the_first_cannot_have_got_it(
    fake: FakeGateway, second: FakeGateway
) -> None:
    fake.stop()
    with fake.client(second) as client:
        assert client.migrate("web-01", "ams") == requested()


def test_migrate_does_not_go_on_where_it_may_have_begun(
    fake: FakeGateway, second: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake, "_errors", fake.vanish)
    with fake.client(second) as client, pytest.raises(Unreachable, match="may have begun"):
        client.migrate("web-01", "ams")
    assert second.asked == []


def test_a_watch_that_loses_its_gateway_goes_on_at_the_next_one(fake: FakeGateway, second: FakeGateway) -> None:
    for gateway in (fake, second):
        gateway.know([requested()])
    fake.play(copying_memory(), fake.vanish)
    second.play(copying_memory(3), completed())
    with fake.client(second) as client:
        seen = list(client.watch(ID))
    assert seen == [requested(), copying_memory(), requested(), copying_memory(3), completed()]


def test_a_watch_that_a_gateway_ends_before_the_migration_has_ended_goes_on_too(
    fake: FakeGateway, second: FakeGateway
) -> None:
    fake.know([requested()])
    second.know([completed()])
    with fake.client(second) as client:
        assert list(client.watch(ID)) == [requested(), completed()]
    # Nobody knows better: the same is not said for ever.
    second.know([requested()])
    with fake.client(second) as client, pytest.raises(Unreachable, match="may be shutting down"):
        list(client.watch(ID))


class Unavailable(grpc.RpcError):
    def __init__(self, details: str) -> None:
        self.said = details

    def details(self) -> str:
        return self.said

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNAVAILABLE

    def trailing_metadata(self) -> tuple[()]:
        return ()


@pytest.mark.parametrize(
    ("details", "kind", "said"),
    [  # as gRPC 1.85 says it
        ("SSL_ERROR_SSL: error:1000007d: CERTIFICATE_VERIFY_FAILED", NotAuthenticated, "does not trust"),
        ("Custom verification check failed: Hostname Verification", NotAuthenticated, "expected site"),
        ("Tls handshake failed: SSL_ERROR_SSL: WRONG_VERSION_NUMBER", ProtocolError, "does not speak TLS"),
        ("UNAVAILABLE: ipv4:127.0.0.1:17443: Socket closed", Unreachable, "closed the connection"),
        ("Handshake read failed (Socket closed)", Unreachable, "closed the connection"),
        ("Handshake read failed (Endpoint closing)", Unreachable, "in time"),
        ("something new", Unreachable, "something new"),
    ],
)
def test_what_grpc_says_becomes_what_to_look_at(details: str, kind: type[Exception], said: str) -> None:
    error = _error("gateway:7443", Unavailable(details))
    assert type(error) is kind
    assert said in error.message
    assert "gateway:7443" in error.message


def test_importing_landbridge_loads_no_grpc_so_that_the_tls_floor_can_be_set() -> None:
    check = "import landbridge, sys; assert 'grpc' not in sys.modules; landbridge.connect; import grpc"
    subprocess.run([sys.executable, "-c", check], check=True)


def test_the_command_line_holds_the_tls_floor_and_keeps_grpc_quiet() -> None:
    check = "import gateway.cli; from certs import floor; floor.require(); "
    check += "import os; assert os.environ['GRPC_VERBOSITY'] == 'NONE'"
    subprocess.run([sys.executable, "-c", check], check=True)


def test_landbridge_has_no_other_lazy_names() -> None:
    with pytest.raises(AttributeError, match="no attribute 'disconnect'"):
        _ = landbridge.disconnect

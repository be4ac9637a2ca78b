"""`landbridge hosts remove` and `landbridge sites leave`: what they ask for, what they say, and how they say what was refused."""
# ruff: noqa: N802 - the contract names the methods of a servicer

import certs  # noqa: F401 - holds the TLS floor, for which it must be imported before grpc

# isort: split
import json
from collections.abc import Iterator
from concurrent import futures

import grpc
import pytest
from google.protobuf.message import Message

from gateway.cli import connection
from landbridge.client import Client
from landbridge.errors import Conflict, LandbridgeError, to_status
from landbridge.v1 import enrolment_pb2 as pb
from landbridge.v1.enrolment_pb2_grpc import IdentitiesServicer, add_IdentitiesServicer_to_server
from tests.unit.fake_gateway import Run


class FakeIdentities(IdentitiesServicer):
    """Answers what a test has set, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Message] = []
        self.refuse: LandbridgeError | None = None
        self.removed = pb.RemoveHostResponse(name="host-a")
        self.left = pb.LeaveSiteResponse(site="spiffe://example.org/site/ams")

    def _hear(self, request: Message, context: grpc.ServicerContext) -> None:
        self.asked.append(request)
        if self.refuse is not None:
            status = to_status(self.refuse)
            context.set_trailing_metadata(tuple(status.trailing.items()))
            context.abort(grpc.StatusCode[status.name], status.message)

    def RemoveHost(self, request: pb.RemoveHostRequest, context: grpc.ServicerContext) -> pb.RemoveHostResponse:
        self._hear(request, context)
        return self.removed

    def LeaveSite(self, request: pb.LeaveSiteRequest, context: grpc.ServicerContext) -> pb.LeaveSiteResponse:
        self._hear(request, context)
        return self.left


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeIdentities]:
    made = FakeIdentities()  # type: ignore[abstract]  # what is not called is not there
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=2))
    add_IdentitiesServicer_to_server(made, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    monkeypatch.setattr(connection, "connect", lambda _: Client({address: grpc.insecure_channel(address)}))
    yield made
    server.stop(grace=None).wait()


def test_a_host_is_removed_and_what_is_left_on_it_is_said(fake: FakeIdentities, run: Run) -> None:
    assert run("hosts", "remove", "host-a") == (
        0,
        "Removed host host-a: its certificate is worthless from now on.\n",
        "",
    )
    fake.removed.vms.extend(["db", "web\x1b[2J"])
    fake.removed.unsettled.append("3f2a91c4d07e4b62a1589c0e7d41f6b3")
    code, out, _ = run("hosts", "remove", "host-a", "--reason", "sold", "--force")
    assert (code, out.splitlines()[1:]) == (
        0,
        [
            "It has VMs, which stay as they are: db, web�[2J.",
            "Not settled, so that its disks still hold what was moved away: 3f2a91c4.",
        ],
    )
    assert fake.asked == [
        pb.RemoveHostRequest(name="host-a"),
        pb.RemoveHostRequest(name="host-a", reason="sold", force=True),
    ]


def test_of_a_host_that_was_not_asked_it_is_said_what_that_means(fake: FakeIdentities, run: Run) -> None:
    fake.removed.unreachable = "host host-a does not answer at 10.1.0.11:7443"
    _, out, _ = run("hosts", "remove", "host-a", "--force")
    assert out.splitlines()[1:] == [
        "It could not be asked which VMs it has: host host-a does not answer at 10.1.0.11:7443.",
        "See that it stays off: what runs there runs on, where nobody here sees it.",
    ]


def test_a_site_is_left_and_whom_to_tell_is_said(fake: FakeIdentities, run: Run) -> None:
    assert run("sites", "leave", "ams") == (0, "Left ams: nobody there is believed here any more.\n", "")
    fake.left.untold = "site ams does not answer at 198.51.100.1:7446"
    code, out, _ = run("sites", "leave", "ams", "--force", "--reason", "sold")
    assert (code, out.splitlines()[1:]) == (
        0,
        [
            "ams may still believe this site: site ams does not answer at 198.51.100.1:7446.",
            "Have its operators run `landbridge sites leave` at ams, with the name of this site.",
        ],
    )
    assert fake.asked == [
        pb.LeaveSiteRequest(site="ams"),
        pb.LeaveSiteRequest(site="ams", reason="sold", force=True),
    ]


def test_both_tell_all_fields_as_json(fake: FakeIdentities, run: Run) -> None:
    assert json.loads(run("hosts", "remove", "host-a", "--json")[1]) == {
        "type": "removed",
        "name": "host-a",
        "vms": [],
        "unreachable": "",
        "unsettled": [],
    }
    assert json.loads(run("sites", "leave", "ams", "--json")[1]) == {
        "type": "left",
        "site": "spiffe://example.org/site/ams",
        "untold": "",
    }


@pytest.mark.parametrize("argv", [("hosts", "remove", "host-a"), ("sites", "leave", "ams")])
def test_a_refusal_is_one_sentence_and_has_its_exit_code(fake: FakeIdentities, run: Run, argv: tuple[str, ...]) -> None:
    fake.refuse = Conflict("migration 3f2a of web-01 is under way: wait for it")
    code, out, err = run(*argv)
    assert (code, out, err.count("\n")) == (4, "", 1)
    assert "migration 3f2a of web-01 is under way: wait for it" in err


@pytest.mark.parametrize(
    "argv",
    [
        ("hosts", "remove"),
        ("hosts", "remove", "a", "b"),
        ("hosts", "remove", "a", "--reason", ""),
        ("sites", "leave"),
        ("sites", "leave", "AMS!"),
        ("sites", "leave", "ams", "--reason", "two\nlines"),
    ],
)
def test_what_makes_no_sense_is_not_asked(fake: FakeIdentities, run: Run, argv: tuple[str, ...]) -> None:
    code, _, err = run(*argv)
    assert (code, fake.asked) == (2, [])
    assert err

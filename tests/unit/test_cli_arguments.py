"""Whatever stands on the command line, the answer is a sentence and an exit code."""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.cli import connection, main
from landbridge.client import Client
from landbridge.errors import BY_CODE
from tests.unit.fake_gateway import ID, FakeGateway, cancelled, completed, requested

_CODES = {0, 2, *(kind.exit_code for kind in BY_CODE.values())} - {70}
# "certs" is left out: it writes files.
_WORDS = st.sampled_from(
    "sites hosts vms migrate migrations show watch cancel settle --to --json --detach --dry-run --help "
    f"--gateway --identity --version -h -- - web-01 ams ams/host-b host-a:7443 {ID} 3f2a".split()
)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGateway]:
    with FakeGateway() as fake, fake.client() as client:

        def connect(_: object) -> Client:
            return Client({client.target: client._gateways[0].channel})

        monkeypatch.setattr(Client, "close", lambda _: None)  # one connection serves all examples
        monkeypatch.setattr(connection, "connect", connect)
        yield fake
        monkeypatch.undo()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(_WORDS | st.text(max_size=20).filter(lambda text: text != "certs"), max_size=6))
def test_no_arguments_give_a_traceback(fake: FakeGateway, capsys: pytest.CaptureFixture[str], argv: list[str]) -> None:
    fake.migrations.clear()
    fake.know([requested()])
    fake.on_cancel = [cancelled()]
    fake.play(completed())
    code = main(argv)
    said = capsys.readouterr().err
    assert code in _CODES
    assert "Traceback" not in said
    assert code == 0 or said


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        ("migrate web-01 --to AMS", "'AMS' is no valid site name"),
        ("migrate web-01 --to ams/", "'' is no valid name"),
        ("migrate web-01 --to ams/a/b", "Give SITE or SITE/HOST, such as ams or ams/host-b."),
        ("migrate a/b/c --to ams", "'a/b/c' names no VM"),
        ("migrate web-01", "Missing option '--to'"),
        ("show 3f2", "give its first four characters or more"),
        ("--gateway host sites", "'host' is no address: give HOST:PORT"),
        ("--gateway host:99999 sites", "'host:99999' is no address"),
        ("--gateway host:7443,host sites", "'host' is no address: give HOST:PORT"),
        ("--gateway host:7443, sites", "'' is no address: give HOST:PORT"),
        ("sites --gateway host:1", "--gateway stands before the command"),
        ("shw", "No such command 'shw'"),
        ("sites --nonsense", "see `landbridge sites --help`"),
    ],
)
def test_a_wrong_argument_gives_one_sentence_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], argv: str, sentence: str
) -> None:
    assert main(argv.split()) == 2
    said = capsys.readouterr().err
    assert said.startswith("landbridge: ")
    assert sentence in said
    assert said.count("\n") == 1


def test_without_a_gateway_or_an_identity_the_sentence_names_option_and_variable(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LANDBRIDGE_GATEWAY", raising=False)
    monkeypatch.delenv("LANDBRIDGE_IDENTITY", raising=False)
    assert main(["sites"]) == 2
    assert "use --gateway HOST:PORT or set LANDBRIDGE_GATEWAY" in capsys.readouterr().err
    monkeypatch.setenv("LANDBRIDGE_GATEWAY", "host:7443")
    assert main(["sites"]) == 2
    assert "use --identity DIR or set LANDBRIDGE_IDENTITY" in capsys.readouterr().err


def test_an_identity_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--gateway", "host:7443", "--identity", "/nonexistent", "sites"]) == 3
    assert "/nonexistent/cert.pem does not exist" in capsys.readouterr().err


def test_version_and_help_go_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("landbridge ")
    assert main(["migrate", "--help"]) == 0
    assert "Usage: landbridge migrate" in capsys.readouterr().out


def test_a_defect_of_ours_is_shown_with_its_traceback_and_exit_code_70(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: object) -> Client:
        raise ZeroDivisionError

    monkeypatch.setattr(connection, "connect", broken)
    assert main(["sites"]) == 70
    assert "please report it" in capsys.readouterr().err

"""Whatever stands on the command line, the answer is a sentence and an exit code."""

from collections.abc import Iterator

import click
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.cli import arguments, cli, connection, main, words
from gateway.config import MOST_LINKS
from landbridge.client import Client
from landbridge.errors import BY_CODE
from tests.unit.fake_gateway import ID, FakeGateway, cancelled, completed, requested

_CODES = {0, 2, *(kind.exit_code for kind in BY_CODE.values())} - {70}
# "certs" is left out: it writes files.
_WORDS = st.sampled_from(
    "sites hosts vms migrate migrations show watch limit cancel settle --to --json --detach --dry-run --help "
    "--site --links 3 50Mbit/s none "
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
        ("migrate web-01", "Missing option '--to' (see `landbridge migrate --help`)"),
        ("show", "Missing argument 'ID' (see `landbridge show --help`)"),
        ("policy explain web --to ams --as x_y", "Give NAME, SITE/NAME or a SPIFFE ID"),
        ("policy explain web --to ams --as spiffe://x", "Give NAME, SITE/NAME or a SPIFFE ID"),
        ("receipt 3f2a --text --out x", "--text writes no file"),
        (f"certs revoke host/a --reason {'x' * 501}", "Say why, in one line"),
        ("show 3f2", "give its first four characters or more"),
        ("--gateway host sites", "'host' is no address: give HOST:PORT"),
        ("--gateway host:99999 sites", "'host:99999' is no address"),
        ("--gateway host:7443,host sites", "'host' is no address: give HOST:PORT"),
        ("--gateway host:7443, sites", "'' is no address: give HOST:PORT"),
        ("sites --gateway host:1", "--gateway stands before the command"),
        ("limit 3f2a", "Give a migration's ID and a RATE"),
        ("limit 50Mbit/s", "Give a migration's ID and a RATE"),
        ("limit 50Mbit/s 3f2a", "Invalid value for 'ID': '50Mbit/s' is no migration's id"),
        ("limit 3f2a 50", "Invalid value for 'RATE': '50' is no rate: give a number with its unit"),
        ("limit 3f2a 50Mbit/s --links 3", "name it with --site"),
        ("limit --site ams", "Give a RATE for the tunnel, or --links N"),
        ("limit --site AMS none", "'AMS' is no valid site name"),
        ("limit --site ams 3f2a 50Mbit/s", "'3f2a 50Mbit/s' is no rate"),
        ("limit --site ams --links 65", "65 is not in the range 1<=x<=64"),
        ("migrate web --to ams --max-downtime 9", "9 is not in the range 10<=x<=60000"),
        ("migrate web --to ams --on-no-convergence hope", "'hope' is not one of"),
        ("migrate web --to ams --deadline 15min", "--deadline needs --on-no-convergence=pause or =cancel"),
        ("migrate web --to ams --deadline 15", "'15' is no duration: give a number with its unit, such as 90s"),
        ("migrate web --to ams --deadline 0s", "'0s' is over at once"),
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


@pytest.mark.parametrize(
    ("text", "bytes_per_second"),
    [
        ("0", 0),
        ("none", 0),
        ("0 Mbit/s", 0),
        ("50Mbit/s", 6_250_000),
        ("50 Mbit/s", 6_250_000),
        ("200 Mbit", 25_000_000),
        (" 1Gbit/s ", 125_000_000),
        ("1.5Gbit/s", 187_500_000),
        ("800kbit/s", 100_000),
        ("12bit/s", 1),
        ("12.5MB/s", 12_500_000),
        ("512B", 512),
        ("6 MiB/s", 6_291_456),
        ("0.1GiB/s", 107_374_182),
        ("800Tbit/s", 10**14),
    ],
)
def test_a_rate_is_a_number_with_its_unit(text: str, bytes_per_second: int) -> None:
    assert arguments.RATE.convert(text, None, None) == bytes_per_second


@pytest.mark.parametrize(
    "text",
    [
        *("", "50", "50M", "Mbit/s", "/s", "inf", "nan", "None", "\x1b[2J"),
        *("50Mb/s", "50mB", "50Mbps", "50Mbit/h", "50Mbit/s/s"),
        *("-1Mbit", "1e6bit", "1,5Gbit", ".5MB", "5.MB", "1 000kB", "\N{ARABIC-INDIC DIGIT FIVE}Mbit"),
        *("0.1bit/s", "801Tbit/s", "999999999999999TiB", "9999999999999999kB"),
    ],
)
def test_what_is_no_rate_is_told_so_in_one_sentence_that_shows_one(text: str) -> None:
    with pytest.raises(click.BadParameter) as caught:
        arguments.RATE.convert(text, None, None)
    assert "none for no limit." in caught.value.message
    assert caught.value.message.isprintable()


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [("90s", 90_000), ("15min", 900_000), ("15 m", 900_000), ("1.5h", 5_400_000), ("250ms", 250), ("0.001s", 1)],
)
def test_a_duration_is_read_in_each_unit(text: str, milliseconds: int) -> None:
    assert arguments.DURATION.convert(text, None, None) == milliseconds


@given(st.integers(0, 10**5), st.sampled_from(["kbit/s", "Mbit/s", "Gbit/s"]))
def test_a_rate_of_four_figures_is_read_as_it_is_shown(tenths: int, unit: str) -> None:
    number = float(f"{tenths / 10:.4g}")
    rate = arguments.RATE.convert(f"{number:.1f}{unit}", None, None)
    assert arguments.RATE.convert(words.limit(rate), None, None) == pytest.approx(rate, rel=1e-3, abs=1)


def test_the_command_line_allows_as_many_links_as_the_gateway() -> None:
    limit = cli.get_command(click.Context(cli), "limit")
    assert limit is not None
    (links,) = (param for param in limit.params if param.name == "links")
    assert isinstance(links.type, click.IntRange)
    assert links.type.max == MOST_LINKS

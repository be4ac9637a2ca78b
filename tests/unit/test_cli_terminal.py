"""The command line on a real terminal of 80 columns (a pty)."""

import io
import os
import pty
import re
import signal
import threading
from collections.abc import Callable, Iterator

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from rich.cells import cell_len
from rich.console import Console, RenderableType

from gateway.cli import connection, main
from gateway.cli.live import LiveView
from landbridge.v1 import types_pb2 as types
from landbridge.v1.types_pb2 import Migration
from tests.unit.fake_gateway import (
    FINDINGS,
    GIB,
    ID,
    MIB,
    FakeGateway,
    completed,
    copying_disks,
    copying_memory,
    failed,
    migration,
    outage,
)

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGateway]:
    with FakeGateway() as fake:
        monkeypatch.setattr(connection, "connect", lambda _: fake.client())
        yield fake


@pytest.fixture
def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    def run(*argv: str, columns: int = 80) -> tuple[int, str]:
        monkeypatch.setenv("TERM", "xterm-256color")
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setenv("LINES", "24")
        monkeypatch.delenv("NO_COLOR", raising=False)
        primary, secondary = pty.openpty()
        written = bytearray()

        def read() -> None:
            try:
                while chunk := os.read(primary, 4096):
                    written.extend(chunk)
            except OSError:  # EIO: the other end is closed
                pass

        reader = threading.Thread(target=read)
        reader.start()
        with open(secondary, "w", encoding="utf-8") as terminal, monkeypatch.context() as patch:  # noqa: PTH123
            patch.setattr("sys.stdout", terminal)
            patch.setattr("sys.stderr", terminal)
            code = main(argv)
        reader.join()
        os.close(primary)
        return code, written.decode()

    return run


OnTerminal = Callable[..., tuple[int, str]]


def lines(screen: str) -> list[str]:
    return re.split("[\r\n]+", _CONTROL.sub("", screen))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A step that waits until the live view has drawn the copying of memory."""
    seen = threading.Event()
    render = LiveView.render

    def rendered(view: LiveView) -> RenderableType:
        if view._migration == copying_memory():
            seen.set()
        return render(view)

    def wait() -> None:
        assert seen.wait(10)

    monkeypatch.setattr(LiveView, "render", rendered)
    return wait


def test_the_live_view_is_drawn_and_the_summary_stays(
    fake: FakeGateway, on_terminal: OnTerminal, drawn: Callable[[], None]
) -> None:
    fake.play(copying_memory(), drawn, completed())
    code, screen = on_terminal("migrate", "web-01", "--to", "ams")
    assert code == 0
    assert "2.0 GiB done" in screen
    assert "Ctrl-C detaches" in screen
    assert "\x1b[?25l" in screen, "the cursor is hidden while drawing"
    assert screen.rindex("\x1b[?25h") < screen.rindex("has moved"), "and back before the summary"
    assert max(map(cell_len, lines(screen))) <= 80


def test_ctrl_c_on_a_terminal_gives_the_cursor_back(
    fake: FakeGateway, on_terminal: OnTerminal, drawn: Callable[[], None]
) -> None:
    fake.play(copying_memory(), drawn, lambda: os.kill(os.getpid(), signal.SIGINT))
    code, screen = on_terminal("migrate", "web-01", "--to", "ams")
    assert code == 130
    assert screen.rindex("\x1b[?25h") < screen.rindex("Detached; the migration goes on.")


def test_tables_fit_80_columns(fake: FakeGateway, on_terminal: OnTerminal) -> None:
    long = "db-primary-frankfurt-postgresql-15-production"
    asked = Timestamp(seconds=1_700_000_000)
    fake.know([completed(vm=long, requested_at=asked, source_host=f"{long}.rack-17"), failed("x" * 200)])
    fake.vms = [types.Vm(name=long, host=long, state=types.VM_STATE_RUNNING, memory=999 * GIB, busy=True)]
    fake.hosts = [
        types.Host(site="fra", name=long, memory=999 * GIB, libvirt_version="10.10.10"),
        types.Host(site="fra", name="host-a", unreachable="it does not answer, " * 10),
    ]
    for verb in ("migrations", "vms", "hosts"):
        code, screen = on_terminal(verb)
        assert code == 0
        assert max(map(cell_len, lines(screen))) <= 80
        assert "…" in screen or verb == "migrations"


def test_on_a_terminal_that_no_table_fits_each_cell_has_a_line(fake: FakeGateway, on_terminal: OnTerminal) -> None:
    fake.vms = [types.Vm(name="web-01", host="host-a", state=types.VM_STATE_RUNNING, memory=4 * GIB)]
    fake.hosts = [
        types.Host(site="fra", name="host-a", cpus=16, memory=64 * GIB, libvirt_version="10.10.10"),
        types.Host(site="fra", name="host-b", unreachable="it does not answer, " * 10),
    ]
    for verb in ("vms", "hosts"):
        code, screen = on_terminal(verb, columns=40)
        assert code == 0
        assert max(map(cell_len, lines(screen))) <= 40
    assert [line.split() for line in lines(screen)[:3]] == [
        ["HOST", "fra/host-a"],
        ["CPUS", "16"],
        ["MEMORY", "64.0", "GiB"],
    ]
    assert "    unreachable: it does not answer, it" in lines(screen)


def test_an_empty_list_is_a_sentence_on_a_terminal(fake: FakeGateway, on_terminal: OnTerminal) -> None:
    assert "No VM has been migrated yet." in on_terminal("migrations")[1]


def test_findings_are_coloured_on_a_terminal_only(fake: FakeGateway, on_terminal: OnTerminal) -> None:
    fake.findings = FINDINGS
    code, screen = on_terminal("migrate", "web-01", "--to", "ams", "--dry-run")
    assert code == 5
    assert "\x1b[31merror" in screen
    assert max(map(cell_len, lines(screen))) <= 80


def frame(migration: Migration, trouble: str = "") -> list[str]:
    console = Console(width=80, record=True, force_terminal=True, color_system=None, file=io.StringIO())
    view = LiveView(console)
    view.show(migration)
    if trouble:
        view.note(trouble, trouble=True)
    console.print(view.render())
    return console.export_text().splitlines()


def test_a_frame_says_where_the_migration_is() -> None:
    drawn = frame(copying_memory())
    assert drawn[0] == f"{'web-01: fra/host-a to ams/host-b':<66}copying memory"
    assert "100 % 20.0 GiB done      0 B left" in drawn[1]
    assert "50 %  2.0 GiB done  2.0 GiB left" in drawn[2]
    assert drawn[3] == f"{'pass 2   rate 118 MiB/s   dirty 12.0 MiB/s':<57}elapsed 3:03   ETA 0:18"


def test_a_frame_says_when_the_memory_does_not_converge_and_when_something_is_off() -> None:
    drawn = "\n".join(frame(copying_memory(dirty_rate=200 * MIB, eta_ms=None, converges=False)))
    assert "dirties memory faster" in drawn
    assert "ETA" not in drawn
    drawn = "\n".join(frame(copying_disks(reason="The tunnel is down."), trouble="The gateway is away."))
    assert "The tunnel is down.\nThe gateway is away." in drawn


def test_a_frame_of_an_outage_says_so_instead_of_the_rates_of_before() -> None:
    drawn = frame(outage(42, copying_memory(dirty_rate=200 * MIB)))
    assert drawn[3] == f"{'pass 2':<68}elapsed 3:03"
    assert drawn[4] == "WAN to site ams down 42 s, migration holds, guest runs on at fra"
    assert drawn[5] == "Ctrl-C detaches; the migration goes on."


def test_a_frame_says_how_much_the_guest_is_throttled_and_no_doubt_where_there_is_none() -> None:
    drawn = frame(copying_memory(converges=True, throttle=30))
    assert drawn[4] == "30 % of the guest's CPU time are taken away, so that its memory converges."
    assert "dirties" not in "\n".join(drawn)


def test_a_frame_says_what_is_saved() -> None:
    saving = types.Saving(kind="ram", fate=types.FATE_ZERO, bytes_stream=300 * MIB, bytes_wan=MIB)
    drawn = frame(copying_memory(summary=types.Summary(savings=[saving])))
    assert drawn[4] == "300 MiB from the guest, 1.0 MiB on the WAN: zero 300 MiB"


def test_a_frame_names_the_limit() -> None:
    assert frame(copying_memory(limit=6_250_000))[-1] == (
        "Limited to 50 Mbit/s. Ctrl-C detaches; the migration goes on."
    )


def test_an_outage_is_yellow_on_a_terminal_and_gone_when_it_is_over(
    fake: FakeGateway, on_terminal: OnTerminal, drawn: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = threading.Event()
    render = LiveView.render

    def rendered(view: LiveView) -> RenderableType:
        if view._migration == outage(42):
            silent.set()
        return render(view)

    monkeypatch.setattr(LiveView, "render", rendered)

    def wait() -> None:
        assert silent.wait(10)

    fake.play(outage(42), wait, copying_memory(), drawn, completed())
    code, screen = on_terminal("migrate", "web-01", "--to", "ams")
    assert code == 0
    down = screen.index("\x1b[33mWAN to site ams down 42 s")
    assert "118 MiB/s" not in screen[:down]
    assert screen.rindex("118 MiB/s") > screen.rindex("WAN to site ams down")
    assert max(map(cell_len, lines(screen))) <= 80


@pytest.mark.parametrize("state", types.MigrationState.values())
def test_every_state_can_be_drawn_and_fits(state: types.MigrationState.ValueType) -> None:
    long = migration(state, vm="v" * 120, reason="r" * 300, progress=copying_memory().progress, limit=2**64 - 1)
    drawn = frame(long)
    assert max(map(cell_len, drawn)) <= 80
    long.silent_ms = 2**63
    drawn = frame(long)
    assert max(map(cell_len, drawn)) <= 80
    assert frame(migration(state, id=ID))

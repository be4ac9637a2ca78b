"""`landbridge requests`, and how one request is shown to those who say yes or no to it."""

from datetime import UTC, datetime

import click

from gateway.cli import arguments, connection, decisions, json_lines, output, words
from landbridge.v1.authorization_pb2 import (
    REQUEST_STATE_APPROVED,
    REQUEST_STATE_DENIED,
    REQUEST_STATE_EXPIRED,
    REQUEST_STATE_USED,
    REQUEST_STATE_WAITING,
    ApprovalRequest,
    RequestState,
)

_SHORT = 8

_COLUMNS = (
    output.Column("ID"),
    output.Column("VM", cut=True),
    output.Column("SOURCE", cut=True),
    output.Column("DESTINATION", cut=True),
    output.Column("ASKED BY", cut=True),
    output.Column("STATE"),
    output.Column("EXPIRES", right=True),
)
_OPEN = frozenset({REQUEST_STATE_WAITING, REQUEST_STATE_APPROVED})
_STYLES = {REQUEST_STATE_DENIED: "red", REQUEST_STATE_USED: "dim", REQUEST_STATE_EXPIRED: "dim"}


@click.command()
@click.option("--all", "show_all", is_flag=True, help="Also those that were used or denied, or have expired.")
@arguments.as_json
@click.pass_context
def requests(ctx: click.Context, *, show_all: bool, as_json: bool) -> None:
    """List the migrations that wait until others have approved them, the newest first.

    `landbridge approve ID` and `landbridge deny ID` answer them; who asked begins an approved one by asking
    for the migration again.
    """
    with connection.connect(ctx) as gateway:
        found = [each for each in gateway.requests() if show_all or each.state in _OPEN]
    if as_json:
        for request in found:
            json_lines.write("request", request)
        return
    digits = None if output.terminal() is None else _SHORT
    output.table(_COLUMNS, [_row(each, digits) for each in found], "No request waits.")


def _row(request: ApprovalRequest, digits: int | None) -> output.Row:
    asked = request.migration
    cells = (
        words.safe(request.id)[:digits],
        words.safe(asked.vm),
        words.place(asked.source_site, asked.source_host),
        words.place(asked.destination_site, asked.destination_host),
        words.safe(asked.requested_by),
        words.word(RequestState.DESCRIPTOR, request.state),
        words.moment(request.expires_at) or "",
    )
    return output.Row(cells, _note(request), _STYLES.get(request.state, ""))


def _note(request: ApprovalRequest) -> str:
    if request.denied_by:
        return f"denied by {words.safe(request.denied_by)}: {words.safe(request.denied_because)}"
    if request.used_by:
        return f"migration {words.safe(request.used_by)}"
    return words.safe(request.waits_for)


def find(found: list[ApprovalRequest], prefix: str) -> ApprovalRequest | None:
    """The one whose id begins so; None if it is not one."""
    fitting = [each for each in found if each.id.startswith(prefix)]
    return fitting[0] if len(fitting) == 1 else None


def show(request: ApprovalRequest) -> None:
    """Everything that an approval is bound to."""
    asked = request.migration
    claimed = f" (as site {words.safe(request.claimed_by)} claims)" if request.claimed_by else ""
    left = request.expires_at.ToDatetime(UTC) - datetime.now(UTC)
    pairs = [
        ("request", words.safe(request.id)),
        ("state", words.word(RequestState.DESCRIPTOR, request.state)),
        ("VM", f"{words.safe(asked.vm)} ({words.safe(asked.vm_uuid)})"),
        ("labels", decisions.labels(asked.labels)),
        *decisions.grounds(asked),
        ("source", words.place(asked.source_site, asked.source_host)),
        ("destination", words.place(asked.destination_site, asked.destination_host)),
        ("asked by", f"{words.safe(asked.requested_by)}{claimed}"),
        ("definition", f"sha256 {words.safe(asked.domain_sha256)}"),
        ("bound to", f"sha256 {words.safe(request.sha256)}"),
        ("approved by", ", ".join(words.safe(each.approver) for each in request.approvals)),
        ("waits for", words.safe(request.waits_for)),
        ("denied by", words.safe(request.denied_by)),
        ("because", words.safe(request.denied_because)),
        ("expires in", words.duration(max(0, round(left.total_seconds() * 1000)))),
    ]
    output.facts([(name, value) for name, value in pairs if value])

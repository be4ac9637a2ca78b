"""`landbridge approve`"""

import click

from gateway.cli import arguments, connection, json_lines, output, requests, words
from landbridge.errors import NotFound
from landbridge.v1.authorization_pb2 import REQUEST_STATE_APPROVED


@click.command()
@arguments.request_id
@arguments.as_json
@click.pass_context
def approve(ctx: click.Context, request_id: str, *, as_json: bool) -> None:
    """Approve a migration that somebody else asked for: exactly what this prints, and once.

    When all have approved that the policy wants, who asked begins it by asking for the migration again.
    """
    with connection.connect(ctx) as gateway:
        found = requests.find(gateway.requests(), request_id)
        if found is None:
            raise NotFound(
                f"There is no request {request_id}, or more than one that begins so: see `landbridge requests --all`."
            )
        approved = gateway.approve(found)
    if as_json:
        json_lines.write("request", approved)
        return
    requests.show(approved)
    vm = words.safe(approved.migration.vm)
    if approved.state == REQUEST_STATE_APPROVED:
        output.say(
            f"You have approved it, and it waits for nobody else here: {vm} can move once it is asked for again."
        )
    else:
        output.say(f"You have approved it; {words.sentence(approved.waits_for)}")

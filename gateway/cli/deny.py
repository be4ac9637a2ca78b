"""`landbridge deny`"""

import click

from gateway.cli import arguments, connection, json_lines, output, words


@click.command()
@arguments.request_id
@click.option("--reason", type=arguments.REASON, required=True, help="Why, for who asked and for the record.")
@arguments.as_json
@click.pass_context
def deny(ctx: click.Context, request_id: str, reason: str, *, as_json: bool) -> None:
    """Deny a migration that somebody asked for; that ends the request."""
    with connection.connect(ctx) as gateway:
        denied = gateway.deny(request_id, reason)
    if as_json:
        json_lines.write("request", denied)
        return
    output.say(f"Request {words.safe(denied.id)} of {words.safe(denied.migration.requested_by)} is denied.")

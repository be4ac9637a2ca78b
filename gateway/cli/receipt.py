"""`landbridge receipt`"""

from __future__ import annotations

import json
from pathlib import Path

import click

from gateway.audit.receipt import Receipt
from gateway.audit.verify import verify_receipt
from gateway.cli import arguments, connection, output, receipt_text, words
from gateway.cli.audit_export import save
from landbridge.errors import EvidenceFailed


@click.command()
@arguments.migration_id
@click.option("--out", type=click.Path(path_type=Path), help="A new file. [default: ID.receipt]")
@click.option("--text", "as_text", is_flag=True, help="Print what it says, and write no file.")
@arguments.as_json
@click.pass_context
def receipt(ctx: click.Context, migration_id: str, out: Path | None, *, as_text: bool, as_json: bool) -> None:
    """Write the receipt of a migration: what both sites' audit logs say of it, in one file.

    It verifies without any gateway: landbridge audit verify FILE --key VKEY --other VKEY. What its proofs say is checked at
    once; that the keys are those of the two sites, only you can tell.
    """
    if as_text and out is not None:
        raise click.UsageError("--text writes no file: leave --out away, or ask twice.", ctx)
    with connection.connect(ctx) as gateway:
        answer = gateway.receipt(migration_id)
    if as_text:
        receipt_text.show(answer.receipt, as_json=as_json)
        return
    report = verify_receipt(answer.receipt)
    path = out or Path(f"{words.safe(answer.migration).replace('/', '-')}.receipt")
    save(path, [answer.receipt])
    if not report.is_good:
        raise EvidenceFailed(f"The receipt in {path} does not verify: {words.safe(report.findings[0].message)}.")
    keys = report.key.split(", ")
    alone = [part.key.name for part in Receipt.decode(answer.receipt).parts if not part.cosigners]
    if as_json:
        facts: dict[str, object] = {
            "migration": answer.migration,
            "file": str(path),
            "entries": report.entries,
            "keys": keys,
        }
        facts |= {"not_cosigned": alone, "missing": report.missing}
        click.echo(json.dumps({"type": "receipt", **facts}))
        return
    output.say(
        f"Wrote {path}: {report.entries} entries of {words.safe(report.origin)}, each in the tree that its log signed."
    )
    for key in keys:
        click.echo(f"  key {words.safe(key)}")
    for log in alone:
        click.echo(
            f"  no witness has cosigned the log {words.safe(log)} yet: for a receipt that has it, ask again later"
        )
    for lacking in report.missing:
        click.echo(
            f"  MISSING: {words.safe(lacking)}: pruned, or in the log of a gateway that is away; if so, ask again when it runs"
        )

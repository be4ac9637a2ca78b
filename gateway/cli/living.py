"""`landbridge certs status`, `revoke`, `renew` and `rotate`: the certificates of a site that runs."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from certs import authority, store
from certs.authority import Authority
from certs.trust import pem_of
from gateway.cli import arguments, connection, json_lines, output, words
from landbridge.v1.enrolment_pb2 import CertificateEntry, CertificateKind

_DIRECTORY = click.Path(path_type=Path, file_okay=False)
_CA = click.option("--ca", required=True, type=_DIRECTORY, help="The directory of this site's CA.")

_COLUMNS = (
    output.Column("IDENTITY", cut=True),
    output.Column("EXPIRES"),
    output.Column("IN", right=True),
    output.Column("RENEWED"),
    output.Column("SERIAL", cut=True),
)
# What has to be renewed by hand is worth a note when so much of its life is left, and no more than that.
_SOON = timedelta(days=60)
_SHARE = 3
# Of a serial number, as many tell it from all others.
_FEWEST_DIGITS = 12


@click.command()
@arguments.as_json
@click.pass_context
def status(ctx: click.Context, *, as_json: bool) -> None:
    """Show what expires when.

    Of this site: its roots, and the certificates of issuers, gateways, hosts and operators.
    RENEWED is whether that happens by itself, or by hand: an issuer with `landbridge certs renew`, a root with `certs
    rotate`,
    an operator with `certs issue`. Operators are known from their first call on.
    """
    with connection.connect(ctx) as gateway:
        found = gateway.certificates()
    if as_json:
        for entry in found.certificates:
            json_lines.write("certificate", entry)
        for denial in found.denials:
            json_lines.write("denial", denial)
        return
    now = datetime.now(UTC)
    output.table(_COLUMNS, [_row(entry, now) for entry in found.certificates], "The gateway knows no certificate.")


def _row(entry: CertificateEntry, now: datetime) -> output.Row:
    left = entry.expires_at.ToDatetime(UTC) - now
    life = entry.expires_at.ToDatetime(UTC) - entry.issued_at.ToDatetime(UTC)
    note, style = "", ""
    if entry.HasField("revoked_at"):
        note, style = f"revoked at {words.moment(entry.revoked_at)}", "red"
    elif left <= timedelta():
        note, style = "EXPIRED", "red"
    elif not entry.renews_itself and left < min(_SOON, life / _SHARE):
        note, style = "renew it in time", "yellow"
    cells = (
        _name(entry),
        words.moment(entry.expires_at) or "",
        _left(left) if left > timedelta() else "",
        "by itself" if entry.renews_itself else "by hand",
        words.safe(entry.serial),
    )
    return output.Row(cells, note, style)


def _name(entry: CertificateEntry) -> str:
    """As `certs revoke` takes it: all are of one site."""
    if entry.kind == CertificateKind.CERTIFICATE_KIND_ROOT:
        return "root"
    return words.safe("/".join(entry.identity.split("/")[-2:]))


def _left(left: timedelta) -> str:
    return f"{left.days} d" if left >= timedelta(days=2) else words.duration(int(left.total_seconds()) * 1000)


@click.command()
@click.argument("subject", metavar="IDENTITY")
@click.option("--reason", type=arguments.REASON, default=None, help="Why; for the log.")
@arguments.as_json
@click.pass_context
def revoke(ctx: click.Context, subject: str, *, reason: str | None, as_json: bool) -> None:
    """Believe IDENTITY no more, at all sites.

    Its connections are closed within seconds, here and at the sites that this one is joined with. IDENTITY is ROLE/NAME
    such as host/host-b, a SPIFFE ID, or the serial number of one certificate, of which its first twelve digits are
    enough. An identity is revoked with all that was issued to it until now: it comes back by being enrolled, or issued,
    again. A gateway is revoked with all that it has signed. Of another site's identity, only this site believes no
    more: its own has to revoke it, too.
    """
    with connection.connect(ctx) as gateway:
        # First, for it may be one's own.
        certificates = gateway.certificates().certificates
        subject = _whole(subject, [each.serial for each in certificates])
        known = [each for each in certificates if _is(each, subject)]
        gateway.revoke(subject, reason or "")
    if as_json:
        click.echo(json.dumps({"type": "revoked", "subject": subject, "known": [each.serial for each in known]}))
        return
    output.say(f"Revoked {words.safe(subject)}.")
    if not known:
        output.say(
            "No certificate of it is known at this site: see with `landbridge certs status` that the name is right."
        )


def _whole(subject: str, serials: list[str]) -> str:
    """Of a serial number that a terminal's table has cut, all of it, if just one begins so; anything else as it is."""
    begins = subject.lower().rstrip("…")
    found = [serial for serial in serials if serial.startswith(begins)] if len(begins) >= _FEWEST_DIGITS else []
    return found[0] if len(found) == 1 else subject


def _is(entry: CertificateEntry, subject: str) -> bool:
    """Whether a certificate is what somebody has called so, as `certs revoke` takes it."""
    return subject in {entry.identity, _name(entry)} or subject.lower().lstrip("0") == entry.serial


@click.command()
@_CA
@arguments.as_json
@click.pass_context
def renew(ctx: click.Context, ca: Path, *, as_json: bool) -> None:
    """Renew the issuers of this site's gateways.

    They send their requests, and keep their keys. It is done for each gateway whose address is given with --gateway or
    LANDBRIDGE_GATEWAY. Their issuers are valid for a year.
    """
    _renew(ctx, store.load_authority(ca), pem_of(store.load_roots(ca)).decode(), as_json=as_json)


@click.command()
@_CA
@click.option(
    "--overlap", type=arguments.DURATION, default="30d", show_default=True, help="How long the old root still counts."
)
@arguments.as_json
@click.pass_context
def rotate(ctx: click.Context, ca: Path, overlap: int, *, as_json: bool) -> None:
    """Replace this site's root by a new one.

    The old one signs it off, and the gateways' issuers are renewed. Both count during the overlap. In its middle,
    gateways begin to use the new one; agents and other sites have followed by then. If this
    is interrupted, `landbridge certs renew` goes on.
    """
    old = store.load_authority(ca)
    # A gateway that does not answer is noticed before anything has changed.
    for address in connection.gateways(ctx):
        with connection.connect(ctx, address) as gateway:
            gateway.request_issuer()
    now = datetime.now(UTC)
    new, handover = authority.hand_over(old, now, timedelta(milliseconds=overlap))
    roots = store.replace_authority(ca, new, handover, now)
    until = f"{handover.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}"
    if as_json:
        click.echo(json.dumps({"type": "root", "ca": str(ca), "site": str(new.site), "old_until": until}))
    else:
        output.say(f"{ca} holds a new root of {new.site}; the old one counts until {until}.")
    _renew(ctx, new, pem_of(roots).decode(), as_json=as_json)


def _renew(ctx: click.Context, root: Authority, roots: str, *, as_json: bool) -> None:
    for address in connection.gateways(ctx):
        with connection.connect(ctx, address) as gateway:
            name = gateway.request_issuer().gateway
        # The name decides what its issuer may sign: only who has that name's certificate is asked again.
        with connection.connect(ctx, address, name) as gateway:
            gateway.install_roots(roots)
            request = gateway.request_issuer().request
            key = authority.requested_key(request.encode())
            issuer = authority.create_issuer(root, name, key, datetime.now(UTC))
            begins = gateway.install_issuer(pem_of([issuer]).decode()).in_use_from
        if as_json:
            click.echo(json.dumps({"type": "issuer", "gateway": name, "in_use_from": words.moment(begins)}))
        else:
            output.say(f"Gateway {words.safe(name)} has a new issuer, in use from {words.moment(begins)}.")

"""`landbridge certs`: a site's CA, the identities that it issues, and the other sites that they trust. `living` has the verbs that ask
a gateway.

With --json, each command writes one object on one line:

    init    {"ca": dir, "site": s, "trust_domain": d, "spiffe_id": id, "not_after": t, "fingerprint": f}
    issue   {"directory": dir, "identity": id, "role": r, "name": n, "site": s, "not_after": t,
             "fingerprint": f}
    request {"directory": dir, "identity": id, "request": file}
    sign    {"answer": file, "identity": id, "not_after": t, "fingerprint": f}
    install {"directory": dir, "identity": id, "not_after": t}
    trust   {"directory": dir, "site": s, "spiffe_id": id}
    show    {"directory": dir, "kind": "identity"|"ca", "identity": id, "issuer": id, "not_before": t,
             "not_after": t, "expired": bool, "fingerprint": f, "trusts": [id, ...]}

Times are RFC 3339 in UTC; a fingerprint is the lower-case hex SHA-256 of the certificate's DER.
"""

import json
from datetime import UTC, datetime
from pathlib import Path

import click

from certs import authority, store
from certs.identity import Identity, Role, Site, issuer_of
from certs.trust import TrustBundles, fingerprint, load_certificates, pem_of
from gateway.cli.living import renew, revoke, rotate, status
from landbridge.errors import IdentityError, UsageError

_DIRECTORY = click.Path(path_type=Path, file_okay=False)
REQUEST = "request.pem"
_JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object on one line.")


@click.group()
def certs() -> None:
    """Create a site's CA, issue and renew identities, and trust other sites."""


@certs.command()
@click.option("--site", required=True, help="The site's name: one DNS label.")
@click.option("--trust-domain", required=True, help="The organisation's trust domain, as example.org.")
@click.option("--out", required=True, type=_DIRECTORY, help="Where to write ca.pem and ca.key.")
@_JSON
def init(site: str, trust_domain: str, out: Path, *, as_json: bool) -> None:
    """Create the CA of one site. An existing CA is never overwritten."""
    try:
        home = Site(trust_domain, site)
    except IdentityError as error:
        raise UsageError(error.message) from error
    created = authority.create(home, datetime.now(UTC))
    store.save_authority(out, created)
    facts = {
        "ca": str(out),
        "site": home.site,
        "trust_domain": home.trust_domain,
        "spiffe_id": str(home),
        "not_after": _time(created.certificate.not_valid_after_utc),
        "fingerprint": fingerprint(created.certificate),
    }
    _say(facts, f"Created the CA of {home} in {out}. Keep {out / store.CA_KEY} offline.", as_json=as_json)


@certs.command()
@click.option("--ca", required=True, type=_DIRECTORY, help="The CA's directory.")
@click.argument("role", type=click.Choice([role.value for role in Role]))
@click.argument("name")
@click.option("--out", required=True, type=_DIRECTORY, help="Where to write cert.pem, key.pem and trust/.")
@click.option("--days", type=int, help="Days of validity. [default: 90; operators: 30; gateways: 1, and they renew it]")
@click.option("--force", is_flag=True, help="Replace the identity in --out.")
@_JSON
def issue(ca: Path, role: str, name: str, out: Path, days: int | None, *, force: bool, as_json: bool) -> None:
    """Issue an identity with a new key.

    A gateway also gets an issuer of its own, by which it renews its certificate, and those of the hosts.
    """
    issuer = store.load_authority(ca)
    try:
        identity = Identity(issuer.site.trust_domain, issuer.site.site, Role(role), name)
    except IdentityError as error:
        raise UsageError(error.message) from error
    now = datetime.now(UTC)
    own = authority.make_issuer(issuer, name, now) if identity.role is Role.GATEWAY else None
    leaf = authority.issue(own or issuer, identity, now, days=days)
    store.save_identity(out, leaf, force=force)
    if own is not None:
        store.save_issuer(out, own)
    until = _time(leaf.certificate.not_valid_after_utc)
    facts = {
        "directory": str(out),
        "identity": str(identity),
        "role": role,
        "name": name,
        "site": identity.site,
        "not_after": until,
        "fingerprint": fingerprint(leaf.certificate),
    }
    _say(facts, f"Issued {identity} in {out}, valid until {until}.", as_json=as_json)


# A gateway on another machine than the CA: a request goes there, and the answer comes back; keys stay where they are.


@certs.command()
@click.argument("name")
@click.option("--site", required=True, help="The site's name: one DNS label.")
@click.option("--trust-domain", required=True, help="The organisation's trust domain, as example.org.")
@click.option("--out", required=True, type=_DIRECTORY, help="Where the identity of the gateway will be.")
@_JSON
def request(name: str, site: str, trust_domain: str, out: Path, *, as_json: bool) -> None:
    """Ask for the issuer of a new gateway NAME.

    Its key is made here and stays here. Writes request.pem, for `landbridge certs sign` where the CA is.
    """
    try:
        identity = Identity(trust_domain, site, Role.GATEWAY, name)
    except IdentityError as error:
        raise UsageError(error.message) from error
    path = out / REQUEST
    store.save_request(path, authority.request(store.pending_key(out), identity))
    facts = {"directory": str(out), "identity": str(identity), "request": str(path)}
    _say(facts, f"Take {path} to where the CA of site {site} is, and there: landbridge certs sign.", as_json=as_json)


@certs.command()
@click.option("--ca", required=True, type=_DIRECTORY, help="The CA's directory.")
@click.argument("name")
@click.argument("request_pem", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Where to write the answer: a new file.")
@_JSON
def sign(ca: Path, name: str, request_pem: Path, out: Path, *, as_json: bool) -> None:
    """Sign the request of gateway NAME.

    The answer has its issuer's certificate and the roots, and no secret.
    """
    root = store.load_authority(ca)
    hint = "give the request.pem of `landbridge certs request`"
    asked = store.read_public(request_pem, hint)
    try:
        key = authority.requested_key(asked)
    except IdentityError as error:
        raise UsageError(f"{request_pem} is no request: {error.message} Here, {hint}.") from error
    try:
        issuer = authority.create_issuer(root, name, key, datetime.now(UTC))
    except IdentityError as error:
        raise UsageError(error.message) from error
    store.save_answer(out, pem_of([issuer, *store.load_roots(ca)]))
    until = _time(issuer.not_valid_after_utc)
    who = str(Identity(root.site.trust_domain, root.site.site, Role.GATEWAY, name))
    facts = {"answer": str(out), "identity": who, "not_after": until, "fingerprint": fingerprint(issuer)}
    _say(
        facts,
        f"Signed the issuer of {who} until {until}. Take {out} back to it: landbridge certs install.",
        as_json=as_json,
    )


@certs.command()
@click.argument("directory", type=_DIRECTORY)
@click.argument("answer_pem", type=click.Path(path_type=Path))
@_JSON
def install(directory: Path, answer_pem: Path, *, as_json: bool) -> None:
    """Take the answer to a gateway's request.

    DIRECTORY is where the request was made; the gateway's certificate is made there as well.
    """
    hint = "give what `landbridge certs sign` has written"
    answer = store.read_public(answer_pem, hint)
    try:
        found = load_certificates(answer)
        who, roots = issuer_of(found[0]), TrustBundles.of(found[1:])
    except IdentityError as error:
        raise UsageError(f"{answer_pem} is no answer: {error.message} Here, {hint}.") from error
    issuer = store.install_issuer(directory, found[0], roots)
    identity = Identity(who.home.trust_domain, who.home.site, Role.GATEWAY, who.gateway)
    leaf = authority.issue(issuer, identity, datetime.now(UTC))
    store.save_identity(directory, leaf, force=True)
    store.save_trust(directory, roots)
    until = _time(leaf.certificate.not_valid_after_utc)
    facts = {"directory": str(directory), "identity": str(identity), "not_after": until}
    _say(facts, f"{directory} is {identity}, valid until {until}; the gateway renews it.", as_json=as_json)


@certs.command()
@click.argument("identity_dir", type=_DIRECTORY)
@click.argument("ca_pem", type=click.Path(path_type=Path))
@_JSON
def trust(identity_dir: Path, ca_pem: Path, *, as_json: bool) -> None:
    """Let an identity trust another site, by that site's ca.pem."""
    site = store.add_trust(identity_dir, ca_pem)
    facts = {"directory": str(identity_dir), "site": site.site, "spiffe_id": str(site)}
    _say(facts, f"{identity_dir} trusts {site}.", as_json=as_json)


@certs.command()
@click.argument("directory", type=_DIRECTORY)
@_JSON
def show(directory: Path, *, as_json: bool) -> None:
    """Show the identity or the CA in a directory."""
    if (directory / store.CA_CERTIFICATE).exists():
        ca = store.load_authority(directory)
        kind, who, issuer, certificate = "ca", str(ca.site), str(ca.site), ca.certificate
        trusts: list[str] = []
    else:
        local = store.load_identity(directory, None)
        kind, who, issuer = "identity", str(local.identity), str(local.identity.home)
        certificate, trusts = local.certificate, [str(site) for site in sorted(local.trust.roots)]
    expired = datetime.now(UTC) > certificate.not_valid_after_utc
    facts = {
        "directory": str(directory),
        "kind": kind,
        "identity": who,
        "issuer": issuer,
        "not_before": _time(certificate.not_valid_before_utc),
        "not_after": _time(certificate.not_valid_after_utc),
        "expired": expired,
        "fingerprint": fingerprint(certificate),
        "trusts": trusts,
    }
    lines = [
        f"identity     {who}",
        f"issuer       {issuer}",
        f"valid        {facts['not_before']} to {facts['not_after']}{' (EXPIRED)' if expired else ''}",
        f"fingerprint  {facts['fingerprint']}",
        *(f"trusts       {site}" for site in trusts),
    ]
    _say(facts, "\n".join(lines), as_json=as_json)


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


def _say(facts: dict[str, object] | dict[str, str], sentence: str, *, as_json: bool) -> None:
    click.echo(json.dumps(facts) if as_json else sentence)


for _verb in (status, revoke, renew, rotate):
    certs.add_command(_verb)

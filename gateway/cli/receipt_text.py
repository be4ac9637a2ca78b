"""A receipt for people: what both sites say of a migration, on one page, and whether it verifies."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

import click

from gateway.audit import receipt as receipts
from gateway.audit.canonical import Value
from gateway.audit.entry import Recorded
from gateway.audit.reading import summary
from gateway.audit.receipt import Receipt
from gateway.cli import output, words
from landbridge.errors import EvidenceFailed

_ENDS = ("migration.completed", "migration.settled", "migration.failed", "migration.cancelled")
_COLUMNS = (
    output.Column("TIME"),
    output.Column("SITE"),
    output.Column("EVENT"),
    output.Column("WHO", cut=True),
    output.Column("WHAT", cut=True),
)

Pair = tuple[str, str]


def show(raw: bytes, *, as_json: bool) -> None:
    """Print a receipt. EvidenceFailed, after it is printed, if it does not verify."""
    try:
        receipt = Receipt.decode(raw)
        entries = receipt.entries()
        findings = receipts.check(receipt)
    except EvidenceFailed as error:
        raise EvidenceFailed(f"The receipt cannot be read: {error.message}.") from error
    if as_json:
        for entry in entries:
            click.echo(json.dumps({"type": "entry", "index": entry.sequence, "entry": json.loads(entry.raw)}))
    else:
        output.facts(pairs(receipt, entries))
        click.echo()
        output.table(_COLUMNS, [_row(entry) for entry in entries], "It holds no entry.")
        click.echo()
    if findings:
        raise EvidenceFailed(f"The receipt does not verify: {words.safe(findings[0].message)}.")
    if not as_json:
        output.say(
            "Each entry is in the log of its site, and both ends agree. Compare the keys with those that the sites publish."
        )


def pairs(receipt: Receipt, entries: list[Recorded]) -> list[Pair]:
    """What it says, by name."""
    found = [("migration", receipt.migration), *_about(entries), *_by_what_right(entries), *_how(entries)]
    found += [("key", str(part.key)) for part in receipt.parts]
    found += [("MISSING", f"{each}: whoever made the receipt could not have them") for each in receipt.missing]
    return [(name, words.safe(value)) for name, value in found if value]


def _about(entries: list[Recorded]) -> Iterator[Pair]:
    end = next((each for each in reversed(entries) if each.event.name in _ENDS), None)
    if end is not None:
        what, why = end.event.name.partition(".")[2], end.text("reason")
        yield "outcome", f"{what} at {end.text('time')}" + (f": {why}" if why else "")
    location = _first(entries, "location")
    yield "location", _place(location)
    vm = _first(entries, "vm")
    yield "VM", f"{vm.get('name', '')} {vm.get('uuid', '')}".strip()
    yield "definition", f"sha256 {vm['xml_sha256']}" if "xml_sha256" in vm else ""
    yield "owner", str(vm.get("owner", ""))
    yield "from", _place(_first(entries, "source"))
    yield "to", _place(_first(entries, "destination"))


def _by_what_right(entries: list[Recorded]) -> Iterator[Pair]:
    asked = next((each for each in entries if each.event.name == "migration.requested"), None)
    if asked is not None:
        yield "requested by", f"{asked.text('actor', 'id')} at {asked.text('time')}"
    yield from _grounds(entries)
    for entry in entries:
        site = _site(entry)
        if entry.event.name == "migration.approved":
            for each in _list(entry.facts("seen").get("approvers")):
                yield "approved by", f"{each.get('id', '')} at {each.get('time', '')}"
        policy = entry.facts("seen").get("policy")
        if isinstance(policy, Mapping) and entry.event.name == "migration.permitted":
            rules = policy.get("ids")
            rule = ", ".join(map(str, rules)) if isinstance(rules, list) else "no rule"
            yield "permitted by", f"site {site}: {rule}, policy {policy.get('bundle_sha256', '')}"
            yield "", entry.text("reason")
        if entry.event.name == "call.refused":
            yield "refused", f"{entry.text('seen', 'refused', 'what')}: {entry.text('reason')}"


def _grounds(entries: list[Recorded]) -> Iterator[Pair]:
    """Why, and by what right: as who asks says, and as the policy of each site has it."""
    asked = next((text for entry in entries if (text := entry.text("claimed", "request", "purpose"))), "")
    yield "purpose", f"{asked} (as who asks says)" if asked else ""
    fields = (("purpose", "purpose"), ("legal basis", "legal_basis"), ("transferred by", "transfer_mechanism"))
    said = [
        (name, f"{text} (by the policy of site {_site(entry)})")
        for name, field in fields
        for entry in entries
        if (text := entry.text("seen", field))
    ]
    yield from dict.fromkeys(said)


def _how(entries: list[Recorded]) -> Iterator[Pair]:
    names = (("duration_ms", "took"), ("downtime_ms", "downtime"))
    for field, name in names:
        yield name, next((f"{value} ms" for value in _all(entries, field)), "")
    sizes = (("bytes_ram", "of memory"), ("bytes_disk", "of disks"), ("bytes_wan", "over the WAN"))
    counted = [f"{values[-1]} {what}" for field, what in sizes if (values := list(_all(entries, field)))]
    yield "bytes", ", ".join(counted)
    for entry in entries:
        tls = entry.facts("seen").get("tls")
        if isinstance(tls, Mapping) and entry.event.name in _ENDS[:1] + _ENDS[2:]:
            said = " ".join(str(tls.get(name, "")) for name in ("version", "suite"))
            yield (
                "protected",
                f"{said}, key exchange {tls.get('group', '')}; site {_site(entry)} saw {tls.get('peer', '')}",
            )
            yield "", f"certificate sha256 {tls.get('peer_cert_sha256', '')}, until {tls.get('not_after', '')}"
    yield from _delivered(entries)


def _delivered(entries: list[Recorded]) -> Iterator[Pair]:
    said: dict[str, dict[str, tuple[Value, Value]]] = {}
    for entry in entries:
        for each in _list(entry.facts("claimed").get("channels")):
            name = f"{each.get('kind', '')} {each.get('label', '')}"
            for end in ("sent", "received"):
                if f"{end}_blake3" in each:
                    said.setdefault(name, {})[end] = (each.get(f"{end}_bytes"), each[f"{end}_blake3"])
    for name, ends in sorted(said.items()):
        size, digest = next(iter(ends.values()))
        if len(ends) == 1:
            how = f"as the end says that has {next(iter(ends))} them"
        else:
            how = "both ends say the same" if len(set(ends.values())) == 1 else "THE ENDS DO NOT AGREE"
        yield "delivered", f"{name}: {size} bytes, blake3 {digest}, {how}"


def _first(entries: list[Recorded], field: str) -> Mapping[str, Value]:
    """The fullest that is said of something."""
    found = [value for value in _all(entries, field) if isinstance(value, Mapping)]
    return max(found, key=len, default={})


def _all(entries: list[Recorded], field: str) -> Iterator[Value]:
    for entry in entries:
        for facts in ("seen", "claimed"):
            if field in entry.facts(facts):
                yield entry.facts(facts)[field]


def _list(value: Value) -> list[Mapping[str, Value]]:
    return [each for each in value if isinstance(each, Mapping)] if isinstance(value, list) else []


def _place(where: Mapping[str, Value]) -> str:
    place = "/".join(str(where[name]) for name in ("site", "host") if name in where)
    return f"{place} ({where['country']})" if "country" in where else place


def _site(entry: Recorded) -> str:
    """Whose log it is, such as fra of landbridge.test/site/fra/gateway/gw-1."""
    parts = entry.origin.split("/")
    return parts[2] if len(parts) > 2 else entry.origin


def _row(entry: Recorded) -> output.Row:
    cells = (
        entry.text("time")[:23] + "Z",
        _site(entry),
        entry.event.name,
        entry.text("actor", "id").rpartition("/")[2],
        summary(entry),
    )
    return output.Row(
        tuple(words.safe(cell) for cell in cells), style={"I": "", "W": "yellow", "E": "red"}[entry.event.severity]
    )

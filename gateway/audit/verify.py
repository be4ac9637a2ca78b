"""How anybody checks a log, without trusting whoever holds it. Pure: files come through `Log`.

The recipe, and the attack that each step stops:

    1. the log's key: given by whoever checks, else the one beside the log        a log of somebody else
    2. the checkpoint: its origin and its signature                               a head that the site never signed
    3. each entry: canonical, valid, of this log, with its index as sequence      changed, moved, foreign or unreadable entries
    4. the tree: bundles, tiles and checkpoint lead to one root                   entries dropped, inserted, reordered, cut off
    5. history: checkpoints known from before, and those in the entries           forks, and old checkpoints shown again
    6. cosignatures of the witnesses that whoever checks names                    a history that only the site itself has seen
    7. receipts: what they prove stands in this log                               receipts of another log, or made up
    8. delivery: both ends of each channel have the same digest                   bytes altered on their way

Step 4 knows who is lying. If the entries lead to the signed root, the entries are right, and a tile that differs was changed;
if only the tiles do, the entries that differ from their tile were changed; if neither, all that can be told is where they part.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gateway.audit import receipt as receipts
from gateway.audit.checkpoint import Signed
from gateway.audit.findings import Check, Report
from gateway.audit.note import Key
from gateway.audit.walk import CHECKPOINT, COSIGNED, KEY, Log, Walk
from landbridge.errors import EvidenceFailed, UsageError


@dataclass(frozen=True)
class Trust:
    """What whoever checks knows from elsewhere."""

    key: Key | None = None
    witnesses: tuple[Key, ...] = ()
    # Checkpoints seen before, of this log.
    known: tuple[Signed, ...] = ()
    # Keys of other logs, for receipts.
    others: tuple[Key, ...] = ()
    # Whether it is an export that holds a part of the entries.
    part: bool = False


NO_TRUST = Trust()


def verify(log: Log, trust: Trust = NO_TRUST, issued: Sequence[bytes] = ()) -> Report:
    """Check a log, and receipts that it issued, by the recipe above."""
    report = Report()
    # 1 and 2. Without them, nothing else means anything.
    key = _key(log, trust, report)
    signed = _checkpoint(log, key, report) if key else None
    if key is None or signed is None:
        return report
    known = [*trust.known, *_cosigned(log, key, report)]
    # 7, first half: what stands in the receipts is looked for while the entries go by.
    claimed = _claimed(issued, trust, key, report)
    # 3, 4, 5 and 8.
    walk = Walk(log, signed.checkpoint, report, [each.checkpoint for each in known], claimed, part=trust.part)
    walk.run()
    # 6.
    _witnesses([signed, *known], trust.witnesses, report)
    # 7, second half.
    for index in sorted(set(claimed) - walk.seen):
        report.add(Check.RECEIPTS, f"a receipt proves entry {index}, and the log does not hold it", index)
    return report


def verify_receipt(raw: bytes, trust: Trust = NO_TRUST) -> Report:
    """Check a receipt alone, without any log, by the recipe in `receipt`."""
    report = Report(receipts=1)
    keys = [*([trust.key] if trust.key else []), *trust.others]
    report.key_is_given = bool(keys)
    try:
        receipt = receipts.Receipt.decode(raw)
        report.findings = receipts.check(receipt, keys, trust.witnesses)
        report.entries = len(receipt.entries())
    except EvidenceFailed as error:
        report.add(Check.RECEIPTS, f"the receipt cannot be read: {error.message}")
        return report
    report.migration = receipt.migration
    report.missing = [str(each) for each in receipt.missing]
    report.origin = ", ".join(part.key.name for part in receipt.parts)
    report.key = ", ".join(str(part.key) for part in receipt.parts)
    return report


def _key(log: Log, trust: Trust, report: Report) -> Key | None:
    beside = log.read(KEY)
    report.key_is_given = trust.key is not None
    try:
        found = Key.parse(beside.decode("ascii", "replace").removesuffix("\n")) if beside is not None else None
    except UsageError as error:
        report.add(Check.KEY, f"the file {KEY} beside the log is no key: {error.message}")
        return None
    if trust.key and found and found != trust.key:
        report.add(Check.KEY, f"the log has the key {found}, and {trust.key} was expected")
        return None
    if beside is not None and found and beside != f"{found}\n".encode():
        report.add(Check.KEY, f"the file {KEY} beside the log holds more than one key")
    key = trust.key or found
    if key is None:
        report.add(Check.KEY, f"no key was given, and there is no {KEY} beside the log")
    else:
        report.key, report.origin = str(key), key.name
    return key


def _checkpoint(log: Log, key: Key, report: Report) -> Signed | None:
    raw = log.read(CHECKPOINT)
    if raw is None:
        report.add(Check.CHECKPOINT, "the log has no checkpoint")
        return None
    try:
        signed = Signed.decode(raw)
        signed.check(key)
    except EvidenceFailed as error:
        report.add(Check.CHECKPOINT, f"the checkpoint is not to be trusted: {error.message}")
        return None
    report.size, report.root = signed.checkpoint.size, signed.checkpoint.root
    return signed


def _cosigned(log: Log, key: Key, report: Report) -> list[Signed]:
    raw = log.read(COSIGNED)
    if raw is None:
        return []
    try:
        signed = Signed.decode(raw)
        signed.check(key)
    except EvidenceFailed as error:
        report.add(Check.WITNESSES, f"the cosigned checkpoint is not to be trusted: {error.message}")
        return []
    return [signed]


def _witnesses(heads: Sequence[Signed], witnesses: Iterable[Key], report: Report) -> None:
    for witness in witnesses:
        found = []
        for signed in heads:
            try:
                found += [(each, signed.checkpoint.size) for each in signed.cosigned([witness])]
            except EvidenceFailed as error:
                report.add(Check.WITNESSES, error.message)
        if found:
            report.cosigned.append(max(found, key=lambda pair: (pair[1], pair[0].time)))
        else:
            report.add(Check.WITNESSES, f"the witness {witness.name} has cosigned no checkpoint of this log")


def _claimed(issued: Sequence[bytes], trust: Trust, key: Key, report: Report) -> dict[int, bytes]:
    claimed: dict[int, bytes] = {}
    for raw in issued:
        report.receipts += 1
        try:
            receipt = receipts.Receipt.decode(raw)
        except EvidenceFailed as error:
            report.add(Check.RECEIPTS, f"the receipt {report.receipts} cannot be read: {error.message}")
            continue
        # What witnesses have cosigned of this log is asked in step 6.
        for finding in receipts.check(receipt, [key, *trust.others]):
            report.add(finding.check, f"the receipt of migration {receipt.migration}: {finding.message}", finding.entry)
        for part in receipt.parts:
            if part.key == key:
                claimed.update({each.proof.index: each.raw for each in part.entries})
    return claimed

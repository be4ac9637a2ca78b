"""A witness while a gateway runs: it cosigns the heads of other logs, and says when one has shown what does not fit.

    submission -> known key -> judge -> record, durable -> cosignature
                                  └-> Alarm -> entry log.forked, log line, record -> `alarms`, for operators

Check and record are one step in a thread of their own, so that no two submissions go on from the same head, and nobody who gives up
waiting leaves half of it. Ordinary cosignatures make no entries: each entry is a new head, which the others are asked to cosign, and two
sites would never come to rest. What is recorded is the first contact with a log, and what does not fit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import structlog

from certs.identity import Identity, Role
from gateway.audit.canonical import Value
from gateway.audit.checkpoint import Checkpoint, Signed, cosign
from gateway.audit.journal import Journal
from gateway.audit.note import Key, KeyType, Signature, Signer
from gateway.audit.witness import Alarm, Judgement, Kind, Status, Submission, by_its_log, judge, lines, suspect
from gateway.audit.witness_records import Record, Records
from landbridge.errors import EvidenceFailed, NotRecorded, PermissionDenied, UsageError
from landbridge.v1.audit_pb2 import AddCheckpointRequest, AddCheckpointResponse

logger = structlog.get_logger()

# Gateways of one other site whose logs are witnessed: whoever can issue that site's certificates cannot fill the disk with records.
MOST_LOGS = 64

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a witness says. `recorded` is the newest head of the log that it has, with the log's own signature."""

    status: Status
    reason: str = ""
    cosignatures: tuple[Signature, ...] = ()
    recorded: Signed | None = None
    alarm: Alarm | None = None

    @property
    def lines(self) -> str:
        """The cosignatures as lines of a signed note."""
        return "".join(each.encode() for each in self.cosignatures)


class Witness:
    """Of one gateway, with keys and records of its own. All methods are of one event loop; `_thread` alone touches the records."""

    def __init__(
        self,
        journal: Journal,
        records: Records,
        signers: Sequence[Signer],
        known: Mapping[str, Key],
        clock: Callable[[], float],
    ) -> None:
        """`known` are keys of logs by their origins, as operators have configured them; `clock` says seconds since the epoch."""
        self._journal = journal
        self._records = records
        self._signers = signers
        self._known = known
        self._clock = clock
        self._thread = ThreadPoolExecutor(1, "witness")
        # The newest heads of logs whose records this process has made durable: that a record is read does not tell that it is.
        self._durable: dict[str, Checkpoint] = {}
        # Alarms that are being raised, so that each is raised once: by the log's origin and the kind.
        self._raising: set[tuple[str, Kind]] = set()

    @property
    def keys(self) -> list[Key]:
        """The public keys of its cosignatures."""
        return [each.cosigning for each in self._signers]

    def close(self) -> None:
        """Finish what is under way."""
        self._thread.shutdown()

    # Of peers.

    async def add_of_peer(self, request: AddCheckpointRequest, caller: Identity) -> AddCheckpointResponse:
        """A gateway of another site brings its log's head. PermissionDenied if it is another's log, NotRecorded if nothing can be kept."""
        try:
            key = log_key(request.key)
            asked = Submission.checked(request.old_size, tuple(request.proof), request.checkpoint)
        except (EvidenceFailed, UsageError) as error:
            raise UsageError(f"{caller} brings no head of a log: {error.message}") from error
        own = str(caller).removeprefix("spiffe://")
        if {key.name, asked.signed.checkpoint.origin} != {own}:
            logger.warning(
                "witness.refused", security=True, caller=str(caller), log=asked.signed.checkpoint.origin[:300]
            )
            raise PermissionDenied(
                f"{caller} may bring the log {own}, and no other one: it brought {ascii(key.name)[:300]}"
            )
        answer = await self.add(asked, key, f"{caller.home}/{Role.GATEWAY}/".removeprefix("spiffe://"))
        return AddCheckpointResponse(
            status=answer.status,
            reason=answer.reason,
            cosignatures=answer.lines,
            recorded=answer.recorded.encode() if answer.recorded else b"",
            keys=map(str, self.keys),
        )

    # Of anybody.

    async def add(self, asked: Submission, offered: Key | None = None, family: str = "") -> Answer:
        """Answer a submission, by the rules of `judge`. NotRecorded if what should be kept cannot be.

        `offered` is the key of a log that has brought its head itself, over an authenticated connection, and `family` how the origins
        of its site's logs begin; for strangers there is none, and only logs count that are known already.
        """
        if self.is_own(asked):
            return Answer(Status.UNKNOWN, "a witness does not cosign its own log")
        first = await self._run(lambda: self._is_first(asked, offered, family))
        if first is not None:
            await self._record_first(asked, first)
        answer = await self._run(lambda: self._decide(asked, offered, family))
        if answer.alarm is not None:
            await self._raise(answer.alarm, f"site {_site(asked.signed.checkpoint.origin)}")
        return answer

    def is_own(self, asked: Submission) -> bool:
        """Whether it is this gateway's own log."""
        return asked.signed.checkpoint.origin == self._journal.key.name

    def _key(self, origin: str, offered: Key | None, family: str, record: Record | None) -> Key | None:
        """What is known of a log: from its record; else from the configuration; else what the log itself offers."""
        if record is not None:
            return record.key
        if origin in self._known:
            return self._known[origin]
        if offered is None or sum(each.key.name.startswith(family) for each in self._records.all()) >= MOST_LOGS:
            return None
        return offered

    def _is_first(self, asked: Submission, offered: Key | None, family: str) -> Key | None:
        """The key that would be held on to from now on, None if the log is known or is not taken."""
        origin = asked.signed.checkpoint.origin
        if self._records.of(origin) is not None:
            return None
        key = self._key(origin, offered, family, None)
        return key if judge(asked, key, None).status is Status.COSIGNED else None

    async def _record_first(self, asked: Submission, key: Key) -> None:
        # Before the record: a crash between the two makes the entry twice, and never leaves it out.
        head = asked.signed.checkpoint
        await self._journal.record(
            "log.cosigned",
            reason=f"this site witnesses the log {head.origin} from now on, by its key {key.id.hex()}",
            seen={"log": {"origin": head.origin, "size": head.size, "root": head.root.hex()}},
        )
        logger.info("witness.began", log=head.origin, key=str(key))

    def _decide(self, asked: Submission, offered: Key | None, family: str) -> Answer:
        """Check, make the record durable, and only then answer."""
        head, now = asked.signed.checkpoint, int(self._clock())
        record = self._records.of(head.origin)
        key = self._key(head.origin, offered, family, record)
        latest = record.latest if record else None
        recorded = by_its_log(latest, record.key) if record and latest else None
        if record and recorded and offered not in (None, record.key):
            # A log that has brought another key itself, and signs with it.
            return self._rekeyed(asked, offered, recorded, now)
        judged = judge(asked, key, latest.checkpoint if latest else None)
        if judged.status is Status.COSIGNED and key is not None:
            cosignatures = tuple(cosign(head, each, now) for each in self._signers)
            kept = record or Record(key)
            signed = by_its_log(asked.signed, key).added(cosignatures)
            if self._durable.get(head.origin) != head:
                # A head that is brought again is as old as it was: else whoever repeats it could roll back unseen.
                age = kept.time if latest and latest.checkpoint == head else now
                self._durable.pop(head.origin, None)
                self._records.save(replace(kept, latest=signed, time=age))
                self._durable[head.origin] = head
            return Answer(judged.status, "", cosignatures, by_its_log(signed, key))
        alarm = None
        if record and recorded and judged.status not in (Status.UNKNOWN, Status.UNTRUSTED):
            alarm = suspect(asked, recorded, now - record.time, now, is_log=offered is not None)
        return Answer(judged.status, judged.reason, (), recorded, alarm)

    @staticmethod
    def _rekeyed(asked: Submission, offered: Key | None, recorded: Signed, now: int) -> Answer:
        judged: Judgement = judge(asked, offered, None)
        if judged.status is Status.UNTRUSTED:
            return Answer(judged.status, judged.reason, (), recorded)
        reason = (
            'the log is known by another key, and is not cosigned with this one: see docs/audit.md, "When a log is new"'
        )
        return Answer(Status.UNTRUSTED, reason, (), recorded, Alarm(Kind.REKEYED, now, recorded, asked.signed))

    # Alarms.

    async def warn(self, alarm: Alarm) -> None:
        """Raise an alarm about this gateway's own log, as another witness has found it."""
        await self._raise(alarm, "this site")

    async def _raise(self, alarm: Alarm, whose: str) -> None:
        """Say it everywhere, once: the entry is durable before the record says that it is made. NotRecorded if it cannot be."""
        origin = alarm.recorded.checkpoint.origin
        if (origin, alarm.kind) in self._raising:
            return
        self._raising.add((origin, alarm.kind))
        try:
            record = await self._run(lambda: self._records.of(origin)) or Record(self._journal.key)
            if record.alarmed(alarm) is record:
                return
            sentence = alarm.sentence(whose)
            evidence = {"recorded": alarm.recorded.encode().decode(), "shown": alarm.shown.encode().decode()}
            logger.error("log.forked", security=True, kind=alarm.kind.value, error=sentence, **evidence)
            await self._journal.record("log.forked", outcome="failure", reason=sentence, seen={"log": _facts(alarm)})
            await self._run(lambda: self._alarm(alarm, record))
        finally:
            self._raising.discard((origin, alarm.kind))

    def _alarm(self, alarm: Alarm, new: Record) -> None:
        record = self._records.of(alarm.recorded.checkpoint.origin) or new
        self._records.save(record.alarmed(alarm))

    async def alarms(self) -> dict[str, list[str]]:
        """What logs have shown that does not fit, as sentences by the site's name; this site's own under ""."""
        found: dict[str, list[str]] = {}
        try:
            records = await self._run(self._records.all)
        except NotRecorded as error:
            return {"": [error.message]}
        for record in records:
            is_own = record.key.name == self._journal.key.name
            site = "" if is_own else _site(record.key.name)
            whose = "this site" if is_own else f"site {site}"
            found.setdefault(site, []).extend(each.sentence(whose) for each in record.alarms)
        return found

    async def latest(self, digest: str) -> Signed | None:
        """The newest head that was cosigned of the log whose origin has this hash, in hex. Raises NotRecorded."""
        record = await self._run(lambda: self._records.of_digest(digest))
        return record.latest if record else None

    async def _run(self, what: Callable[[], _Result]) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, what)


def log_key(text: str) -> Key:
    """The vkey of a log. UsageError if it is none, or that of a witness."""
    key = Key.parse(text)
    if key.type is not KeyType.ED25519:
        raise UsageError(
            f"{key.name}+{key.id.hex()} is the key of a witness, not of a log: give the one in the log's log.vkey"
        )
    return key


def _facts(alarm: Alarm) -> dict[str, Value]:
    old, new = alarm.recorded.checkpoint, alarm.shown.checkpoint
    return {
        "origin": old.origin,
        "size": old.size,
        "root": old.root.hex(),
        "note": lines(alarm.recorded),
        "other_size": new.size,
        "other_root": new.root.hex(),
        "other_note": lines(alarm.shown),
    }


def _site(origin: str) -> str:
    """The name of the site that a log is of; of logs of others, all of it."""
    parts = origin.split("/")
    return parts[2] if len(parts) == 5 and parts[1] == "site" else origin

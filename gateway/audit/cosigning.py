"""Has the gateways of other sites cosign the heads of this gateway's log, and keeps what they sign in the file `cosigned`.

    new head -> every witness at once: what it has recorded, and the proof from there -> cosignatures -> `cosigned`

A round begins within seconds of a change, and at least every minute: so a log that was rewritten or rolled back is found within one.
A witness that does not answer holds nothing up. One that answers with a head that this log has signed and does not go on from has found
that this log was tampered with, or restored from an old backup: it shows our own signature, so that no witness can make it up.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from gateway.audit.checkpoint import Cosigned, Signed
from gateway.audit.journal import Journal
from gateway.audit.note import MOST_SIGNATURES, Key, Note, Signature
from gateway.audit.storage import Storage
from gateway.audit.witness import Alarm, Kind, Status, by_its_log
from gateway.audit.witness_keeper import Witness
from gateway.remote import PeerRemote
from gateway.rounds import Rounds
from landbridge.errors import EvidenceFailed, LandbridgeError, NotRecorded, ProtocolError, Unreachable, UsageError
from landbridge.v1.audit_pb2 import AddCheckpointRequest, AddCheckpointResponse

if TYPE_CHECKING:  # the stubs of an aio channel exist for type checkers only
    from landbridge.v1.peer_pb2_grpc import PeerAsyncStub

logger = structlog.get_logger()

# Seconds between two looks at the log; between two rounds at least; and at most, though nothing has changed.
LOOK = 0.5
PAUSE = 10.0
EVERY = 60.0
# Of one witness: Ed25519 and ML-DSA-44. More would fill the note, which holds MOST_SIGNATURES.
MOST_KEYS = 2
# Of one witness, which may change them at any time: those that it began with last.
KNOWN_KEYS = 8
# Seconds within which a witness is to answer: a receipt waits for it.
ANSWER = 5.0
# Seconds for which a witness may be silent before the newest head is kept without it; and by which its clock may be ahead of ours.
SILENCE = 600.0


@dataclass(frozen=True, slots=True)
class _Asked:
    """A witness: to be told apart from the others of its site by its address."""

    site: str
    address: str
    remote: PeerRemote
    stub: PeerAsyncStub


class Cosigning(Rounds):
    """Of one gateway's log. Owned by the event loop."""

    def __init__(self, journal: Journal, witnesses: Callable[[], Mapping[str, PeerRemote]], own: Witness) -> None:
        """`witnesses` are the other sites that can be reached, by name, as they are now; `own` raises the alarm about this log."""
        self._journal = journal
        self._witnesses = witnesses
        self._own = own
        # What each witness had recorded when it last answered: a guess, for it says so itself if it is wrong.
        self._recorded: dict[tuple[str, str], int] = {}
        self._said: dict[tuple[str, str], str] = {}
        # The keys with which each has cosigned since the gateway began.
        self._keys: dict[tuple[str, str], deque[Key]] = {}
        # A round at a time; the size of the last head of which all have answered, and the newest head with what was signed of it, and
        # when its round began.
        self._going = asyncio.Lock()
        self._done = -1
        self._newest: Signed | None = None
        self._began = 0.0

    async def head(self) -> Signed:
        """The newest head, with the cosignatures of those who answer within a few seconds: maybe of nobody. Raises NotRecorded."""
        size = self._journal.signed.checkpoint.size
        async with self._going:
            # Maybe the round that was waited for has it already: from all, or just now from those who answer.
            if self._newest is None or (self._done < size and not self._is_recent(self._newest, size)):
                await self._round()
            if self._newest is None:
                raise NotRecorded("the audit log has no head that can be shown: ask again")
            return self._newest

    def _is_recent(self, newest: Signed, size: int) -> bool:
        return newest.checkpoint.size >= size and time.monotonic() - self._began < PAUSE

    async def _go_round(self) -> None:
        began = -EVERY
        while True:
            waited = time.monotonic() - began
            has_changed = self._journal.signed.checkpoint.size != self._done
            is_due = waited >= EVERY or (has_changed and waited >= PAUSE)
            if is_due and self._witnesses():
                began = time.monotonic()
                try:
                    async with self._going:
                        await self._round()
                except LandbridgeError as error:
                    logger.error("cosigning.failed", error=error.message)  # noqa: TRY400 - no defect
                except Exception:  # a defect here must not end the rounds
                    logger.exception("cosigning.defect")
            await asyncio.sleep(LOOK)

    async def _round(self) -> None:
        began = time.monotonic()
        signed = await self._journal.read(Storage.certain)
        asked = [
            _Asked(site, address, remote, stub)
            for site, remote in self._witnesses().items()
            for address, stub in remote.each.items()
        ]
        found = await asyncio.gather(*(self._ask(each, signed) for each in asked))
        answers = [each for each in found if each is not None]
        # One of each key, before some are left out for want of room: nobody is to take the room of others.
        signatures = {(each.name, each.key_id): each for answer in answers for each in answer}
        self._newest, self._began = signed.added([*signatures.values()][: MOST_SIGNATURES - 1]), began
        self._done = signed.checkpoint.size if answers and len(answers) == len(asked) else -1
        if answers:
            await self._journal.read(lambda storage: _keep(storage, self._newest or signed))

    # One witness.

    async def _ask(self, who: _Asked, signed: Signed) -> list[Signature] | None:
        """Its cosignatures, None if there are none; nothing else is raised than what is no answer of a witness."""
        place = (who.site, who.address)
        try:
            async with asyncio.timeout(ANSWER):
                signatures = await self._cosign(who, place, signed)
        except (TimeoutError, Unreachable):
            said = f"the gateway of site {who.site} at {who.address} does not answer: it cosigns nothing until it does"
        except LandbridgeError as error:
            said = error.message
        else:
            self._said.pop(place, None)
            return signatures
        if self._said.get(place) != said:
            logger.warning("cosigning.refused", site=who.site, reason=said)
        self._said[place] = said
        return None

    async def _cosign(self, who: _Asked, place: tuple[str, str], signed: Signed) -> list[Signature]:
        size = signed.checkpoint.size
        answer = await self._submit(who, min(self._recorded.get(place, 0), size), signed)
        if answer.status == Status.CONFLICT:
            recorded = await self._compare(who, answer, signed)
            if recorded.checkpoint.size <= size:
                # Also if it does not go on from there: then the witness has to learn it.
                answer = await self._submit(who, recorded.checkpoint.size, signed)
        if answer.status == Status.COSIGNED:
            signatures = self._checked(who, place, answer, signed)
            self._recorded[place] = size
            return signatures
        if answer.status == Status.INCONSISTENT:
            await self._compare(who, answer, signed)
        raise ProtocolError(f"site {who.site} does not cosign: {answer.reason[:300] or answer.status}")

    async def _submit(self, who: _Asked, old: int, signed: Signed) -> AddCheckpointResponse:
        proof = await self._journal.read(lambda storage: storage.tiles().consistency(old, signed.checkpoint.size))
        request = AddCheckpointRequest(
            key=str(self._journal.key), old_size=old, proof=proof, checkpoint=signed.encode()
        )
        return await who.remote.ask(who.stub.AddCheckpoint, request, ANSWER)

    async def _compare(self, who: _Asked, answer: AddCheckpointResponse, signed: Signed) -> Signed:
        """What a witness has recorded of this log; the alarm is raised if this log does not go on from there. Raises ProtocolError."""
        try:
            given = Signed.decode(answer.recorded)
            given.check(self._journal.key)
        except EvidenceFailed as error:
            raise ProtocolError(
                f"site {who.site} does not cosign, and shows no head that this log has signed: {error.message}"
            ) from error
        recorded = by_its_log(given, self._journal.key)
        old = recorded.checkpoint
        if old.size > signed.checkpoint.size:
            await self._own.warn(Alarm(Kind.ROLLED_BACK, int(time.time()), recorded, signed))
        elif await self._journal.read(lambda storage: storage.tiles().root(old.size)) != old.root:
            await self._own.warn(Alarm(Kind.REWRITTEN, int(time.time()), recorded, signed))
        return recorded

    def _checked(
        self, who: _Asked, place: tuple[str, str], answer: AddCheckpointResponse, signed: Signed
    ) -> list[Signature]:
        """The cosignatures of an answer, one of each key. ProtocolError unless they are good, and of that site's witness."""
        try:
            keys = [Key.parse(each) for each in answer.keys]
            given = Note.decode((signed.note.text + "\n" + answer.cosignatures).encode()).signatures
            good: list[Cosigned] = Signed(signed.checkpoint, Note(signed.note.text, given)).cosigned(keys)
        except (EvidenceFailed, UsageError) as error:
            raise ProtocolError(f"site {who.site} gave a cosignature that is none: {error.message}") from error
        name = re.compile(rf"[^/]+/site/{re.escape(who.site)}/gateway/[^/]+")
        if not good or len(keys) > MOST_KEYS or any(not name.fullmatch(key.name) for key in keys):
            raise ProtocolError(f"site {who.site} gave no cosignature of its own")
        if max(each.time for each in good) > time.time() + SILENCE:
            # It would be the newest for ever, see `_keep`.
            raise ProtocolError(
                f"site {who.site} gave a cosignature of a time to come: set the clocks of both sites right"
            )
        known = self._keys.setdefault(place, deque(maxlen=KNOWN_KEYS))
        for key in (each for each in keys if each not in known):
            known.append(key)
            logger.info("cosigning.began", site=who.site, witness=str(key))
        by_key = {(each.name, each.key_id): each for each in given if any(each.is_by(key) for key in keys)}
        return [*by_key.values()]


def _keep(storage: Storage, new: Signed) -> None:
    """Keep a head, unless that would forget a witness which has cosigned an older one, and may just be silent for a while."""
    kept = storage.cosigned()
    if kept is None or _witnesses(kept) <= _witnesses(new) or _age(kept) > SILENCE:
        storage.keep(new)


def _witnesses(signed: Signed) -> set[tuple[str, bytes]]:
    return {(each.name, each.key_id) for each in signed.note.signatures}


def _age(signed: Signed) -> float:
    """Seconds since it was cosigned last. A time at the beginning of a signature that has none does no harm here."""
    times = (
        int.from_bytes(each.value[:8], "big")
        for each in signed.note.signatures
        if each.name != signed.checkpoint.origin
    )
    return time.time() - max(times, default=0)

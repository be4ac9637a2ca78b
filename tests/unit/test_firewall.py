"""The firewall: an honest migration passes, and of every attack of `tests.attack` libvirtd would see nothing."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from agent.stream import bounded_xml, domain_rules
from agent.stream.firewall import MOST_CALLS, MOST_REFUSED, TABLE, Action, Firewall, State, Verdict
from agent.stream.libvirt_rpc import MessageType, Procedure, Status
from agent.stream.rpc_error import MOST_BYTES, error_reply, error_text
from landbridge.errors import ProtocolError
from tests.attack.attacks import ATTACKS, Attack, End, procedures
from tests.unit.rpc_made import (
    ALLOWED,
    CLOSE,
    GREETING,
    LEAVE,
    OPEN,
    WEB,
    Vm,
    call,
    feature,
    opened,
    prepared,
    read,
    reply,
)

HONEST = [*GREETING, WEB.prepare(), WEB.finish(), *LEAVE]


def verdicts(firewall: Firewall, *calls: bytes) -> list[Verdict]:
    """What becomes of calls that are answered well, one after the other."""
    found = []
    for raw in calls:
        found.append(firewall.call(read(raw)))
        if found[-1].action in {Action.PASS, Action.HOLD}:
            firewall.reply(read(reply(raw)))
    return found


# An honest migration.


@pytest.mark.parametrize("enforces", [True, False])
def test_a_migration_with_disks_passes_and_only_its_end_is_held(enforces: bool) -> None:
    found = verdicts(Firewall(WEB.approval(), enforces=enforces), *HONEST)
    assert [v.action for v in found if v.action is not Action.PASS] == [Action.HOLD]
    assert found[-3].action is Action.HOLD
    assert not any(v.refusal for v in found)


def test_a_migration_without_disks_passes() -> None:
    xml = re.sub("<disk .*</disk>", "", WEB.domain, flags=re.DOTALL)
    vm = Vm(domain=xml, disks=())
    found = verdicts(Firewall(vm.approval()), *GREETING, vm.prepare(), vm.finish(), *LEAVE)
    assert not any(v.refusal for v in found)


def test_a_migration_that_is_aborted_passes_with_its_cookie_and_without() -> None:
    for cancelling in (WEB.finish(1), WEB.finish(1, cookie=b"")):
        found = verdicts(Firewall(WEB.approval()), *GREETING, WEB.prepare(), cancelling, *LEAVE)
        assert {v.action for v in found} == {Action.PASS}


def test_a_destination_that_cannot_prepare_may_be_left_and_nothing_else() -> None:
    firewall = opened()
    firewall.call(read(WEB.prepare()))
    firewall.reply(read(reply(WEB.prepare(), status=Status.ERROR)))
    assert firewall.state is State.DONE
    assert firewall.call(read(WEB.finish())).refusal
    assert [v.action for v in verdicts(firewall, *LEAVE)] == [Action.PASS] * 2


def test_a_definition_that_is_only_written_in_another_way_is_the_same() -> None:
    written = " ".join(WEB.domain.replace("'", '"').split()).replace("> <", "><")
    written = re.sub(r'(<model) (fallback="forbid")', r"\1  \2 ", written)
    assert written != WEB.domain
    assert not opened().call(read(WEB.prepare(WEB.changed("destination_xml", written)))).refusal


# The attacks.


def after(attack: Attack, *, enforces: bool) -> tuple[Firewall, Verdict | ProtocolError]:
    """What becomes of an attack's last message."""
    firewall = Firewall(WEB.approval(), enforces=enforces)
    before = attack.before(WEB)
    waiting = before.pop() if attack.races else None
    assert {v.action for v in verdicts(firewall, *before)} <= {Action.PASS}
    if waiting is not None:
        firewall.call(read(waiting))
    try:
        return firewall, firewall.call(read(attack.sends(WEB)))
    except ProtocolError as error:
        return firewall, error


SENT = [a for a in ATTACKS if a.end is not End.NOT_APPROVED and a.end is not End.UNHEARD and not a.second_channel]


@pytest.mark.parametrize("attack", [*SENT, *procedures()], ids=str)
def test_an_attack_is_refused_with_the_reason_and_may_only_be_followed_by_leaving(attack: Attack) -> None:
    firewall, verdict = after(attack, enforces=True)
    if isinstance(verdict, ProtocolError):
        assert re.search(attack.told, verdict.message)
        assert attack.end is End.CUT_OFF
        return
    assert verdict.refusal
    assert verdict.refusal.enforced
    assert re.search(attack.told, verdict.refusal.sentence), verdict.refusal.sentence
    assert verdict.refusal.sentence.startswith("Landbridge refused ")
    assert len(verdict.refusal.sentence) < MOST_BYTES
    assert verdict.refusal.part
    assert verdict.action is {End.ANSWERED: Action.ANSWER, End.CUT_OFF: Action.CLOSE}[attack.end]
    if verdict.action is Action.ANSWER:
        answer, called = read(verdict.reply), read(attack.sends(WEB))
        assert (answer.program, answer.version, answer.procedure) == (called.program, called.version, called.procedure)
        assert (answer.type, answer.serial, answer.status) == (MessageType.REPLY, called.serial, Status.ERROR)
        assert error_text(bytes(answer.payload)) == verdict.refusal.sentence
    assert firewall.call(read(WEB.finish(serial=30))).action in {Action.ANSWER, Action.CLOSE}


@pytest.mark.parametrize("attack", [a for a in ATTACKS if a.approves], ids=str)
def test_a_definition_that_lies_is_not_approved(attack: Attack) -> None:
    assert attack.approves is not None
    try:
        problems = domain_rules.check(bounded_xml.parse(attack.approves(WEB)), ALLOWED)
    except ProtocolError as error:
        assert re.search(attack.told, error.message)  # noqa: PT017 - one of two ways
    else:
        assert re.search(attack.told, "; ".join(map(str, problems)))


@pytest.mark.parametrize("attack", SENT, ids=str)
def test_where_nothing_is_enforced_an_attack_passes_and_is_told_and_never_goes_round_the_gate(attack: Attack) -> None:
    _, verdict = after(attack, enforces=False)
    if isinstance(verdict, ProtocolError):
        return
    assert verdict.refusal
    is_finish = read(attack.sends(WEB)).procedure == Procedure.DOMAIN_MIGRATE_FINISH3_PARAMS
    if verdict.refusal.enforced:
        assert is_finish
        assert verdict.action is Action.ANSWER
    else:
        assert verdict.action is (Action.HOLD if is_finish else Action.PASS)


@pytest.mark.parametrize("enforces", [True, False])
def test_old_forms_of_finish_are_refused_in_either_mode(enforces: bool) -> None:
    for number in (63, 109, 217):
        for kind in (MessageType.CALL, MessageType.CALL_WITH_FDS):
            assert prepared(enforces=enforces).call(read(call(number, kind=kind))).action is Action.ANSWER


@pytest.mark.parametrize(
    ("raw", "part"),
    [
        (WEB.prepare(flags=0), "flags"),
        (WEB.prepare(cookie=b""), "cookie"),
        (WEB.prepare(cookie=b"\xff"), "cookie"),
        (WEB.prepare(cookie=b"<a>"), "cookie"),
        (WEB.prepare(cookie=WEB.cookie(name="x")), "cookie: qemu-migration/name"),
        (WEB.prepare(cookie=WEB.cookie(more="<domain/>")), "cookie: domain/@type"),
        (WEB.prepare(WEB.changed("new", "x")), "new"),
        (WEB.prepare(WEB.changed("migrate_uri", "x")), "migrate_uri"),
        (WEB.prepare(WEB.changed("migrate_disks", "x")), "migrate_disks"),
        (WEB.prepare([*WEB.parameters, WEB.parameters[0]]), "destination_xml"),
        (WEB.prepare(WEB.changed("destination_xml", "<a>")), "destination_xml"),
        (WEB.prepare(WEB.changed("destination_xml", "<a/>")), "destination_xml: a"),
        (WEB.prepare(WEB.parameters[:-1]), "disks_uri"),
        (WEB.prepare([WEB.parameters[0], WEB.parameters[1], WEB.parameters[3]]), "migrate_disks"),
        (call(10), "a message of program 0x20008086, procedure 10"),
        (WEB.finish(), "DOMAIN_MIGRATE_FINISH3_PARAMS"),
    ],
)
def test_a_refusal_names_the_call_and_the_part_of_it(raw: bytes, part: str) -> None:
    refusal = opened().call(read(raw)).refusal
    assert refusal
    assert refusal.part == part
    assert refusal.sentence.startswith(f"Landbridge refused {refusal.call}: ")


def test_a_cookie_of_another_host_is_refused_by_its_uuid() -> None:
    host = "9df1450c-64f4-56cb-90fd-6123971658ed"
    refusal = prepared().call(read(WEB.finish(cookie=WEB.cookie(host=host)))).refusal
    assert refusal
    assert (refusal.part, host in refusal.sentence) == ("cookie: qemu-migration/hostuuid", True)


def test_a_migration_of_two_disks_names_both() -> None:
    second = re.search("<disk .*</disk>", WEB.domain, flags=re.DOTALL)
    assert second
    other = second[0].replace("vda", "vdb").replace("web.qcow2", "web-2.qcow2")
    xml = WEB.domain.replace("<interface", f"{other}<interface", 1)
    vm = Vm(domain=xml, disks=("vda", "vdb"))
    allowed = replace(ALLOWED, images=ALLOWED.images | {"/var/lib/libvirt/images/web-2.qcow2"})
    found = verdicts(Firewall(vm.approval(allowed)), *GREETING, vm.prepare(), vm.finish(), *LEAVE)
    assert not any(v.refusal for v in found)


def test_what_cannot_be_followed_is_followed_as_far_as_it_can_be_where_nothing_is_enforced() -> None:
    firewall = opened(enforces=False)
    odd = call(303, bytes(read(WEB.prepare()).payload) + bytes(4))
    assert firewall.call(read(odd)).action is Action.PASS
    assert (firewall.state.name, firewall.reply(read(reply(odd)))) == ("PREPARING", Verdict(Action.PASS))
    assert firewall.state.name == "PREPARED"
    stream = firewall.call(read(call(303, kind=MessageType.STREAM, serial=77)))
    assert (stream.action, firewall.state.name) == (Action.PASS, "PREPARED")
    assert firewall.reply(read(reply(call(303, serial=77)))).refusal


# After a refusal.


def test_after_a_refusal_one_may_leave_and_a_qemu_that_waits_may_be_ended() -> None:
    firewall = prepared()
    assert firewall.call(read(call(10))).action is Action.ANSWER
    found = verdicts(firewall, WEB.finish(1), *LEAVE)
    assert {v.action for v in found} == {Action.PASS}
    assert firewall.state is State.CLOSED


def test_before_the_connection_is_open_nothing_may_follow_a_refusal() -> None:
    firewall = Firewall(WEB.approval())
    firewall.call(read(OPEN))
    assert firewall.state is State.CLOSED
    assert [v.action for v in verdicts(firewall, *GREETING[:1], CLOSE)] == [Action.ANSWER] * 2


def test_who_goes_on_after_so_many_refusals_is_cut_off() -> None:
    firewall = opened()
    actions = [firewall.call(read(call(10, serial=n))).action for n in range(MOST_REFUSED + 1)]
    assert actions == [Action.ANSWER] * MOST_REFUSED + [Action.CLOSE]


def test_a_conversation_has_so_many_calls_and_no_more() -> None:
    firewall = opened()
    left = MOST_CALLS - len(GREETING)
    found = verdicts(firewall, *(feature(4, 100 + n) for n in range(left + 1)))
    assert [v.action for v in found] == [Action.PASS] * left + [Action.ANSWER]
    assert found[-1].refusal
    assert "more than 64 calls" in found[-1].refusal.sentence


# What libvirtd says.


def test_a_reply_passes_once_and_only_if_its_procedure_and_its_serial_are_a_calls() -> None:
    raw = WEB.prepare()
    for wrong in (reply(call(303, serial=8)), reply(call(306, serial=9)), call(303, serial=9), call(400, kind=2)):
        firewall = opened()
        firewall.call(read(raw))
        verdict = firewall.reply(read(wrong))
        assert verdict.action is Action.CLOSE
        assert verdict.refusal
        assert "it answers no call" in verdict.refusal.sentence
    firewall = opened()
    firewall.call(read(raw))
    assert firewall.reply(read(reply(raw))).action is Action.PASS
    assert firewall.reply(read(reply(raw))).action is Action.CLOSE


def test_the_daemons_word_that_it_closes_the_connection_passes_at_any_time() -> None:
    assert opened().reply(read(call(362, kind=MessageType.MESSAGE))).action is Action.PASS


def test_where_nothing_is_enforced_what_answers_no_call_passes_and_is_told() -> None:
    verdict = opened(enforces=False).reply(read(reply(CLOSE)))
    assert (verdict.action, bool(verdict.refusal)) == (Action.PASS, True)


# Sentences.


def test_a_sentence_that_is_too_long_is_cut_between_characters() -> None:
    answer = read(error_reply(read(CLOSE), "ü" * MOST_BYTES))
    half = read(error_reply(read(CLOSE), "x" + "ü" * MOST_BYTES))
    assert error_text(bytes(half.payload)) == "x" + "ü" * (MOST_BYTES // 2 - 1)
    assert error_text(bytes(answer.payload)) == "ü" * (MOST_BYTES // 2)


def test_a_reply_is_laid_out_as_libvirts_own() -> None:
    # What libvirtd 9.0 says to a FINISH that cancels, with our code, domain and text in the place of its own.
    theirs = (
        "0000005d0000000a000000010000001e6d6967726174696f6e207375636365737366756c6c792061626f72746564000000000002"
        "00000000000000010000001e6d6967726174696f6e207375636365737366756c6c792061626f7274656400000000000000000000"
        "ffffffffffffffff00000000"
    )
    ours = bytes(read(error_reply(read(CLOSE), "migration successfully aborted")).payload).hex()
    assert ours == theirs.replace("0000005d0000000a", f"{88:08x}{7:08x}", 1)


def test_what_is_no_error_has_no_sentence() -> None:
    assert error_text(b"") == error_text(bytes(8)) == error_text(bytes(12)) == ""


def test_every_state_can_be_refused_and_ends() -> None:
    assert {state for state, _ in TABLE} == set(State)

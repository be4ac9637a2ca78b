"""The firewall's states: every (state, input), and what holds on every way through them."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.stream.firewall import TABLE, Action, Firewall, Happening, Input, State
from agent.stream.libvirt_rpc import Status
from agent.stream.rpc_calls import Call
from tests.unit.rpc_made import AUTH_LIST, CLOSE, OPEN, REGISTER, UNREGISTER, WEB, feature, read, reply

INPUTS: tuple[Input, ...] = (*Call, *Happening)
CALLS = {
    Call.AUTH_LIST: AUTH_LIST,
    Call.FEATURE_OF_PROGRAM: feature(10),
    Call.OPEN: OPEN,
    Call.FEATURE: feature(4),
    Call.REGISTER: REGISTER,
    Call.PREPARE: WEB.prepare(),
    Call.FINISH: WEB.finish(),
    Call.CANCEL: WEB.finish(1),
    Call.UNREGISTER: UNREGISTER,
    Call.CLOSE: CLOSE,
}
# Where QEMU may wait here for memory.
WAITING = {State.PREPARED, State.REFUSED_PREPARED, State.FINISHING}


@pytest.mark.parametrize(("state", "call"), [*itertools.product(State, Call)], ids=str)
def test_every_call_in_every_state_passes_by_the_table_or_is_refused_and_then_only_leaving_is_left(
    state: State, call: Call
) -> None:
    firewall = Firewall(WEB.approval())
    firewall.state = state
    verdict = firewall.call(read(CALLS[call]))
    if (state, call) in TABLE:
        assert verdict.action is (Action.HOLD if call is Call.FINISH else Action.PASS)
        assert firewall.state is TABLE[state, call]
    else:
        assert verdict.action is Action.ANSWER
        assert firewall.state is TABLE[state, Happening.REFUSAL]


@pytest.mark.parametrize(("state", "call"), [*itertools.product(State, Call)], ids=str)
@pytest.mark.parametrize("status", [Status.OK, Status.ERROR])
def test_every_answer_in_every_state_changes_what_the_table_says_and_nothing_else(
    state: State, call: Call, status: Status
) -> None:
    firewall = Firewall(WEB.approval())
    firewall._waiting[read(CALLS[call]).serial] = read(CALLS[call])
    firewall.state = state
    assert firewall.reply(read(reply(CALLS[call], status=status))).action is Action.PASS
    happening: Happening | None = None
    if call is Call.PREPARE:
        happening = Happening.PREPARED if status is Status.OK else Happening.NOT_PREPARED
    elif call in {Call.FINISH, Call.CANCEL}:
        happening = Happening.FINISHED
    assert firewall.state is (state if happening is None else TABLE.get((state, happening), state))


def reachable(start: State, inputs: tuple[Input, ...] = INPUTS) -> set[State]:
    seen, left = {start}, [start]
    while left:
        state = left.pop()
        for following in inputs:
            after = TABLE.get((state, following))
            if after is not None and after not in seen:
                seen.add(after)
                left.append(after)
    return seen


def test_every_state_can_be_reached_and_ends() -> None:
    assert reachable(State.NEW) == set(State)
    for state in State:
        assert State.CLOSED in reachable(state)


def test_after_a_refusal_no_way_leads_to_another_prepare_or_to_an_arrival() -> None:
    for state in State:
        for after in reachable(TABLE[state, Happening.REFUSAL]):
            assert (after, Call.PREPARE) not in TABLE
            assert (after, Call.FINISH) not in TABLE


def test_on_no_way_is_there_a_second_open_prepare_or_finish() -> None:
    for once in (Call.OPEN, Call.PREPARE, Call.FINISH, Call.CANCEL):
        for (_, call), after in TABLE.items():
            if call is once:
                assert not any((later, once) in TABLE for later in reachable(after))


def test_a_guest_arrives_only_from_where_qemu_waits() -> None:
    assert {state for state, call in TABLE if call is Call.FINISH} == {State.PREPARED}
    assert {state for state, call in TABLE if call is Call.PREPARE} == {State.OPEN}


@given(st.lists(st.tuples(st.sampled_from(Call), st.sampled_from([Status.OK, Status.ERROR])), max_size=30))
def test_on_any_way_libvirtd_is_called_in_order_and_once(way: list[tuple[Call, Status]]) -> None:
    firewall = Firewall(WEB.approval())
    passed: list[Call] = []
    refused = False
    for call, status in way:
        verdict = firewall.call(read(CALLS[call]))
        if verdict.action in {Action.ANSWER, Action.CLOSE}:
            refused = True
            continue
        assert not (refused and call in {Call.PREPARE, Call.FINISH})
        passed.append(call)
        firewall.reply(read(reply(CALLS[call], status=status)))
    assert all(passed.count(once) <= 1 for once in (Call.AUTH_LIST, Call.OPEN, Call.PREPARE, Call.CLOSE))
    assert passed.count(Call.FINISH) + passed.count(Call.CANCEL) <= 1
    order = [Call.AUTH_LIST, Call.OPEN, Call.PREPARE, Call.FINISH]
    places = [passed.index(call) for call in order if call in passed]
    assert places == sorted(places)

"""The table of a migration's states: every pair of state and input, every walk, and the diagram drawn from it."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.migration.moving import STAGE_EVENTS
from gateway.migration.states import CANCELLABLE, ENDED, TRANSITIONS, Input, State, diagram, following
from landbridge.errors import Conflict
from landbridge.v1.types_pb2 import MigrationState

# The only news upon which the destination may let the VM run.
NEWS_OF_RELEASE = {Input.RELEASED, Input.DESTINATION_HAS_IT}


def reachable_from(state: State) -> set[State]:
    found, left = {state}, [state]
    while left:
        new = set(TRANSITIONS[left.pop()].values()) - found
        found |= new
        left += new
    return found


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", Input)
def test_every_input_in_every_state_leads_on_or_is_refused_with_both_names(state: State, event: Input) -> None:
    if event in TRANSITIONS[state]:
        assert following(state, event) is TRANSITIONS[state][event]
        return
    with pytest.raises(Conflict) as caught:
        following(state, event)
    assert state.name.lower() in caught.value.message
    assert event.name.lower() in caught.value.message


def test_the_table_has_a_row_for_every_state_and_the_contract_has_the_same_states() -> None:
    assert set(TRANSITIONS) == set(State)
    assert {state.value for state in State} == set(MigrationState.values()) - {
        MigrationState.MIGRATION_STATE_UNSPECIFIED
    }
    assert all(MigrationState.Name(state.value) == f"MIGRATION_STATE_{state.name}" for state in State)


def test_every_state_can_be_reached() -> None:
    assert reachable_from(State.REQUESTED) == set(State)


def test_every_input_is_taken_somewhere() -> None:
    assert {event for ways in TRANSITIONS.values() for event in ways} == set(Input)


@pytest.mark.parametrize("state", [state for state in State if state not in ENDED])
def test_from_every_state_that_has_not_ended_an_end_can_be_reached(state: State) -> None:
    assert reachable_from(state) & ENDED


@pytest.mark.parametrize("state", [state for state in State if state in ENDED])
def test_an_end_is_never_left_except_that_a_completed_migration_is_settled(state: State) -> None:
    assert TRANSITIONS[state] == ({Input.SETTLE: State.SETTLED} if state is State.COMPLETED else {})


def test_the_destination_is_activated_only_when_the_source_is_known_to_have_released_the_vm() -> None:
    ways_in = {event for ways in TRANSITIONS.values() for event, to in ways.items() if to is State.ACTIVATING}
    assert ways_in == NEWS_OF_RELEASE
    assert {state for state, ways in TRANSITIONS.items() if Input.DESTINATION_HAS_IT in ways} == {State.RESOLVING}


def test_what_arrived_is_discarded_only_when_the_source_was_asked_who_has_the_vm() -> None:
    ways_in = {
        (state, event) for state, ways in TRANSITIONS.items() for event, to in ways.items() if to is State.CLEANING
    }
    assert ways_in == {(State.RESOLVING, Input.SOURCE_HAS_IT), (State.RESOLVING, Input.NOBODY_HAS_IT)}


def test_nobody_can_cancel_while_the_vm_is_between_the_two_hosts_or_after() -> None:
    moving = {State.REQUESTED, State.PREPARING, State.COPYING_DISKS, State.COPYING_MEMORY}
    assert {state for state, ways in TRANSITIONS.items() if Input.CANCEL in ways} == CANCELLABLE == moving
    for state in (State.SWITCHING, State.ACTIVATING, State.RESOLVING, State.CLEANING, State.VERIFYING):
        with pytest.raises(Conflict):
            following(state, Input.CANCEL)


def test_every_stage_that_means_something_leads_on() -> None:
    for (state, _stage), event in STAGE_EVENTS.items():
        assert event in TRANSITIONS[state]


@given(st.lists(st.sampled_from(Input), max_size=60))
def test_no_sequence_of_inputs_lets_the_vm_run_on_two_sides(events: list[Input]) -> None:
    state, released, activated = State.REQUESTED, False, False
    for event in events:
        try:
            state = following(state, event)
        except Conflict:
            continue
        released = released or event in NEWS_OF_RELEASE
        activated = activated or event in {Input.ACTIVATED, Input.ACTIVATED_TO_VERIFY}
        assert released or state not in {State.ACTIVATING, State.VERIFYING, State.COMPLETED, State.SETTLED}
        # Once released, the copy at the destination may be the only one: nothing leads back to its removal.
        assert not (released and state in {State.CLEANING, State.RESOLVING, State.CANCELLED})
        assert not (activated and state in {State.FAILED, State.CANCELLED})
        assert activated or state not in {State.VERIFYING, State.COMPLETED, State.SETTLED}


@given(st.lists(st.sampled_from(Input), max_size=60))
def test_a_migration_that_completed_was_never_cancelled_in_vain(events: list[Input]) -> None:
    state, cleaned = State.REQUESTED, None
    for event in events:
        try:
            state = following(state, event)
        except Conflict:
            continue
        cleaned = event if event in {Input.CLEANED, Input.CLEANED_AFTER_CANCEL} else cleaned
        assert (state is State.CANCELLED) is (cleaned is Input.CLEANED_AFTER_CANCEL)


def test_the_diagram_names_every_transition_and_every_end() -> None:
    lines = diagram().splitlines()
    drawn = [re.fullmatch(r" {4}(\w+) --> (\w+): (.+)", line) for line in lines]
    assert {match.groups() for match in drawn if match} == {
        (state.name, to.name, event.value) for state, ways in TRANSITIONS.items() for event, to in ways.items()
    }
    assert lines[:2] == ["stateDiagram-v2", "    [*] --> REQUESTED"]
    ends = {line.split()[0] for line in lines if line.endswith("--> [*]")}
    assert ends == {state.name for state in ENDED}


def test_running_the_module_draws_the_diagram() -> None:
    command = [sys.executable, "-m", "gateway.migration.states"]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == diagram()

"""The states of a migration, and every way from one to another. One table; nothing else decides.

The source site's gateway runs this machine. Its invariant: the VM runs on exactly one side, or is paused with a recorded
reason. It rests on one rule: the VM arrives paused, and `activate` happens only on the way from a state in which the source
is known to have released it. Whatever goes wrong before leads to RESOLVING, where the source is asked who has the VM; its
answer, and nothing else, chooses between the ways out: where the VM is whole at the destination, the source has to note first that
it has left for good, as if it had released it.

A VM that is shut off goes the same way and runs at no time: what "runs" below stands still at the source, and is shut off in the end.

`python -m gateway.migration.states` draws the table as a Mermaid diagram.
"""

from __future__ import annotations

import sys
from enum import Enum

from landbridge.errors import Conflict
from landbridge.v1.types_pb2 import MigrationState


class State(Enum):
    """Where a migration is. Values are the numbers of landbridge.v1.MigrationState."""

    # Recorded; nothing has been touched.
    REQUESTED = MigrationState.MIGRATION_STATE_REQUESTED
    # Sockets and empty images are being made.
    PREPARING = MigrationState.MIGRATION_STATE_PREPARING
    # The guest runs at the source in these two, unless its policy lets it stand still for the rest; in SWITCHING it stands still.
    COPYING_DISKS = MigrationState.MIGRATION_STATE_COPYING_DISKS
    COPYING_MEMORY = MigrationState.MIGRATION_STATE_COPYING_MEMORY
    SWITCHING = MigrationState.MIGRATION_STATE_SWITCHING
    # The source has released the VM; the destination is told to let it run, for as long as that takes.
    ACTIVATING = MigrationState.MIGRATION_STATE_ACTIVATING
    # Something went wrong, or was asked to stop: who has the VM?
    RESOLVING = MigrationState.MIGRATION_STATE_RESOLVING
    # The source has it; the destination is told to remove what it made.
    CLEANING = MigrationState.MIGRATION_STATE_CLEANING
    # The VM runs at the destination, and what both ends have stored is compared, for somebody wanted that.
    VERIFYING = MigrationState.MIGRATION_STATE_VERIFYING
    COMPLETED = MigrationState.MIGRATION_STATE_COMPLETED
    FAILED = MigrationState.MIGRATION_STATE_FAILED
    CANCELLED = MigrationState.MIGRATION_STATE_CANCELLED
    # Completed, and what was kept at the source is removed.
    SETTLED = MigrationState.MIGRATION_STATE_SETTLED


class Input(Enum):
    """What happens to a migration."""

    BEGIN = "begin"
    PREPARED = "both ends prepared, move started"
    MEMORY_BEGAN = "memory is being copied"
    SUSPENDED = "the guest stands still"
    RESUMED = "the guest goes on at the source"
    RELEASED = "the source has released the VM"
    TROUBLE = "an error, or no answer"
    CANCEL = "the operator cancels"
    SOURCE_HAS_IT = "the VM is at the source"
    DESTINATION_HAS_IT = "the VM has arrived whole at the destination, and the source has noted that it left"
    NOBODY_HAS_IT = "the VM is off at the source, and has not arrived"
    ACTIVATED = "the VM runs at the destination"
    ACTIVATED_TO_VERIFY = "the VM runs at the destination, and its disks are to be compared"
    VERIFIED = "the disks were compared, or cannot be"
    LOST = "the VM has vanished from the destination"
    CLEANED = "nothing is left at the destination"
    CLEANED_AFTER_CANCEL = "nothing is left at the destination, as the operator asked"
    SETTLE = "the operator settles"


_MOVING = {
    Input.RELEASED: State.ACTIVATING,
    Input.TROUBLE: State.RESOLVING,
}

TRANSITIONS: dict[State, dict[Input, State]] = {
    State.REQUESTED: {
        Input.BEGIN: State.PREPARING,
        Input.CANCEL: State.RESOLVING,
        Input.TROUBLE: State.RESOLVING,
    },
    State.PREPARING: {
        Input.PREPARED: State.COPYING_DISKS,
        Input.TROUBLE: State.RESOLVING,
        Input.CANCEL: State.RESOLVING,
    },
    State.COPYING_DISKS: _MOVING
    | {
        Input.MEMORY_BEGAN: State.COPYING_MEMORY,
        Input.SUSPENDED: State.SWITCHING,
        Input.CANCEL: State.RESOLVING,
    },
    State.COPYING_MEMORY: _MOVING | {Input.SUSPENDED: State.SWITCHING, Input.CANCEL: State.RESOLVING},
    # No CANCEL: the source decides within a second or two, and only then can be told what became of the VM. Where the destination hangs,
    # it gives up by itself (`agent.standstill`).
    State.SWITCHING: _MOVING | {Input.RESUMED: State.COPYING_MEMORY},
    State.RESOLVING: {
        Input.SOURCE_HAS_IT: State.CLEANING,
        Input.NOBODY_HAS_IT: State.CLEANING,
        Input.DESTINATION_HAS_IT: State.ACTIVATING,
    },
    State.CLEANING: {Input.CLEANED: State.FAILED, Input.CLEANED_AFTER_CANCEL: State.CANCELLED},
    State.ACTIVATING: {
        Input.ACTIVATED: State.COMPLETED,
        Input.ACTIVATED_TO_VERIFY: State.VERIFYING,
        Input.LOST: State.FAILED,
    },
    # Whatever comes of it, the VM runs: there is no way back, and none is needed.
    State.VERIFYING: {Input.VERIFIED: State.COMPLETED},
    State.COMPLETED: {Input.SETTLE: State.SETTLED},
    State.FAILED: {},
    State.CANCELLED: {},
    State.SETTLED: {},
}

ENDED = frozenset({State.COMPLETED, State.FAILED, State.CANCELLED, State.SETTLED})
CANCELLABLE = frozenset(state for state, ways in TRANSITIONS.items() if Input.CANCEL in ways)


def _reachable(state: State) -> frozenset[State]:
    found: set[State] = set()
    ahead = [state]
    while ahead:
        ahead += (news := set(TRANSITIONS[ahead.pop()].values()) - found)
        found |= news
    return frozenset(found)


# Of each state, those that can come after it, however much later; itself only where a way leads back.
LATER = {state: _reachable(state) for state in State}


def following(state: State, event: Input) -> State:
    """The state after `event`. Raises Conflict if the event has no place in `state`."""
    try:
        return TRANSITIONS[state][event]
    except KeyError:
        raise Conflict(
            f"a migration that is {state.name.lower()} takes no {event.name.lower()}: see `landbridge show`"
        ) from None


def diagram() -> str:
    """The table as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", f"    [*] --> {State.REQUESTED.name}"]
    for state, ways in TRANSITIONS.items():
        lines += [f"    {state.name} --> {to.name}: {event.value}" for event, to in ways.items()]
        if not ways or state is State.COMPLETED:
            lines.append(f"    {state.name} --> [*]")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(diagram())

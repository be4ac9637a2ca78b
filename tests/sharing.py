"""How several processes share the tests (pytest-xdist), so that all of them have work to the end, and the processors too.

Tests with real hosts and guests wait most of the time, the others calculate: one process takes the others first, the
other processes those with guests, and who is done with its own kind helps with the other. What takes longest begins first (see
`tests.conftest`). Tests of a file stay together, unless each takes longer than what a process has to set up for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped]  # it ships no types

if TYPE_CHECKING:
    from xdist.workermanage import WorkerController  # type: ignore[import-untyped]

# Where the tests wait, and where they are shared one by one.
WITH_GUESTS = "tests/integration/"
ONE_BY_ONE = (WITH_GUESTS, "tests/system/")
# Of these, files whose tests share more than a process has for all of them.
WHOLE = (
    "tests/integration/test_lab_wan.py",
    "tests/integration/test_page_log.py",
    "tests/system/test_audit_crash.py",
    "tests/system/test_ship.py",
)


class Sharing(LoadFileScheduling):  # type: ignore[misc]  # likewise
    """`--dist loadfile`, in two queues."""

    def __init__(self, config: pytest.Config, log: object = None) -> None:
        super().__init__(config, log)
        # Else the files with most tests come first, which are not those that take longest.
        config.option.loadscopereorder = False

    def _split_scope(self, nodeid: str) -> str:
        """What a test is handed out with: its file, or nothing else."""
        if nodeid.startswith(ONE_BY_ONE) and not nodeid.startswith(WHOLE):
            return nodeid
        return str(super()._split_scope(nodeid))

    def _assign_work_unit(self, node: WorkerController) -> None:
        """Hand out the next of the node's own kind, as long as there is one."""
        takes_guests = node is not self.nodes[-1]
        for scope in self.workqueue:
            if scope.startswith(WITH_GUESTS) == takes_guests:
                self.workqueue.move_to_end(scope, last=False)
                break
        super()._assign_work_unit(node)

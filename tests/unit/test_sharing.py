"""The processes that share the tests have work of their own kind first, of the other then, and do each test once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from tests.sharing import Sharing

FILES = [f"tests/unit/test_{name}.py::test_{number}" for name in "abcd" for number in range(3)]
SYSTEM = [f"tests/system/test_s.py::test_{number}" for number in range(3)]
WHOLE = [f"tests/integration/test_page_log.py::test_{number}" for number in range(3)]
GUESTS = [f"tests/integration/test_g.py::test_{number}[a::b]" for number in range(8)]


class Node:
    """A process, as the scheduler sees it: it takes tests, and does them when it is told to."""

    def __init__(self, name: str, collection: list[str]) -> None:
        self.gateway = SimpleNamespace(id=name)
        self.shutting_down = False
        self.to_do: list[int] = []
        self.done: list[str] = []
        self._collection = collection

    def send_runtest_some(self, indices: list[int]) -> None:
        """Take them."""
        self.to_do += indices

    def shutdown(self) -> None:
        """No more will come."""
        self.shutting_down = True

    def do_one(self, sharing: Sharing) -> bool:
        """Do the first; as in xdist, only when the one behind it is known, or that there is none."""
        if len(self.to_do) < (1 if self.shutting_down else 2):
            return False
        index = self.to_do.pop(0)
        self.done.append(self._collection[index])
        sharing.mark_test_complete(self, index)
        return True


def shared(collection: list[str], processes: int) -> tuple[Sharing, list[Node]]:
    """All that was collected, shared among so many, of whom none has done anything yet."""
    option = SimpleNamespace(loadscopereorder=True)
    config = SimpleNamespace(option=option, getvalue=lambda _: [f"{processes}*popen"])
    sharing = Sharing(cast(pytest.Config, config))
    nodes = [Node(f"gw{number}", collection) for number in range(processes)]
    for node in nodes:
        sharing.add_node(node)
        sharing.add_node_collection(node, collection)
    sharing.schedule()
    return sharing, nodes


def do_all(sharing: Sharing, *nodes: Node) -> None:
    while sum(node.do_one(sharing) for node in nodes):
        pass


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
def test_each_test_is_done_once_however_many_share_them(processes: int) -> None:
    everything = [*FILES, *SYSTEM, *WHOLE, *GUESTS]
    sharing, nodes = shared(everything, processes)
    do_all(sharing, *nodes)
    assert sorted(test for node in nodes for test in node.done) == sorted(everything)
    assert sharing.tests_finished
    assert not sharing.has_pending


def test_the_last_process_begins_without_guests_and_the_others_with_them_in_the_order_of_collection() -> None:
    sharing, (one, two, last) = shared(["tests/unit/test_small.py::test_0", *FILES, *SYSTEM, *GUESTS], 3)
    for _ in range(3):
        assert all(node.do_one(sharing) for node in (one, two, last))
    assert last.done == ["tests/unit/test_small.py::test_0", *FILES[:2]]
    assert sorted(one.done + two.done) == GUESTS[:6]


def test_who_is_done_with_its_own_kind_helps_with_the_other() -> None:
    sharing, (one, last) = shared([*FILES, *GUESTS], 2)
    do_all(sharing, last)  # the other one hangs in its first test
    assert last.done == [*FILES, *GUESTS[2:]]
    sharing, (one, last) = shared([*FILES, *GUESTS], 2)
    do_all(sharing, one)
    assert one.done == [*GUESTS, *FILES[3:]]


def test_the_tests_of_a_file_stay_together_and_those_that_take_long_are_shared_one_by_one() -> None:
    sharing, nodes = shared([*FILES, *SYSTEM, *WHOLE, *GUESTS], 2)
    assert len(sharing.assigned_work[nodes[0]]) == 1, "one file of three tests is enough to begin with"
    kinds = {sharing._split_scope(test) for test in [*FILES, *SYSTEM, *WHOLE, *GUESTS]}
    assert len(kinds) == 4 + len(SYSTEM) + 1 + len(GUESTS)

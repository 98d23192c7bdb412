"""Waiting for answers that come later: each is fetched once, late ones are left out, and waiting can be ended."""

import threading
import time

import pytest
from flwr.app import Message, MessageType

from fedbayes.comm.messages import ask_partition, read_partition
from fedbayes.errors import RunError
from fedbayes.simulation.in_process import FIRST_NODE, InProcessGrid
from fedbayes.simulation.polled_grid import PolledGrid


class Later(InProcessGrid):
    """A grid whose node p has its answer ready at the look number `ready[p]`; without one it never has."""

    def __init__(self, ready):
        super().__init__(None, len(ready))
        self.ready, self.looks, self.partitions, self.pulled = ready, 0, {}, []

    def push_messages(self, messages):
        messages = list(messages)
        ids = list(super().push_messages(messages))
        self.partitions |= {i: m.metadata.dst_node_id - FIRST_NODE for i, m in zip(ids, messages, strict=True)}
        return ids

    def pull_messages(self, message_ids):
        self.looks += 1
        ids = list(message_ids)  # a set of texts would answer in an order of its own in each process
        self.pulled.append(sorted(self.partitions[i] for i in ids))
        return super().pull_messages([i for i in ids if (at := self.ready[self.partitions[i]]) and at <= self.looks])


def polled(grid, **options):
    return PolledGrid(grid, threading.Event(), **options)


def ask(grid, count, timeout=None):
    """Ask so many nodes for their partitions; return the answers in the order in which they come."""
    questions = [Message(ask_partition(), FIRST_NODE + p, MessageType.QUERY) for p in range(count)]
    return [read_partition(reply.content) for reply in grid.send_and_receive(questions, timeout=timeout)]


def test_answers_come_in_their_own_order_and_are_asked_for_until_they_come():
    grid = Later([3, 1, 2])
    assert ask(polled(grid), 3) == [1, 2, 0]
    assert grid.pulled == [[0, 1, 2], [0, 2], [0]]


def test_no_message_is_no_wait():
    grid = Later([None])
    assert ask(polled(grid), 0) == []
    assert grid.looks == 0


def test_late_answers_are_left_out():
    started = time.monotonic()
    assert ask(polled(Later([1, None])), 2, timeout=0.2) == [0]
    assert 0.2 <= time.monotonic() - started < 5


def test_looks_become_rarer_while_nothing_comes():
    grid = Later([None])
    ask(polled(grid, longest=0.1), 1, timeout=0.5)
    assert grid.looks < 15  # 0.001 + 0.002 + ... + 0.064 seconds, then 0.1 each


def test_waiting_without_a_timeout_ends_when_told_to():
    stop = threading.Event()
    threading.Timer(0.1, stop.set).start()
    with pytest.raises(RunError, match="stopped"):
        ask(PolledGrid(Later([1, None]), stop, longest=60), 2)
    assert ask(PolledGrid(Later([1]), stop), 1) == [0], "what had come already survives a stop"


def test_a_late_client_is_asked_again_only_once_it_has_answered():
    """Two answers at a time would start from the same context, and the later one would wipe out the other's."""
    later = Later([1, None])
    grid = polled(later, longest=0.01)
    for _ in range(3):
        assert ask(grid, 2, timeout=0.2) == [0]
    assert sorted(later.partitions.values()) == [0, 0, 0, 1]
    later.ready[1] = later.looks + 10
    assert ask(grid, 2) == [0, 1]
    assert later.looks >= 10
    assert sorted(later.partitions.values()) == [0, 0, 0, 0, 1, 1]
    assert [0, 1, 1] not in later.pulled, "it was asked again while it was at work"
    assert ask(grid, 2) == [0, 1]


def test_messages_that_the_grid_refuses_are_not_waited_for():
    class Refusing(Later):
        def push_messages(self, messages):
            ids = super().push_messages(messages)
            return [None if self.partitions[i] == 0 else i for i in ids]

    assert ask(polled(Refusing([1, 1])), 2) == [1]

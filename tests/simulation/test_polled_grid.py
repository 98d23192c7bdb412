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
        self.ready, self.looks, self.partitions, self.wanted = ready, 0, {}, []

    def push_messages(self, messages):
        sent = list(messages)
        ids = list(super().push_messages(sent))
        self.partitions |= {one: m.metadata.dst_node_id - FIRST_NODE for one, m in zip(ids, sent, strict=True)}
        return ids

    def pull_messages(self, message_ids):
        self.looks += 1
        asked = list(message_ids)  # a set of texts would answer in an order of its own in each process
        self.wanted.append(sorted(self.partitions[one] for one in asked))
        come = [one for one in asked if (when := self.ready[self.partitions[one]]) and when <= self.looks]
        return super().pull_messages(come)


def questions(count):
    return [Message(ask_partition(), FIRST_NODE + p, MessageType.QUERY) for p in range(count)]


def answered(replies):
    return [read_partition(reply.content) for reply in replies]


def test_answers_come_in_their_own_order_and_are_asked_for_until_they_are_there():
    grid = Later([3, 1, 2])
    replies = PolledGrid(grid, threading.Event()).send_and_receive(questions(3))
    assert answered(replies) == [1, 2, 0]
    assert grid.wanted == [[0, 1, 2], [0, 2], [0]]


def test_no_message_is_no_wait():
    grid = Later([None])
    assert list(PolledGrid(grid, threading.Event()).send_and_receive([])) == []
    assert grid.looks == 0


def test_late_answers_are_left_out():
    started = time.monotonic()
    replies = PolledGrid(Later([1, None]), threading.Event()).send_and_receive(questions(2), timeout=0.2)
    assert answered(replies) == [0]
    assert 0.2 <= time.monotonic() - started < 5


def test_looks_become_rarer_while_nothing_comes():
    grid = Later([None])
    list(PolledGrid(grid, threading.Event(), longest=0.1).send_and_receive(questions(1), timeout=0.5))
    assert grid.looks < 15  # 0.001 + 0.002 + ... + 0.064 seconds, then 0.1 each


def test_waiting_without_a_timeout_ends_when_told_to():
    stop = threading.Event()
    threading.Timer(0.1, stop.set).start()
    with pytest.raises(RunError, match="stopped while clients were at work"):
        PolledGrid(Later([1, None]), stop, longest=60).send_and_receive(questions(2))


def test_what_was_there_already_survives_a_stop():
    stop = threading.Event()
    stop.set()
    assert answered(PolledGrid(Later([1]), stop).send_and_receive(questions(1))) == [0]


def test_a_late_client_is_asked_again_only_once_it_has_answered():
    """Two answers at a time would start from the same context, and the later one would wipe out the other's."""
    grid = Later([1, None])
    polled = PolledGrid(grid, threading.Event(), longest=0.01)
    assert answered(polled.send_and_receive(questions(2), timeout=0.2)) == [0]
    assert len(grid.partitions) == 2
    grid.ready[1] = grid.looks + 10
    assert answered(polled.send_and_receive(questions(2))) == [0, 1]
    assert grid.looks >= 10
    assert sorted(grid.partitions.values()) == [0, 0, 1, 1]
    assert [0, 1, 1] not in grid.wanted, "it was asked again while it was at work"
    assert answered(polled.send_and_receive(questions(2))) == [0, 1]


def test_a_client_that_never_answers_is_left_out_of_every_round():
    grid = Later([1, None])
    polled = PolledGrid(grid, threading.Event(), longest=0.01)
    for _ in range(3):
        assert answered(polled.send_and_receive(questions(2), timeout=0.2)) == [0]
    assert sorted(grid.partitions.values()) == [0, 0, 0, 1]


def test_messages_that_the_grid_refuses_are_not_waited_for():
    class Refusing(Later):
        def push_messages(self, messages):
            return [
                None if m.metadata.dst_node_id == FIRST_NODE else i
                for m, i in zip(messages, super().push_messages(messages), strict=True)
            ]

    assert answered(PolledGrid(Refusing([1, 1]), threading.Event()).send_and_receive(questions(2))) == [1]

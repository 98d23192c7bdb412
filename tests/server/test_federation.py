"""Who takes part: nodes say whose images they hold, are waited for, passed over or refused."""

import itertools

import pytest
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from scripted import SIZES, Scripted, play

from fedbayes.errors import RunError
from fedbayes.server.federation import Federation
from fedbayes.server.validation import ReplyValidator
from fedbayes.simulation.flower_private import FIRST_NODE, client_error
from fedbayes.simulation.in_process import InProcessGrid


def test_another_number_of_clients_than_asked_for_is_refused():
    client = Scripted()
    with pytest.raises(RunError, match="clients=5"):
        play(client, grid=InProcessGrid(client, 4))


def node_answers(answers, clients, patience=0):
    """A federation whose nodes answer the question for their partition with this; None for silence."""

    class Odd(InProcessGrid):
        asked = 0

        def send_and_receive(self, messages, *, timeout=None):
            self.asked += 1
            assert timeout >= 1
            for message in messages:
                answer = answers[message.metadata.dst_node_id - FIRST_NODE]
                answer = answer(self.asked) if callable(answer) else answer
                if answer is not None:
                    yield Message(RecordDict(answer), reply_to=message)

    return Federation(Odd(None, len(answers)), clients, ReplyValidator(1e8), SIZES, patience=patience)


def holds(partition):
    return {"metrics": MetricRecord({"partition-id": partition})}


def test_a_node_that_says_that_it_holds_anothers_partition_is_refused_with_both_names():
    with pytest.raises(RunError, match=r"nodes 1000 and 1003 .* partition 0"):
        node_answers([holds(0), holds(1), holds(2), holds(0)], 3)


@pytest.mark.parametrize("answer", [{}, holds(float("nan")), holds(1.9), holds(-1), {"metrics": ConfigRecord()}])
def test_a_node_whose_answer_cannot_be_read_is_passed_over(answer, caplog):
    federation = node_answers([answer, holds(1), holds(0)], 2)
    assert federation.partitions == [0, 1]
    assert "node 1000 is passed over" in caplog.text
    with pytest.raises(RunError, match=r"partitions \[0\] for clients=2"):
        node_answers([answer, holds(0)], 2)


def test_a_silent_node_is_waited_for_only_while_its_partition_is_missing(caplog):
    assert node_answers([holds(1), holds(0), None], 2).partitions == [0, 1]
    assert "nodes [1002]" in caplog.text
    now = itertools.count(0, 10)

    def slow(asked):
        return holds(1) if asked > 2 else None

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("fedbayes.server.federation.time.monotonic", lambda: next(now))
        assert node_answers([holds(0), slow], 2, patience=5).partitions == [0, 1]


def test_clients_that_never_come_are_missed():
    class Late(InProcessGrid):
        def get_node_ids(self):
            return list(super().get_node_ids())[:-1]

    with pytest.raises(RunError, match=r"4 of clients=5 .* simulation.patience=0"):
        play(Scripted(), grid=Late(Scripted(), 5))


def test_clients_that_come_later_are_waited_for():
    class Slow(InProcessGrid):
        looks = 0

        def get_node_ids(self):
            self.looks += 1
            return list(super().get_node_ids())[: self.looks]

    progress, _, _ = play(client := Scripted(), grid=Slow(client, 5), patience=30, rounds=1)
    assert set(progress.accepted) == set(range(5)), "no sampling from those who happen to be there"


def test_a_client_that_cannot_start_is_named():
    class Broken(InProcessGrid):
        def send_and_receive(self, messages, *, timeout=None):
            return [Message(client_error("DataError: no images\nTraceback"), reply_to=m) for m in messages]

    with pytest.raises(RunError, match=r"cannot start: DataError: no images\."):
        play(client := Scripted(), grid=Broken(client, 5))

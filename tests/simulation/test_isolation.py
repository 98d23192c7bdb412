"""A client that fails inside a cohort: the others get, bit for bit, what they get beside a healthy one."""

import logging

import numpy as np
import pytest
from flwr.app import Error, MessageType, RecordDict
from smoke import smoke

from fedbayes.arrays import non_finite
from fedbayes.comm.messages import ARRAYS, METRICS, from_record, to_record, write_request
from fedbayes.simulation.client import answer
from fedbayes.simulation.flower_private import claim_identity

PARTITIONS = [0, 1, 2, 3]
KINDS = [MessageType.TRAIN, MessageType.EVALUATE]
UNEQUAL = ["partition=iid", "partition.quantity=1.0", "partition.max_train=null", "partition.validation=0.85"]


@pytest.fixture(scope="module", params=[["method=pfedbayespt"], ["method=fedvpt", "method.client.personal=[head]"]])
def client(request):
    _, cohort_client = smoke("clients=4", *UNEQUAL, *request.param)
    sizes = [len(cohort_client.data.indices(p, "train")) for p in PARTITIONS]
    assert len(set(sizes)) == 4, f"clients should differ in size, and have {sizes}"
    return cohort_client


def ask(client, kind, changed=None):
    """Replies and states of all clients; `changed` has arrays that a client is sent instead of the server's."""
    claim_identity()
    states, initial = [RecordDict() for _ in PARTITIONS], client.initial()
    contents = [
        write_request(to_record({**initial, **(changed or {}).get(partition, {})}), 1, "test", accepted=0)
        for partition in PARTITIONS
    ]
    return answer(client, kind, PARTITIONS, contents, states), states


@pytest.fixture(scope="module")
def healthy(client):
    """Replies and states by kind of message, where nobody fails."""
    return {kind: ask(client, kind) for kind in KINDS}


def bits(record):
    return {name: array.tobytes() for name, array in from_record(record).items()}


def same(reply, expected):
    """Whether two replies are equal to the last bit."""
    return reply.metric_records[METRICS] == expected.metric_records[METRICS] and (
        bits(reply.array_records[ARRAYS]) == bits(expected.array_records[ARRAYS])
    )


class Failing:
    """A real client that raises whenever certain clients are in the cohort, or the cohort is larger than it likes."""

    def __init__(self, client, guilty=(), largest=9):
        self.client, self.guilty, self.largest = client, set(guilty), largest
        self.initial = client.initial

    def _check(self, requests):
        if self.guilty & {request.partition for request in requests}:
            raise ZeroDivisionError("rotten image")
        if len(requests) > self.largest:
            raise MemoryError("no room")

    def train(self, requests):
        self._check(requests)
        return self.client.train(requests)

    def evaluate(self, requests):
        self._check(requests)
        return self.client.evaluate(requests)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("guilty", [{0}, {1}, {2}, {3}, {0, 3}, {0, 1, 2, 3}])
def test_an_exception_costs_the_others_no_bit(client, healthy, kind, guilty):
    expected, expected_states = healthy[kind]
    replies, states = ask(Failing(client, guilty), kind)
    for partition in PARTITIONS:
        if partition in guilty:
            first, second, *_ = replies[partition].reason.splitlines()
            assert first.startswith("ZeroDivisionError: rotten image (")
            assert "test_isolation.py, line " in first
            assert second.startswith("Traceback")
            assert not states[partition]
        else:
            assert same(replies[partition], expected[partition]), partition
            for name, record in expected_states[partition].array_records.items():
                assert bits(states[partition].array_records[name]) == bits(record)


def test_arrays_of_a_wrong_shape_cost_the_others_no_bit(client, healthy):
    name = next(iter(client.initial()))
    replies, _ = ask(client, MessageType.TRAIN, {2: {name: np.zeros((3, 3, 3, 3), np.float32)}})
    assert replies[2].code == 2
    assert all(same(replies[p], healthy[MessageType.TRAIN][0][p]) for p in (0, 1, 3))


@pytest.mark.parametrize("kind", KINDS)
def test_a_nan_costs_the_others_no_bit(client, healthy, kind):
    name, value = next((k, v) for k, v in client.initial().items() if v.size)
    replies, _ = ask(client, kind, {1: {name: np.full_like(value, np.nan)}})
    assert all(same(replies[p], healthy[kind][0][p]) for p in (0, 2, 3))
    if isinstance(replies[1], Error):
        assert replies[1].reason.endswith("is not finite"), "personal parameters are checked where they are stored"
    else:
        first = "probabilities" if kind == MessageType.EVALUATE else name
        assert non_finite(from_record(replies[1].array_records[ARRAYS])) == first


def test_a_cohort_that_fails_only_in_company_is_answered_client_by_client_and_says_so(client, caplog):
    with caplog.at_level(logging.WARNING, logger="fedbayes"):
        replies, _ = ask(Failing(client, largest=1), MessageType.TRAIN)
    sizes = [len(client.data.indices(p, "train")) for p in PARTITIONS]
    assert [reply.metric_records[METRICS]["num-examples"] for reply in replies] == sizes
    assert "MemoryError: no room" in caplog.text
    assert "simulation.cohort" in caplog.text

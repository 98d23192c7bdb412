"""A client that fails inside a cohort: the others get, bit for bit, what they get beside a healthy one."""

import logging

import numpy as np
import pytest
from flwr.app import Error, MessageType, RecordDict

from fedbayes import build
from fedbayes.arrays import non_finite
from fedbayes.comm.messages import ARRAYS, METRICS, from_record, to_record, write_request
from fedbayes.config.compose import compose
from fedbayes.simulation.client import answer
from fedbayes.simulation.flower_private import claim_identity

PARTITIONS = [0, 1, 2, 3]
UNEQUAL = ["partition=iid", "partition.quantity=1.0", "partition.max_train=null", "partition.validation=0.85"]


@pytest.fixture(scope="module", params=[["method=pfedbayespt"], ["method=fedvpt", "method.client.personal=[head]"]])
def client(request):
    cfg = compose(["experiment=smoke", "clients=4", *UNEQUAL, *request.param])
    data = build.data(cfg)
    made = build.client(cfg, data, build.model(cfg, data, "cpu"))
    sizes = [len(data.indices(p, "train")) for p in PARTITIONS]
    assert len(set(sizes)) == 4, f"clients should differ in size, and have {sizes}"
    return made


def contents(client, changed=None):
    """A message for each client; `changed` has arrays that one is sent instead of the server's."""
    claim_identity()
    found = []
    for partition in PARTITIONS:
        arrays = {**client.initial(), **(changed or {}).get(partition, {})}
        found.append(write_request(to_record(arrays), 1, "test", accepted=0))
    return found


def asked(client, kind, changed=None):
    states = [RecordDict() for _ in PARTITIONS]
    return answer(client, kind, PARTITIONS, contents(client, changed), states), states


def same(one, other):
    """Whether two replies are equal to the last bit."""
    first, second = (from_record(reply.array_records[ARRAYS]) for reply in (one, other))
    return dict(one.metric_records[METRICS]) == dict(other.metric_records[METRICS]) and all(
        first[name].tobytes() == second[name].tobytes() for name in first | second
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


@pytest.mark.parametrize("kind", [MessageType.TRAIN, MessageType.EVALUATE])
@pytest.mark.parametrize("guilty", [{0}, {1}, {2}, {3}, {0, 3}])
def test_an_exception_costs_the_others_no_bit(client, kind, guilty):
    healthy, kept = asked(client, kind)
    replies, states = asked(Failing(client, guilty), kind)
    for partition in PARTITIONS:
        if partition in guilty:
            first, second, *_ = replies[partition].reason.splitlines()
            assert first.startswith("ZeroDivisionError: rotten image (")
            assert "test_isolation.py, line " in first
            assert second.startswith("Traceback")
            assert not states[partition]
        else:
            assert same(replies[partition], healthy[partition]), partition
            for name, record in kept[partition].array_records.items():
                mine, like = (from_record(one.array_records[name]) for one in (states[partition], kept[partition]))
                assert {k: v.tobytes() for k, v in mine.items()} == {k: v.tobytes() for k, v in like.items()}, record


def test_arrays_of_a_wrong_shape_cost_the_others_no_bit(client):
    name = next(iter(client.initial()))
    changed = {2: {name: np.zeros((3, 3, 3, 3), np.float32)}}
    healthy, replies = asked(client, MessageType.TRAIN)[0], asked(client, MessageType.TRAIN, changed)[0]
    assert replies[2].code == 2
    assert all(same(replies[p], healthy[p]) for p in (0, 1, 3))


@pytest.mark.parametrize("kind", [MessageType.TRAIN, MessageType.EVALUATE])
def test_a_nan_costs_the_others_no_bit(client, kind):
    name, value = next((k, v) for k, v in client.initial().items() if v.size)
    replies = asked(client, kind, {1: {name: np.full_like(value, np.nan)}})[0]
    healthy = asked(client, kind)[0]
    assert all(same(replies[p], healthy[p]) for p in (0, 2, 3))
    if isinstance(replies[1], Error):
        assert replies[1].reason.endswith("is not finite"), "what it keeps is checked where it is kept"
    else:
        first = "probabilities" if kind == MessageType.EVALUATE else name
        assert non_finite(from_record(replies[1].array_records[ARRAYS])) == first


def test_where_everybody_fails_everybody_is_told(client):
    replies, _ = asked(Failing(client, PARTITIONS), MessageType.TRAIN)
    assert len(replies) == 4
    assert all(reply.reason.startswith("ZeroDivisionError: rotten image (") for reply in replies)


def test_a_cohort_that_fails_only_in_company_is_answered_one_by_one_and_says_so(client, caplog):
    with caplog.at_level(logging.WARNING, logger="fedbayes"):
        replies, _ = asked(Failing(client, largest=1), MessageType.TRAIN)
    assert [reply.metric_records[METRICS]["num-examples"] for reply in replies] == [
        len(client.data.indices(p, "train")) for p in PARTITIONS
    ]
    assert "a cohort of 4 clients failed (MemoryError: no room)" in caplog.text
    assert "lower simulation.cohort" in caplog.text

"""Federated averaging, by hand; and what every strategy of ours has from its base."""

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message

from fedbayes.comm.messages import ClientUpdate, from_record, read_update, to_record, write_reply
from fedbayes.simulation.in_process import FIRST_NODE, InProcessGrid
from fedbayes.simulation.sampled_grid import SampledGrid
from strategies.averaging import Averaging
from strategies.base import AbstractStrategy, weighted_mean


def update(partition, images, **arrays):
    return ClientUpdate(partition, {name: np.asarray(value) for name, value in arrays.items()}, images, {})


def view(clients=3):
    return SampledGrid(InProcessGrid(None, clients), {FIRST_NODE + p: p for p in range(clients)})


def test_the_weighted_mean_by_hand():
    mean = weighted_mean([update(0, 1, w=[1.0, 2.0], b=4.0), update(1, 3, w=[5.0, -2.0], b=0.0)])
    assert mean["w"].tolist() == [(1 * 1 + 3 * 5) / 4, (1 * 2 - 3 * 2) / 4]
    assert mean["b"].tolist() == 1.0
    assert mean["b"].shape == ()


def test_equal_parameters_stay_what_they_are_to_the_bit():
    value = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    mean = weighted_mean([update(p, 7 + p, w=value) for p in range(11)])["w"]
    assert mean.dtype == np.float32
    assert mean.tobytes() == value.tobytes()


def test_sums_run_in_float64():
    # In float32, 2 ** 24 + 1 is 2 ** 24.
    mean = weighted_mean(
        [update(0, 1, w=np.float32([2**24])), update(1, 1, w=np.float32([2])), update(2, 1, w=np.float32([1]))]
    )
    assert mean["w"].item() == np.float32((2**24 + 3) / 3)


def test_the_mean_lies_between_its_parts_and_does_not_change_them():
    rng = np.random.default_rng(1)
    updates = [update(p, int(rng.integers(1, 50)), w=rng.normal(size=20)) for p in range(6)]
    before = [u.arrays["w"].copy() for u in updates]
    mean = weighted_mean(updates)["w"]
    assert (mean >= np.min(before, axis=0)).all()
    assert (mean <= np.max(before, axis=0)).all()
    assert all(np.array_equal(u.arrays["w"], kept) for u, kept in zip(updates, before, strict=True))


def test_a_round_through_flowers_hooks():
    strategy = Averaging()
    grid = view(2)
    messages = list(strategy.configure_train(4, to_record({"w": np.zeros(2)}), ConfigRecord(), grid))
    assert [message.metadata.dst_node_id - FIRST_NODE for message in messages] == [0, 1]
    assert all(message.content.config_records["config"]["server-round"] == 4 for message in messages)
    replies = [
        Message(write_reply(update(p, 1 + p, w=[3.0 * p, 6.0])), reply_to=message) for p, message in enumerate(messages)
    ]
    arrays, _ = strategy.aggregate_train(4, replies)
    np.testing.assert_allclose(from_record(arrays)["w"], [2.0, 6.0])


def test_what_flower_hands_in_is_what_goes_out():
    strategy = Averaging()
    handed = to_record({"w": np.full(2, 5.0)})
    for configure in (strategy.configure_train, strategy.configure_evaluate):
        for message in configure(1, handed, ConfigRecord(), view()):
            assert from_record(message.content.array_records["arrays"])["w"].tolist() == [5.0, 5.0]


def test_a_method_may_send_everybody_something_else():
    class Own(AbstractStrategy):
        def outgoing(self, server_round, partition):
            return {"w": self.shared["w"] + 10 * server_round + partition}

        def aggregate(self, updates):
            self.partitions = [one.partition for one in updates]

    strategy = Own()
    messages = list(strategy.configure_train(2, to_record({"w": np.ones(1)}), ConfigRecord(), view()))
    assert [from_record(m.content.array_records["arrays"])["w"].item() for m in messages] == [21.0, 22.0, 23.0]
    reply = Message(write_reply(update(9, 1, w=[1.0])), reply_to=messages[2])
    strategy.aggregate_train(2, [reply])
    assert strategy.partitions == [2]
    assert read_update(2, reply.content).partition == 2


def test_a_grid_that_does_not_know_partitions_is_refused():
    with pytest.raises(TypeError, match="SampledGrid"):
        Averaging().configure_train(1, to_record({}), ConfigRecord(), InProcessGrid(None, 2))

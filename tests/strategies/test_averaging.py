"""Federated averaging, by hand; and what every strategy of ours has from its base."""

import numpy as np

from fedbayes.comm.messages import ClientUpdate
from strategies.averaging import Averaging
from strategies.base import AbstractStrategy, weighted_mean


def update(partition, images, **arrays):
    return ClientUpdate(partition, {name: np.asarray(value) for name, value in arrays.items()}, images, {})


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


def test_a_round_through_the_contract():
    strategy = Averaging()
    strategy.shared = {"w": np.zeros(2)}
    requests = strategy.requests(4, [0, 1], "train")
    assert list(requests) == [0, 1]
    assert requests[0] is requests[1], "clients that are sent the same share its bytes"
    strategy.aggregate([update(p, 1 + p, w=[3.0 * p, 6.0]) for p in range(2)])
    np.testing.assert_allclose(strategy.requests(4, [0], "evaluate")[0]["w"], [2.0, 6.0])


def test_a_method_may_send_each_client_something_else():
    class Numbered(AbstractStrategy):
        def outgoing(self, server_round, partition):
            return {"w": self.shared["w"] + 10 * server_round + partition}

        def aggregate(self, updates):
            raise NotImplementedError

    strategy = Numbered()
    strategy.shared = {"w": np.ones(1)}
    requests = strategy.requests(2, [0, 1, 2], "train")
    assert [arrays["w"].item() for arrays in requests.values()] == [21.0, 22.0, 23.0]

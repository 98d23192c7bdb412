"""Averages of the products of low-rank changes, and of one factor alone."""

import numpy as np
import pytest
from smoke import play_rounds, smoke

from fedbayes.comm.messages import ClientUpdate
from fedbayes.errors import ConfigError
from strategies.averaging import Averaging

A, B = "weights.a.blocks.0.attn.qkv", "weights.b.blocks.0.attn.qkv"


def updates(rank, clients=3, outputs=9, inputs=6):
    rng = np.random.default_rng(0)
    return [
        ClientUpdate(
            c,
            {A: rng.normal(size=(rank, inputs)), B: rng.normal(size=(outputs, rank)), "head": np.ones(2) * c},
            5 + c,
            {},
        )
        for c in range(clients)
    ]


def aggregated(replies):
    strategy = Averaging("exact")
    strategy.aggregate(replies)
    return strategy.shared


def mean_product(replies):
    total = sum(update.num_examples for update in replies)
    return sum(update.num_examples / total * update.arrays[B] @ update.arrays[A] for update in replies)


def test_at_full_rank_the_product_is_the_mean_of_the_products():
    replies = updates(rank=6)
    shared = aggregated(replies)
    np.testing.assert_allclose(shared[B] @ shared[A], mean_product(replies), atol=1e-12)
    assert shared["head"].tolist() == [(6 + 2 * 7) / 18] * 2


def test_at_a_lower_rank_it_is_the_nearest_product_of_that_rank():
    replies = updates(rank=2)
    shared, mean = aggregated(replies), mean_product(replies)
    assert (shared[A].shape, shared[B].shape) == ((2, 6), (9, 2))
    left, values, right = np.linalg.svd(mean)
    np.testing.assert_allclose(shared[B] @ shared[A], left[:, :2] * values[:2] @ right[:2], atol=1e-12)
    np.testing.assert_allclose(shared[B].T @ shared[B], shared[A] @ shared[A].T, atol=1e-12, err_msg="balanced")


def test_without_pairs_there_is_nothing_to_average_exactly():
    with pytest.raises(ConfigError, match=r"method\.strategy\.aggregate=exact"):
        Averaging("exact").aggregate([ClientUpdate(0, {"head": np.ones(2)}, 1, {})])


def test_flexlora_and_fedsa_lora_run_and_share_what_they_say():
    for method, letters in (("method=flexlora", {"a", "b"}), ("method=fedsa_lora", {"a"})):
        cfg, client = smoke(method, "rounds=2")
        names = play_rounds(cfg, client).arrays
        assert {name.split(".")[1] for name in names if name.startswith("weights.")} == letters

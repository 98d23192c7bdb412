"""Flower's own strategies behind the adapter: unchanged, repeatable, resumed, or refused in one line."""

import random

import numpy as np
import pytest
from flwr.serverapp import strategy as flower
from scripted import Scripted, play

from fedbayes import build
from fedbayes.comm.messages import ClientUpdate, from_record, to_record
from fedbayes.config.compose import compose
from fedbayes.errors import ConfigError, RunError
from fedbayes.server.flower_strategy import FlowerStrategy, SampledGrid
from fedbayes.server.strategy import snapshot
from strategies.averaging import Averaging

ALONE = {"min_train_nodes": 1, "min_evaluate_nodes": 1, "min_available_nodes": 1}


class Irrational(Scripted):
    """Replies whose sums depend on their order in the last bits."""

    def train(self, requests):
        return [
            ClientUpdate(
                r.partition,
                {"w": (r.arrays["w"] + np.sqrt(np.arange(9) + r.partition) * 10.0 ** (2 - r.partition)).astype("f4")},
                7 + r.partition,
                {"loss": 1.0 + r.partition},
            )
            for r in requests
        ]

    def initial(self):
        return {"w": np.zeros(9, np.float32)}


STRATEGIES = {
    "FedAvgM": {"server_momentum": 0.9},
    "FedAdam": {},
    "FedMedian": {},
    "FedTrimmedAvg": {"beta": 0.2},
    "MultiKrum": {"num_malicious_nodes": 1, "num_nodes_to_select": 3},
    "Bulyan": {"num_malicious_nodes": 0},
    "QFedAvg": {"client_learning_rate": 0.1},
}
"""FedAvg, FedAdagrad, FedYogi and Krum take the same ways as these."""


@pytest.mark.parametrize("name", STRATEGIES)
def test_equal_runs_are_equal_to_the_last_bit_whatever_pythons_generator(name):
    arrays = []
    for seed in (1, 2):
        random.seed(seed)
        strategy = FlowerStrategy(getattr(flower, name)(**STRATEGIES[name], **ALONE))
        progress, journal, _ = play(Irrational(), strategy=strategy, clients=5, rounds=2)
        assert journal.notes == []
        arrays.append(progress.arrays["w"].tobytes())
    assert len(set(arrays)) == 1
    assert np.abs(progress.arrays["w"]).max() > 0


def test_messages_are_for_the_sample_in_the_order_of_partitions():
    strategy = FlowerStrategy(flower.FedAvg(**ALONE))
    strategy.shared = {"w": np.zeros(1)}
    for kind in ("train", "evaluate"):
        requests = strategy.requests(1, [2, 4, 7], kind)
        assert list(requests) == [2, 4, 7]
        assert requests[2] is requests[7], "they share their bytes"
    with pytest.raises(NotImplementedError):
        SampledGrid([0]).push_messages([])


def test_qfedavg_weighs_by_the_training_loss():
    # q = 0 is averaging; with q > 0 the client with the larger loss (the last) pulls harder.
    strategies = [FlowerStrategy(flower.QFedAvg(client_learning_rate=0.1, q=q, **ALONE)) for q in (0.0, 5.0)]
    plain, fair = (play(Irrational(), strategy=each, clients=2, rounds=1)[0].arrays["w"] for each in strategies)
    replies = [np.sqrt(np.arange(9) + p) * 10.0 ** (2 - p) for p in range(2)]
    np.testing.assert_allclose(plain, np.mean(replies, axis=0), rtol=1e-5)
    assert np.abs(fair - replies[0]).sum() > 0
    assert not np.allclose(plain, fair)


def test_qfedavg_rejects_a_reply_without_its_loss_and_says_so():
    strategy = FlowerStrategy(flower.QFedAvg(client_learning_rate=0.1, train_loss_key="pain", **ALONE))
    with pytest.raises(RunError, match="lacks the metric pain"):
        play(Scripted(), strategy=strategy, rounds=1)


@pytest.mark.parametrize("name", ["FedXgbBagging", "FedXgbCyclic"])
def test_strategies_for_trees_are_refused_in_one_line(name):
    cfg = compose([f"method.strategy._target_=flwr.serverapp.strategy.{name}"])
    with pytest.raises(ConfigError, match=rf"method\.strategy: {name}"):
        build.strategy(cfg, build.loop(cfg, build.sampling(cfg)))


def test_a_strategy_that_relies_on_settings_of_clients_is_refused():
    with pytest.raises(ConfigError, match="proximal-mu"):
        play(Scripted(), strategy=FlowerStrategy(flower.FedProx(proximal_mu=1.0)))


def test_an_error_of_flowers_own_fails_the_round_and_is_one_line():
    class Broken(flower.FedAvg):
        def aggregate_train(self, server_round, replies):
            raise flower.fedavg.validate_message_reply_consistency.__globals__["InconsistentMessageReplies"](reason="x")

    with pytest.raises(RunError, match="aggregate of Broken"):
        play(Scripted(), strategy=FlowerStrategy(Broken(**ALONE)), rounds=1)


def wrapped(inner):
    return flower.DifferentialPrivacyServerSideFixedClipping(
        inner, noise_multiplier=0.0, clipping_norm=2.0, num_sampled_clients=3
    )


def test_flowers_wrappers_work_around_flowers_strategies():
    progress, _, _ = play(Scripted(), strategy=FlowerStrategy(wrapped(flower.FedAvg(**ALONE))), clients=3, rounds=1)
    np.testing.assert_allclose(progress.arrays["w"], (1 * 10 + 2 * 20 + 2 * 30) / 60)  # 3 is clipped to 2
    with pytest.raises(ConfigError, match="wraps Averaging"):
        FlowerStrategy(wrapped(Averaging()))


def test_what_a_wrapper_changes_reaches_the_clients():
    class Loud(flower.DifferentialPrivacyServerSideFixedClipping):
        def aggregate_train(self, server_round, replies):
            record, metrics = self.strategy.aggregate_train(server_round, replies)
            return to_record({name: array + 100 for name, array in from_record(record).items()}), metrics

    client = Scripted()
    loud = Loud(flower.FedAvg(**ALONE), noise_multiplier=0.0, clipping_norm=1.0, num_sampled_clients=3)
    progress, _, _ = play(client, strategy=FlowerStrategy(loud), clients=3, rounds=1)
    np.testing.assert_allclose(progress.arrays["w"], 100 + 140 / 60)
    np.testing.assert_allclose(client.last_parameters[0]["w"], 100 + 140 / 60)


def test_metrics_that_only_one_client_reports_end_no_run():
    class Talkative(Scripted):
        def train(self, requests):
            updates = super().train(requests)
            updates[0].metrics["more"] = 1.0
            return updates

    _, journal, _ = play(Talkative(), strategy=FlowerStrategy(flower.FedAvg(**ALONE)), rounds=1)
    assert journal.notes == []


def test_an_optimiser_forgets_what_a_failed_round_did():
    strategy = FlowerStrategy(flower.FedAdam(**ALONE))
    strategy.shared = {"w": np.zeros(1)}
    undo = snapshot(strategy)
    strategy.flower.m_t, strategy.flower.v_t = {"w": np.full(1, np.nan)}, {"w": np.full(1, np.nan)}
    undo()
    assert (strategy.flower.m_t, strategy.flower.v_t) == (None, None)


def test_what_a_strategy_and_its_wrapper_remember_survives_a_restart():
    def make():
        return FlowerStrategy(
            flower.DifferentialPrivacyServerSideAdaptiveClipping(
                flower.FedAvgM(server_momentum=0.9, **ALONE), noise_multiplier=0.01, num_sampled_clients=3
            )
        )

    first = make()
    first.flower.clipping_norm = 0.25
    first.flower.strategy.momentum_vector = [np.ones(2), np.zeros(1)]
    second = make()
    second.restore({name: array.copy() for name, array in first.state().items()})
    assert second.flower.clipping_norm == 0.25
    assert [array.tolist() for array in second.flower.strategy.momentum_vector] == [[1.0, 1.0], [0.0]]


def test_flowers_fedavg_and_ours_agree():
    expected = play(Irrational(), strategy=FlowerStrategy(flower.FedAvg(**ALONE)))[0].arrays["w"]
    np.testing.assert_allclose(expected, play(Irrational())[0].arrays["w"], rtol=1e-5)

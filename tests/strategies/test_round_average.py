"""Means of the server's parameters over rounds: by hand, for evaluations alone, and in what a finished run predicts."""

import numpy as np
import pytest

import fedbayes
from fedbayes.comm.messages import ClientUpdate
from fedbayes.errors import ConfigError
from fedbayes.storage import checkpoint
from strategies.averaging import Averaging
from strategies.fedncm import FedNCM
from strategies.round_average import RoundAverage


def after_rounds(values, rounds=3):
    strategy = RoundAverage(Averaging(), rounds)
    strategy.shared = {"w": np.float32([0.0])}
    for value in values:
        strategy.aggregate([ClientUpdate(0, {"w": np.float32([value])}, 1, {})])
    return strategy


def test_evaluations_have_the_mean_of_the_last_rounds_and_training_the_last():
    strategy = after_rounds([1.0, 2.0, 3.0, 7.0])
    assert strategy.requests(5, [0], "evaluate")[0]["w"].tolist() == [4.0]
    assert strategy.arrays_for(5, 0)["w"].tolist() == [4.0]
    assert strategy.requests(5, [0], "train")[0]["w"].tolist() == [7.0]
    assert strategy.shared["w"].tolist() == [7.0]
    assert after_rounds([]).requests(1, [0], "evaluate")[0]["w"].tolist() == [0.0], "before the first round"


def test_its_state_is_restored():
    strategy, restored = after_rounds([1.0, 2.0, 3.0, 7.0]), after_rounds([])
    restored.restore(strategy.state())
    restored.shared = dict(strategy.shared)
    assert restored.evaluated["w"].tolist() == [4.0]


def test_what_is_computed_anew_has_no_mean():
    with pytest.raises(ConfigError, match=r"server\.average"):
        RoundAverage(FedNCM(), 2)


def test_a_finished_run_predicts_with_the_mean(tmp_path):
    overrides = ["experiment=smoke", "rounds=2", "method=fedavg_head", "server.average=2", "simulation.threads=1"]
    fedbayes.simulate([*overrides, f"run_dir={tmp_path / 'run'}"])
    run, stored = fedbayes.load(tmp_path / "run"), checkpoint.latest(tmp_path / "run")
    mean = (stored.strategy["recent/0/head.bias"].astype(float) + stored.strategy["recent/1/head.bias"]) / 2
    assert np.abs(mean - stored.server["head.bias"]).max() > 1e-4
    for partition in (0, None):
        np.testing.assert_allclose(run.clients.parameters(partition)["head.bias"], mean, atol=1e-7)

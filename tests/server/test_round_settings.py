"""What the round loop refuses before it starts."""

import pytest
from flwr.serverapp import strategy
from scripted import round_loop

from fedbayes.errors import ConfigError
from fedbayes.server.flower_strategy import FlowerStrategy


@pytest.mark.parametrize(
    ("setting", "key"),
    [
        ({"rounds": 0}, "rounds=0"),
        ({"rounds": "abc"}, "rounds=abc"),
        ({"participation": 0}, "participation=0"),
        ({"participation": 1.1}, "participation=1.1"),
        ({"participation": float("nan")}, "participation=nan"),
        ({"seed": -1}, "seed=-1"),
        ({"clients": 0}, "clients=0"),
        ({"min_replies": 0}, "simulation.min_replies=0"),
        ({"min_replies": 3, "participation": 0.4}, "simulation.min_replies=3"),
        ({"evaluate_every": 0}, "evaluate.every=0"),
        ({"best_by": "luck"}, "evaluate.best_by=luck"),
        ({"temperature": 1.5}, "evaluate.temperature=1.5"),
    ],
)
def test_settings_out_of_range_are_refused(setting, key):
    with pytest.raises(ConfigError, match=key):
        round_loop(**setting)


@pytest.mark.parametrize(
    ("name", "settings", "key"),
    [
        ("FedAvg", {"fraction_train": 0.5}, "fraction_train=0.5"),
        ("FedAvg", {"fraction_evaluate": 0.0}, "fraction_evaluate=0.0"),
        ("FedAdam", {}, r"\+method.strategy.min_train_nodes=1 \+method.strategy.min_available"),
    ],
)
def test_strategies_that_would_sample_or_wait_by_themselves_are_refused(name, settings, key):
    loop = round_loop(participation=0.2)
    with pytest.raises(ConfigError, match=key):
        loop.require(FlowerStrategy(getattr(strategy, name)(**settings)))


def test_a_single_new_client_is_evaluated_and_no_strategy_waits_for_a_second():
    loop = round_loop(new_clients=1)
    with pytest.raises(ConfigError, match="min_available_nodes and min_evaluate"):
        loop.require(FlowerStrategy(strategy.FedAvg()))
    loop.require(FlowerStrategy(strategy.FedAvg(min_available_nodes=1, min_evaluate_nodes=1)))

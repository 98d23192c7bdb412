"""What the round loop refuses before it starts."""

import pytest
from scripted import Scripted, play, round_loop

from fedbayes.errors import ConfigError


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"rounds": 0}, "rounds=0"),
        ({"rounds": "abc"}, "rounds=abc"),
        ({"participation": 0}, "participation=0"),
        ({"participation": 1.1}, "participation=1.1"),
        ({"participation": float("nan")}, "participation=nan"),
        ({"seed": -1}, "seed=-1"),
        ({"clients": 0}, "clients=0"),
        ({"min_replies": 0}, "simulation.min_replies=0"),
        ({"min_replies": 3, "participation": 0.4}, "samples 2 of 5"),
        ({"evaluate_every": 0}, "evaluate.every=0"),
        ({"best_by": "luck"}, "choose one of accuracy, nll"),
        ({"temperature": 1.5}, "evaluate.temperature=1.5 is neither true nor false"),
    ],
)
def test_settings_out_of_range_are_refused(setting, said):
    with pytest.raises(ConfigError, match=said):
        round_loop(**setting)


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("FedAvg", {"fraction_train": 0.5}, "fraction_train=0.5 would sample a second time"),
        ("FedAvg", {"fraction_evaluate": 0.0}, "fraction_evaluate=0.0"),
        (
            "FedAdam",
            {},
            r"wait for ever.*set \+method.strategy.min_train_nodes=1 \+method.strategy.min_available_nodes=1",
        ),
    ],
)
def test_strategies_that_would_sample_or_wait_by_themselves_are_refused(name, settings, said):
    from flwr.serverapp import strategy

    loop = round_loop(participation=0.2)
    with pytest.raises(ConfigError, match=said):
        loop.require(getattr(strategy, name)(**settings))


def test_one_newcomer_alone_is_evaluated_and_no_strategy_waits_for_a_second():
    from flwr.serverapp.strategy import FedAvg

    loop = round_loop(new_clients=1)
    said = r"min_available_nodes and min_evaluate_nodes exceed .* \(4 of 5 in training, 1 in an evaluation\)"
    with pytest.raises(ConfigError, match=said):
        loop.require(FedAvg())
    loop.require(FedAvg(min_available_nodes=1, min_evaluate_nodes=1))


def test_a_strategy_that_relies_on_its_clients_is_refused_before_it_silently_becomes_another():
    from flwr.serverapp.strategy import FedProx

    with pytest.raises(ConfigError, match=r"sends proximal-mu, which no client here obeys"):
        play(Scripted(), strategy=FedProx(proximal_mu=1.0))

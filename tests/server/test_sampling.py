"""Who trains, who is evaluated and who is new: fixed by the seed, disjoint where it must be."""

import pytest

from fedbayes import build
from fedbayes.config.compose import compose
from fedbayes.errors import ConfigError
from fedbayes.server.sampling import Sampling


def sampling(**changes):
    return Sampling(**{"clients": 20, "participation": 0.3, "seed": 0, **changes})


def test_new_clients_never_train_and_are_never_evaluated_with_the_others():
    sample = sampling(new_clients=5)
    assert len(sample.new_clients) == 5
    trained = {partition for server_round in range(1, 200) for partition in sample.train(server_round)}
    assert trained == set(sample.known) == set(range(20)) - set(sample.new_clients)
    assert sample.evaluated == sample.known


def test_new_clients_are_the_same_in_every_run_of_a_seed_and_others_in_another():
    assert sampling(new_clients=5).new_clients == sampling(new_clients=5, participation=1.0).new_clients
    assert sampling(new_clients=5).new_clients != sampling(new_clients=5, seed=1).new_clients


def test_participation_is_a_fraction_of_those_that_may_train():
    assert sampling(new_clients=10, participation=0.5).per_round == 5
    assert sampling().known == list(range(20))
    assert sampling().new_clients == []


@pytest.mark.parametrize("new_clients", [20, -1, 0.5, "some"])
def test_somebody_must_be_left_to_train(new_clients):
    with pytest.raises(ConfigError, match=f"evaluate.new_clients={new_clients} "):
        sampling(new_clients=new_clients)


@pytest.mark.parametrize(
    ("fraction", "clients", "count"),
    [(0.25, 10, 3), (0.5, 5, 3), (0.5, 7, 4), (0.05, 10, 1), (0.45, 10, 5), (0.3, 10, 3), (0.01, 10, 1), (1.0, 7, 7)],
)
def test_a_half_rounds_up_and_at_least_one_client_takes_part(fraction, clients, count):
    sample = sampling(clients=clients, participation=fraction, evaluate_fraction=fraction)
    assert (sample.per_round, len(sample.evaluated)) == (count, count)


def test_where_each_client_has_all_images_a_single_client_trains():
    assert sampling(single=True).per_round == 1
    assert build.sampling(compose(["method=centralised", "participation=0.5"])).per_round == 1

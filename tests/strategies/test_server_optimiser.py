"""Server optimisers: by hand, against Flower's own where the two agree, and around strategies of every kind."""

import numpy as np
import pytest
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM, FedYogi

from fedbayes import build
from fedbayes.comm.messages import ClientUpdate
from fedbayes.config.compose import compose
from fedbayes.errors import ConfigError
from fedbayes.server.flower_strategy import FlowerStrategy
from strategies.averaging import Averaging
from strategies.base import AbstractStrategy
from strategies.pfpt import PFPT
from strategies.server_optimiser import ServerOptimiser

FLOWERS = {"min_train_nodes": 1, "min_evaluate_nodes": 1, "min_available_nodes": 1}


def play(strategy, answers, start, prepare=None):
    """Rounds through the contract; `answers` has each round's arrays of both clients. Returns all results."""
    strategy.shared, results = start, []
    for server_round, both in enumerate(answers, 1):
        if prepare is not None:
            prepare(strategy, server_round)
        strategy.requests(server_round, [0, 1], "train")
        strategy.aggregate([ClientUpdate(p, arrays, 1 + p, {}) for p, arrays in enumerate(both)])
        results.append(strategy.shared)
    return results


def flowers(strategy, **settings):
    return FlowerStrategy(strategy(**settings, **FLOWERS))


def script(rounds=4):
    rng = np.random.default_rng(0)
    return [[{"w": rng.normal(size=6), "b": rng.normal(size=(2, 1))} for _ in range(2)] for _ in range(rounds)]


START = {"w": np.linspace(-1.0, 1.0, 6), "b": np.zeros((2, 1))}


def one_number(name, targets, **settings):
    """The result of each round if both clients answer with the same number."""
    answers = [[{"w": np.array([target])}] * 2 for target in targets]
    strategy = ServerOptimiser(Averaging(), name=name, **settings)
    return [arrays["w"].item() for arrays in play(strategy, answers, {"w": np.array([1.0])})]


def test_momentum_by_hand():
    # Round 1: g = 1 - 3 = -2, m = -2, w = 1 + 0.5 * 2 = 2. Round 2: g = 2 - 1 = 1, m = 0.5 * -2 + 1 = 0, w = 2.
    # Round 3: g = 2 - 6 = -4, m = -4, w = 4.
    assert one_number("momentum", [3.0, 1.0, 6.0], lr=0.5, momentum=0.5) == [2.0, 2.0, 4.0]


@pytest.mark.parametrize("name", ["adam", "yogi"])
def test_adam_and_yogi_by_hand(name):
    # tau = 0.5, so v starts at 0.25. g = 1 - 3 = -2: m = 0.5 * -2 = -1; Yogi adds 0.25 g^2 to v, since v < g^2.
    v = {"adam": 0.75 * 0.25 + 0.25 * 4, "yogi": 0.25 + 0.25 * 4}[name]
    first = 1 + 0.1 * 1 / (np.sqrt(v) + 0.5)
    # g = first - 1: m = 0.5 * -1 + 0.5 g; here g^2 < v, and Yogi's v falls by 0.25 g^2.
    g = first - 1.0
    v = {"adam": 0.75 * v + 0.25 * g**2, "yogi": v - 0.25 * g**2}[name]
    second = first - 0.1 * (-0.5 + 0.5 * g) / (np.sqrt(v) + 0.5)
    results = one_number(name, [3.0, 1.0], lr=0.1, beta1=0.5, beta2=0.75, tau=0.5)
    np.testing.assert_allclose(results, [first, second], rtol=1e-14)


def agree(results, expected, rtol):
    for arrays, others in zip(results, expected, strict=True):
        for name in START:
            np.testing.assert_allclose(arrays[name], others[name], rtol=rtol)


@pytest.mark.parametrize("inner", [Averaging, lambda: flowers(FedAvg)])
def test_momentum_is_flowers_fedavgm(inner):
    results = play(ServerOptimiser(inner(), name="momentum", lr=0.7, momentum=0.9), script(), START)
    expected = play(flowers(FedAvgM, server_learning_rate=0.7, server_momentum=0.9), script(), START)
    agree(results, expected, 1e-12)


def test_yogi_is_flowers_fedyogi_where_its_other_start_of_v_is_of_no_account():
    settings = {"beta1": 0.9, "beta2": 0.99, "tau": 1e-10}
    results = play(ServerOptimiser(Averaging(), name="yogi", lr=0.1, **settings), script(), START)
    flower = flowers(FedYogi, eta=0.1, beta_1=0.9, beta_2=0.99, tau=1e-10)
    agree(results, play(flower, script(), START), 1e-9)


def test_adam_is_flowers_fedadam_without_its_correction_for_the_start():
    def undo(strategy, server_round):
        strategy.flower.eta = 0.1 * (1 - 0.9 ** (server_round + 1)) / np.sqrt(1 - 0.99 ** (server_round + 1))

    results = play(ServerOptimiser(Averaging(), name="adam", lr=0.1, tau=1e-10), script(), START)
    expected = play(flowers(FedAdam, eta=0.1, beta_1=0.9, beta_2=0.99, tau=1e-10), script(), START, undo)
    agree(results, expected, 1e-9)


def test_without_momentum_and_at_rate_one_the_aggregate_is_left_as_it_was():
    results = play(ServerOptimiser(Averaging(), name="momentum", momentum=0.0), script(), START)
    agree(results, play(Averaging(), script(), START), 1e-12)


def test_only_floating_arrays_that_were_there_before_in_the_same_shape_are_optimised():
    class Odd(AbstractStrategy):
        def aggregate(self, updates):
            self.shared = {
                "w": self.shared["w"] + np.float32(1),
                "count": self.shared["count"] + 1,
                "grown": np.zeros(3),
                "new": np.ones(2),
            }

    start = {"w": np.zeros(2, np.float32), "count": np.zeros(2, np.int64), "grown": np.zeros(2), "gone": np.ones(1)}
    strategy = ServerOptimiser(Odd(), name="momentum", lr=2.0)
    (results,) = play(strategy, [[{"w": np.zeros(2, np.float32)}] * 2], start)
    assert {name: array.tolist() for name, array in results.items()} == {
        "w": [2.0, 2.0],
        "count": [1, 1],
        "grown": [0.0, 0.0, 0.0],
        "new": [1.0, 1.0],
    }
    assert results["w"].dtype == np.float32
    assert set(strategy.state()) == {"first/w"}


@pytest.mark.parametrize("name", ["momentum", "adam", "yogi"])
def test_moments_and_the_strategys_own_state_survive_a_restart(name):
    class Counting(AbstractStrategy):
        rounds = 0

        def state(self):
            return {"rounds": np.array([self.rounds])}

        def restore(self, state):
            self.rounds = state["rounds"].item()

        def aggregate(self, updates):
            self.rounds += 1
            self.shared = {key: array + self.rounds for key, array in self.shared.items()}

    whole = play(ServerOptimiser(Counting(), name=name), script(), START)
    first, second = (ServerOptimiser(Counting(), name=name) for _ in range(2))
    half = play(first, script()[:2], START)[-1]
    second.restore({key: array.copy() for key, array in first.state().items()})
    for key, array in play(second, script()[2:], half)[-1].items():
        assert array.tobytes() == whole[-1][key].tobytes()


def test_a_round_that_the_strategy_gives_up_moves_nothing():
    class Refusing(FedAvg):
        def aggregate_train(self, server_round, replies):
            return None, None

    strategy = ServerOptimiser(flowers(Refusing), name="adam")
    before = strategy.state()
    (results,) = play(strategy, script(1), START)
    assert results is START
    assert strategy.state() == before


def configured(*overrides):
    cfg = compose(["experiment=smoke", *overrides])
    return build.strategy(cfg, build.loop(cfg, build.sampling(cfg)))


def test_the_configuration_wraps_any_strategy_and_by_default_none():
    assert isinstance(configured(), Averaging)
    yogi = configured("server.name=yogi", "server.lr=0.2", "server.tau=0.01")
    assert isinstance(yogi.strategy, Averaging)
    assert (yogi.optimiser, yogi.lr, yogi.tau) == ("yogi", 0.2, 0.01)
    assert configured("server.name=momentum").lr == 1.0
    median = "method.strategy._target_=flwr.serverapp.strategy.FedMedian"
    assert configured("server.name=momentum", median).name == "FedMedian"
    with pytest.raises(ConfigError, match=r"fraction_train=0\.5"):
        configured("server.name=momentum", median, "+method.strategy.fraction_train=0.5")
    with pytest.raises(ConfigError, match=r"^server: .*'rate'"):
        configured("server.name=adam", "+server.rate=1")
    with pytest.raises(ConfigError, match=r"server\.name=adam: FedNCM"):
        configured("method=fedncm", "server.name=adam")


def test_what_is_counted_is_passed_on_and_what_is_learnt_beside_it_is_not():
    class Counting(AbstractStrategy):
        counted = ("b",)

        def aggregate(self, updates):
            self.shared = updates[0].arrays

    answers = script(rounds=1)
    (results,) = play(ServerOptimiser(Counting(), name="adam"), answers, START)
    np.testing.assert_array_equal(results["b"], answers[0][0]["b"])
    assert np.abs(results["w"] - answers[0][0]["w"]).max() > 0.1


def test_prompts_whose_order_is_another_one_each_round_are_passed_on_and_the_head_beside_them_is_not():
    rng = np.random.default_rng(0)
    start = {"generator.base": rng.normal(size=(1, 2, 3)).astype("f4"), "head.bias": np.zeros(3, "f4")}
    answers = [[{name: rng.normal(size=like.shape).astype("f4") for name, like in start.items()}] * 2 for _ in range(2)]
    plain = play(PFPT(noise=1.0, mass=1.0, sweeps=5), answers, start)
    stepped = play(ServerOptimiser(PFPT(noise=1.0, mass=1.0, sweeps=5), name="adam"), answers, start)
    for arrays, others in zip(plain, stepped, strict=True):
        assert {name for name in arrays if not np.array_equal(arrays[name], others[name])} == {"head.bias"}
        assert "server.set.0" in arrays

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
from strategies.fedncm import FedNCM
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


def flowers(made, **settings):
    return FlowerStrategy(made(**settings, **FLOWERS))


def script(rounds=4):
    rng = np.random.default_rng(0)
    return [[{"w": rng.normal(size=6), "b": rng.normal(size=(2, 1))} for _ in range(2)] for _ in range(rounds)]


START = {"w": np.linspace(-1.0, 1.0, 6), "b": np.zeros((2, 1))}


def one_number(name, targets, **settings):
    """The result of each round if both clients answer with the same number."""
    answers = [[{"w": np.array([target])}] * 2 for target in targets]
    made = ServerOptimiser(Averaging(), name=name, **settings)
    return [one["w"].item() for one in play(made, answers, {"w": np.array([1.0])})]


def test_momentum_by_hand():
    # Round 1: g = 1 - 3 = -2, m = -2, w = 1 + 0.5 * 2 = 2. Round 2: g = 2 - 1 = 1, m = 0.5 * -2 + 1 = 0, w = 2.
    # Round 3: g = 2 - 6 = -4, m = -4, w = 4.
    assert one_number("momentum", [3.0, 1.0, 6.0], lr=0.5, momentum=0.5) == [2.0, 2.0, 4.0]


def test_adam_by_hand():
    # tau = 0.5, so v starts at 0.25. g = 1 - 3 = -2: m = 0.5 * -2 = -1, v = 0.75 * 0.25 + 0.25 * 4 = 1.1875.
    first = 1 + 0.1 * 1 / (np.sqrt(1.1875) + 0.5)
    # g = first - 1: m = 0.5 * -1 + 0.5 g, v = 0.75 * 1.1875 + 0.25 g^2.
    g = first - 1.0
    second = first - 0.1 * (-0.5 + 0.5 * g) / (np.sqrt(0.75 * 1.1875 + 0.25 * g**2) + 0.5)
    found = one_number("adam", [3.0, 1.0], lr=0.1, beta1=0.5, beta2=0.75, tau=0.5)
    np.testing.assert_allclose(found, [first, second], rtol=1e-14)


def test_yogi_by_hand():
    # g = -2: v = 0.25 + 0.25 * 4 = 1.25, since 0.25 < 4. Then g^2 < v, and v falls by 0.25 g^2.
    first = 1 + 0.1 * 1 / (np.sqrt(1.25) + 0.5)
    g = first - 1.0
    second = first - 0.1 * (-0.5 + 0.5 * g) / (np.sqrt(1.25 - 0.25 * g**2) + 0.5)
    found = one_number("yogi", [3.0, 1.0], lr=0.1, beta1=0.5, beta2=0.75, tau=0.5)
    np.testing.assert_allclose(found, [first, second], rtol=1e-14)


def agree(found, expected, rtol):
    for one, other in zip(found, expected, strict=True):
        for name in START:
            np.testing.assert_allclose(one[name], other[name], rtol=rtol)


@pytest.mark.parametrize("inner", [Averaging, lambda: flowers(FedAvg)])
def test_momentum_is_flowers_fedavgm(inner):
    found = play(ServerOptimiser(inner(), name="momentum", lr=0.7, momentum=0.9), script(), START)
    expected = play(flowers(FedAvgM, server_learning_rate=0.7, server_momentum=0.9), script(), START)
    agree(found, expected, 1e-12)


def test_yogi_is_flowers_fedyogi_where_its_other_start_of_v_is_of_no_account():
    settings = {"beta1": 0.9, "beta2": 0.99, "tau": 1e-10}
    found = play(ServerOptimiser(Averaging(), name="yogi", lr=0.1, **settings), script(), START)
    theirs = flowers(FedYogi, eta=0.1, beta_1=0.9, beta_2=0.99, tau=1e-10)
    agree(found, play(theirs, script(), START), 1e-9)


def test_adam_is_flowers_fedadam_without_its_correction_for_the_start():
    def undo(theirs, server_round):
        theirs.flower.eta = 0.1 * (1 - 0.9 ** (server_round + 1)) / np.sqrt(1 - 0.99 ** (server_round + 1))

    found = play(ServerOptimiser(Averaging(), name="adam", lr=0.1, tau=1e-10), script(), START)
    expected = play(flowers(FedAdam, eta=0.1, beta_1=0.9, beta_2=0.99, tau=1e-10), script(), START, undo)
    agree(found, expected, 1e-9)


def test_without_momentum_and_at_rate_one_the_aggregate_is_left_as_it_was():
    found = play(ServerOptimiser(Averaging(), name="momentum", momentum=0.0), script(), START)
    agree(found, play(Averaging(), script(), START), 1e-12)


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
    made = ServerOptimiser(Odd(), name="momentum", lr=2.0)
    (found,) = play(made, [[{"w": np.zeros(2, np.float32)}] * 2], start)
    assert {name: array.tolist() for name, array in found.items()} == {
        "w": [2.0, 2.0],
        "count": [1, 1],
        "grown": [0.0, 0.0, 0.0],
        "new": [1.0, 1.0],
    }
    assert found["w"].dtype == np.float32
    assert set(made.state()) == {"first/w"}


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


def test_flowers_strategies_without_a_memory_have_no_arrays_in_their_state():
    made = ServerOptimiser(flowers(FedAvg), name="momentum")
    before = made.state()
    assert all(array.ndim == 0 for array in before.values()), "settings alone"
    made.restore(before)
    assert made.state() == before


def test_a_round_that_the_strategy_gives_up_moves_nothing():
    class Refusing(FedAvg):
        def aggregate_train(self, server_round, replies):
            return None, None

    made = ServerOptimiser(flowers(Refusing), name="adam")
    before = made.state()
    (found,) = play(made, script(1), START)
    assert found is START
    assert made.state() == before


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"name": "sgd"}, "server.name=sgd"),
        ({"name": "adam", "lr": 0}, "server.lr=0"),
        ({"name": "adam", "tau": 0}, "server.tau=0"),
        ({"name": "adam", "beta2": 1.5}, "server.beta2=1.5"),
        ({"name": "momentum", "momentum": -0.1}, "server.momentum=-0.1"),
    ],
)
def test_values_out_of_range_are_named(wrong, said):
    with pytest.raises(ConfigError, match=said):
        ServerOptimiser(Averaging(), **wrong)


def test_a_strategy_without_steps_is_refused():
    with pytest.raises(ConfigError, match=r"server\.name=adam: FedNCM"):
        ServerOptimiser(FedNCM(), name="adam")


def built(*overrides):
    cfg = compose(["experiment=smoke", *overrides])
    return build.strategy(cfg, build.loop(cfg, build.sampling(cfg)))


def test_the_configuration_wraps_any_strategy_and_by_default_none():
    assert isinstance(built(), Averaging)
    ours = built("server.name=yogi", "server.lr=0.2", "server.tau=0.01")
    assert isinstance(ours.strategy, Averaging)
    assert (ours.optimiser, ours.lr, ours.tau) == ("yogi", 0.2, 0.01)
    assert built("server.name=momentum").lr == 1.0
    theirs = built("server.name=momentum", "method.strategy._target_=flwr.serverapp.strategy.FedMedian")
    assert theirs.name == "FedMedian"


def test_the_wrapped_strategy_still_has_to_meet_the_round_loop():
    with pytest.raises(ConfigError, match=r"fraction_train=0\.5"):
        built(
            "server.name=momentum",
            "method.strategy._target_=flwr.serverapp.strategy.FedMedian",
            "+method.strategy.fraction_train=0.5",
        )


def test_misspelt_settings_are_named():
    with pytest.raises(ConfigError, match=r"server: ServerOptimiser .*'rate'"):
        built("server.name=adam", "+server.rate=1")
    with pytest.raises(ConfigError, match=r"server\.name=adam: FedNCM"):
        built("method=fedncm", "server.name=adam")


def test_what_is_counted_is_passed_on_and_what_is_learnt_beside_it_is_not():
    class Counting(AbstractStrategy):
        counted = ("b",)

        def aggregate(self, updates):
            self.shared = updates[0].arrays

    answers = script(rounds=1)
    (found,) = play(ServerOptimiser(Counting(), name="adam"), answers, START)
    np.testing.assert_array_equal(found["b"], answers[0][0]["b"])
    assert np.abs(found["w"] - answers[0][0]["w"]).max() > 0.1


def test_prompts_whose_order_is_another_one_each_round_are_passed_on_and_the_head_beside_them_is_not():
    rng = np.random.default_rng(0)
    start = {"generator.base": rng.normal(size=(1, 2, 3)).astype("f4"), "head.bias": np.zeros(3, "f4")}
    answers = [[{name: rng.normal(size=like.shape).astype("f4") for name, like in start.items()}] * 2 for _ in range(2)]
    plain = play(PFPT(noise=1.0, mass=1.0, sweeps=5), answers, start)
    stepped = play(ServerOptimiser(PFPT(noise=1.0, mass=1.0, sweeps=5), name="adam"), answers, start)
    for one, other in zip(plain, stepped, strict=True):
        assert {name for name in one if not np.array_equal(one[name], other[name])} == {"head.bias"}
        assert "server.set.0" in one

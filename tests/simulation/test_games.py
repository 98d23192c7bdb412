"""Repeated games with incomplete information: closed forms, duality, and what a security strategy guarantees."""

from copy import copy

import numpy as np
import pytest

from fedbayes.errors import ConfigError
from fedbayes.simulation.games import (
    InformedPlayer,
    UninformedPlayer,
    believe,
    informed_security,
    stage_weights,
    uninformed_security,
)

PENNIES = np.array([[[1.0, -1.0], [-1.0, 1.0]]])
SADDLE = np.array([[[3.0, 2.0], [1.0, 0.0]]])
CONCAVE = np.array([[[1.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 1.0]]])
"""Aumann and Maschler's example: u(p) = p (1 - p), the value of the one-stage game whose type nobody knows."""


def values(payoffs, prior, weights):
    return informed_security(payoffs, prior, weights).value, uninformed_security(payoffs, weights, prior=prior).value


@pytest.mark.parametrize(
    ("payoffs", "value", "informed", "uninformed"),
    [(PENNIES, 0.0, [0.5, 0.5], [0.5, 0.5]), (SADDLE, 2.0, [1, 0], [0, 1])],
    ids=["matching pennies", "saddle point"],
)
def test_games_without_a_secret_have_their_one_stage_value(payoffs, value, informed, uninformed):
    for weights in (stage_weights(1), stage_weights(3), stage_weights(3, discount=0.7)):
        assert values(payoffs, [1], weights) == pytest.approx((value, value), abs=1e-9)
        assert informed_security(payoffs, [1], weights).mixture[0] == pytest.approx(informed, abs=1e-9)
        assert uninformed_security(payoffs, weights, prior=[1]).mixture == pytest.approx(uninformed, abs=1e-9)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("discount", [None, 0.6])
def test_the_two_programs_have_equal_values(seed, discount):
    rng = np.random.default_rng(seed)
    payoffs, prior = rng.normal(size=(3, 2, 3)), rng.dirichlet(np.ones(3))
    informed, uninformed = values(payoffs, prior, stage_weights(4, discount))
    assert informed == pytest.approx(uninformed, abs=1e-8)


@pytest.mark.parametrize("p", [0.3, 0.5])
def test_the_value_falls_to_the_concave_envelope_at_its_rate(p):
    envelope, scale = p * (1 - p), 2 * (p * (1 - p)) ** 0.5
    gaps = {stages: values(CONCAVE, [p, 1 - p], stage_weights(stages))[0] - envelope for stages in (2, 4, 6, 8)}
    assert gaps[2] > gaps[4] > gaps[6] > gaps[8] > 0
    for stages, gap in gaps.items():
        assert gap <= scale / stages**0.5, "Aumann and Maschler: max |M| sum_k sqrt(p_k (1 - p_k)) / sqrt(T)"


def test_a_secret_is_given_away_at_once_where_u_is_convex():
    solution = informed_security(-CONCAVE, [0.5, 0.5], stage_weights(3))
    assert solution.value == pytest.approx(0, abs=1e-9), "the concave envelope of -p (1 - p)"
    for action in range(2):
        assert sorted(believe(np.array([0.5, 0.5]), solution.mixture, action)) == pytest.approx([0, 1])


def test_a_secret_is_used_less_the_longer_it_is_needed_where_u_is_concave():
    def movement(stages):
        mixture = informed_security(CONCAVE, [0.5, 0.5], stage_weights(stages)).mixture
        return abs(believe(np.array([0.5, 0.5]), mixture, 0)[0] - 0.5)

    assert movement(1) == pytest.approx(0.5), "nothing comes after: it is used"
    assert movement(2) == pytest.approx(0, abs=1e-9), "hidden in the first of two stages"
    assert movement(4) > movement(6) > movement(8)


def test_beliefs_follow_bayes_rule():
    mixture = np.array([[0.9, 0.1], [0.3, 0.7]])
    assert believe(np.array([0.5, 0.5]), mixture, 0) == pytest.approx([0.75, 0.25])
    assert believe(np.array([1.0, 0.0]), np.array([[1.0, 0.0], [0.0, 1.0]]), 1) == pytest.approx([1, 0]), "impossible"
    player = InformedPlayer(CONCAVE, [0.5, 0.5], discount=0.5, horizon=2)
    player.observe(mixture, 1)
    assert player.belief == pytest.approx([0.125, 0.875])


@pytest.mark.parametrize("horizon", [1, 2, 3])
def test_no_sequence_of_actions_gets_more_than_the_security_strategy_guarantees(horizon):
    discount, stages = 0.5, 7
    rng = np.random.default_rng(horizon)
    payoffs, prior = rng.uniform(size=(3, 2, 3)), np.array([0.5, 0.3, 0.2])
    first = uninformed_security(payoffs, stage_weights(horizon, discount), prior=prior)
    paid = {(): (np.zeros(3), UninformedPlayer(payoffs, prior, discount, horizon))}
    for stage in range(stages):
        later = {}
        for history, (gain, player) in paid.items():
            mixture = player.mixture()
            for action in range(2):
                follower = copy(player)
                follower.observe(mixture, action)
                stage_gain = (1 - discount) * discount**stage * payoffs[:, action] @ mixture
                later[(*history, action)] = (gain + stage_gain, follower)
        paid = later
    assert len(paid) == 2**stages
    for gain, _ in paid.values():
        assert (gain <= first.by_type + 1e-7).all()
    assert first.value == pytest.approx(prior @ first.by_type)
    looser = uninformed_security(payoffs, stage_weights(1, discount), prior=prior).value
    assert first.value <= looser + 1e-9, "looking ahead never costs"


def test_regrets_are_anti_discounted():
    player = UninformedPlayer(CONCAVE, [0.5, 0.5], discount=0.5, horizon=2)
    player.regret = np.array([-0.2, -0.4])
    player.observe(np.array([0.25, 0.75]), 1)
    assert player.regret == pytest.approx([(-0.2 + 0.5 * 0) / 0.5, (-0.4 + 0.5 * 0.75) / 0.5])
    player.observe(np.array([0.5, 0.5]), np.array([[1.0, 0.0], [0.5, 0.5]]))
    assert player.regret == pytest.approx([(-0.4 + 0.25) / 0.5, (-0.05 + 0.5 * 0.25) / 0.5]), "the expected action"


def test_a_player_that_knows_everything_in_one_type_plays_the_plain_game():
    certain = UninformedPlayer(np.concatenate([PENNIES, SADDLE]), [1.0, 0.0], discount=0.5, horizon=2)
    assert certain.mixture() == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: informed_security(CONCAVE, [0.5, 0.4], stage_weights(1)), "prior"),
        (lambda: informed_security(CONCAVE, [1.5, -0.5], stage_weights(1)), "prior"),
        (lambda: informed_security(CONCAVE[0], [1], stage_weights(1)), "payoffs"),
        (lambda: UninformedPlayer(CONCAVE, [0.5, 0.5], discount=1.0, horizon=2), "discount"),
        (lambda: UninformedPlayer(CONCAVE, [0.5, 0.5], discount=0.0, horizon=2), "discount"),
        (lambda: stage_weights(0), "horizon"),
        (lambda: informed_security(CONCAVE, [0.5, 0.5], stage_weights(20)), "unknowns"),
    ],
)
def test_bad_games_are_refused(make, word):
    with pytest.raises(ConfigError, match=word):
        make()

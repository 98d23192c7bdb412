"""A jammer of uplinks and the server's policies: payoffs by hand, what security guarantees, who learns what."""

from copy import copy

import numpy as np
import pytest

from fedbayes.errors import ConfigError
from fedbayes.simulation.games import stage_weights, uninformed_security
from fedbayes.simulation.jammer import Jammer, Link, Policy, Schedule

PRIOR = {"none": 0.25, "largest": 0.25, "domain": 0.25, "bytes": 0.25}
DOMAINS = np.array([[40, 0], [40, 0], [10, 10], [10, 10], [0, 20], [0, 20]])
LABELS = np.array([[20, 20], [20, 20], [10, 10], [10, 10], [10, 10], [10, 10]])
LINK = {"rate": 1.0, "snr": 10.0, "jnr": 20.0}
SECURITY = {"invite": (1.0, 1.5), "wait": (1.0, 2.0), "price": 0.05}


def jammer(**changes):
    settings = {
        "seed": 0, "prior": PRIOR, "type": None, "strategy": "smart", "groups": 3, "budget": 1, "domain": 1, "label": 0,
        "link": LINK, "discount": 0.5, "horizon": 2,
    }  # fmt: skip
    return Jammer(**{**settings, **changes})


def game(policy="security", **changes):
    settings = {} if policy == "uniform" else SECURITY
    return jammer(**changes).game(range(6), DOMAINS, LABELS, Policy(name=policy, **settings))


def test_a_link_fades_as_rayleigh_says():
    link = Link(rate=1.0, snr=10.0, jnr=20.0)
    assert link.success(jammed=False, wait=1) == pytest.approx(np.exp(-1 / 10))
    assert link.success(jammed=True, wait=1) == pytest.approx(np.exp(-101 / 10))
    assert link.success(jammed=True, wait=2) == pytest.approx(np.exp(-(2**0.5 - 1) * 101 / 10))


def test_groups_are_worth_what_a_type_is_after():
    values = dict(zip(PRIOR, game().values, strict=True))
    assert values["none"] == pytest.approx(np.array([80, 40, 40]) / 160)
    assert values["largest"] == pytest.approx([1, 0, 0])
    assert values["domain"] == pytest.approx([0, 1 / 3, 2 / 3])
    assert values["bytes"] == pytest.approx([1 / 3, 1 / 3, 1 / 3])


def test_clients_with_the_same_main_domain_share_an_uplink():
    played = jammer().game(range(6), DOMAINS[[0, 4, 2, 5, 1, 3]], LABELS, Policy(name="uniform"))
    assert [partition for partition, group in played.group_of.items() if group == 2] == [1, 3]


def test_payoffs_by_hand():
    played = game("uniform")
    clear, jammed = np.exp(-0.1), np.exp(-10.1)
    assert played.jams == [(), (0,), (1,), (2,)]
    assert played.payoffs[1, :, 0] == pytest.approx([1 - clear, 1 - jammed, 1 - clear, 1 - clear]), "largest"
    assert played.payoffs[2, 3, 0] == pytest.approx(1 - clear / 3 - jammed * 2 / 3), "domain"
    assert (played.payoffs[0, 1:] < -100).all(), "no jammer jams nothing"
    fewer = game().schedules.index(Schedule(fewer=0, invite=1.5, wait=1.0))
    assert game().payoffs[1, 0, fewer] == pytest.approx(1 - 1.5 * 0.25 * clear + 0.05 * 0.5)


def test_rounds_are_the_same_in_any_order_and_types_follow_the_seed():
    first, second = game(), game()
    later = [second.round(server_round) for server_round in (4, 1, 3, 2)]
    for place, server_round in enumerate((4, 1, 3, 2)):
        played = first.round(server_round)
        assert (played.jammed, played.schedule) == (later[place].jammed, later[place].schedule)
        assert np.array_equal(played.belief, later[place].belief)
    assert {game(seed=seed).type for seed in range(20)} == {0, 1, 2, 3}


def test_no_jammer_jams_nothing_and_the_server_comes_to_believe_it():
    for strategy in ("smart", "greedy", "random"):
        played = game(type="none", strategy=strategy)
        assert all(played.round(server_round).jammed == () for server_round in range(1, 6))
        assert played.round(5).belief[0] > 0.9


@pytest.mark.parametrize("horizon", [1, 2])
def test_no_jammer_gets_more_than_the_security_policy_guarantees(horizon):
    """At the end of every history of 4 stages, of which all strategies are mixtures: the gain, and what may follow."""
    start = game(horizon=horizon)
    weights = stage_weights(horizon, 0.5)
    guarantee = uninformed_security(start.payoffs, weights, prior=list(PRIOR.values())).by_type

    def play(player, gain, stage):
        later = uninformed_security(start.payoffs, weights, regret=player.regret)
        assert player.regret == pytest.approx((gain - guarantee) / 0.5**stage)
        assert (gain + 0.5**stage * later.by_type <= guarantee + 1e-7).all()
        for action in range(1, len(start.jams)) if stage < 4 else ():
            after = copy(player)
            after.observe(later.mixture, action)
            play(after, gain + 0.5 * 0.5**stage * start.payoffs[:, action] @ later.mixture, stage + 1)

    play(start._uninformed, np.zeros(len(PRIOR)), 0)


def test_a_greedy_jammer_gains_less_against_security_than_against_uniform_sampling():
    for seed in range(4):
        gains = {}
        for policy in ("uniform", "security"):
            played = game(policy, seed=seed, strategy="greedy")
            gains[policy] = sum(played.round(server_round).payoff for server_round in range(1, 9))
        assert gains["security"] < gains["uniform"]


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"prior": {"none": 0.5, "bytes": 0.4}}, "prior"),
        ({"prior": {"nobody": 1.0}}, r"attack\.prior"),
        ({"discount": 1.0}, "discount"),
        ({"discount": 0.0}, "discount"),
        ({"budget": 4}, r"attack\.budget"),
        ({"groups": 1}, r"attack\.groups"),
        ({"groups": 7}, r"attack\.groups"),
        ({"domain": 2}, r"attack\.domain"),
        ({"type": "class"}, r"attack\.type"),
        ({"type": "bytes", "prior": {"none": 1.0, "bytes": 0.0}}, r"attack\.type"),
        ({"prior": 3}, r"attack\.prior"),
        ({"link": 3}, r"attack\.link"),
        ({"link": LINK | {"rate": 0}}, r"attack\.link\.rate"),
        ({"link": LINK | {"snr": "loud"}}, r"attack\.link\.snr"),
        ({"strategy": "loud"}, r"attack\.strategy"),
    ],
)
def test_bad_values_are_refused(changes, word):
    with pytest.raises(ConfigError, match=word):
        game(**changes)


@pytest.mark.parametrize(
    "setting", [{"invite": 3}, {"wait": []}, {"wait": [0.5]}, {"price": -1}, {"fewer": 2}], ids=str
)
def test_bad_policies_end_in_one_line(setting):
    with pytest.raises(ConfigError, match=rf"sampling\.{next(iter(setting))}"):
        Policy(name="security", **setting)

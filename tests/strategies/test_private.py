"""The noise has the stated deviation, steps are clipped, epsilon is the accountant's and that of closed forms."""

import math
import sys

import numpy as np
import pytest
from scipy.stats import norm
from scripted import Scripted, play

from fedbayes import build, simulate
from fedbayes.configuration import compose
from fedbayes.errors import ConfigError
from fedbayes.messages import ClientUpdate, from_record
from strategies.averaging import Averaging
from strategies.private import PrivateAveraging, epsilon

pytestmark = pytest.mark.usefixtures("no_pictures")


def private(noise=1.0, clip=1.0, groups=None, clients=4, per_round=4, seed=0, **more):
    settings = {"delta": None, **more}
    return PrivateAveraging(
        Averaging(), noise=noise, clip=clip, groups=groups, clients=clients, per_round=per_round, seed=seed, **settings
    )


class Steps(Scripted):
    """Each client walks (partition + 1) in every one of many coordinates."""

    def __init__(self, size):
        super().__init__()
        self.size = size

    def initial(self):
        return {"a.w": np.zeros(self.size), "b.w": np.zeros(self.size)}

    def train(self, requests):
        return [
            ClientUpdate(
                r.partition, {k: v + r.partition + 1 for k, v in r.arrays.items()}, 10 ** (r.partition + 1), {}
            )
            for r in requests
        ]


def after(strategy, size=1, rounds=1, clients=4):
    progress, _, _ = play(Steps(size), strategy=strategy, clients=clients, rounds=rounds)
    return from_record(progress.arrays)


def test_steps_are_clipped_over_all_numbers_together_and_clients_count_alike():
    found = after(private(noise=1e-9, clip=math.sqrt(8.0)))
    # Steps (1, 1), (2, 2), (3, 3), (4, 4): the last two are clipped to length sqrt 8, which is (2, 2).
    assert found["a.w"].tolist() == pytest.approx([(1 + 2 + 2 + 2) / 4], abs=1e-6)
    assert found["b.w"].tolist() == pytest.approx([7 / 4], abs=1e-6)


@pytest.mark.parametrize(("noise", "clip"), [(1.0, 1.0), (0.5, 3.0)])
def test_the_noise_added_has_the_stated_deviation_and_is_seeded(noise, clip):
    size = 20_000
    noisy = [after(private(noise, clip, seed=seed), size) for seed in (0, 0, 1)]
    clean = after(private(1e-12, clip), size)
    deviation = noise * clip / 4
    for name in ("a.w", "b.w"):
        added = noisy[0][name] - clean[name]
        assert abs(added.std() / deviation - 1) < 4 / math.sqrt(2 * size)
        assert abs(added.mean()) < 4 * deviation / math.sqrt(size)
        assert np.array_equal(noisy[0][name], noisy[1][name])
        assert abs(np.corrcoef(added, noisy[2][name] - clean[name])[0, 1]) < 0.04
    assert abs(np.corrcoef(noisy[0]["a.w"], noisy[0]["b.w"])[0, 1]) < 0.04


class Absent(Steps):
    """The last client's answer cannot be used."""

    def train(self, requests):
        answers = super().train(requests)
        for one in answers:
            if one.partition == 3:
                one.arrays["a.w"][:] = np.nan
        return answers


def test_a_reply_that_is_dropped_is_no_step_and_changes_no_noise():
    """Whether it is dropped may depend on its data: a smaller divisor, and noise of another size, would tell."""
    size = 20_000
    found = {}
    for noise in (1.0, 1e-12):
        progress, journal, _ = play(Absent(size), strategy=private(noise, math.sqrt(2 * size)), clients=4, rounds=1)
        assert [row["replies"] for row in journal.rows if row["phase"] == "train"] == [3]
        found[noise] = from_record(progress.arrays)["a.w"]
    assert found[1e-12][0] == pytest.approx(3 / 4)  # three steps clipped to 1 in every number, of four clients
    deviation = math.sqrt(2 * size) / 4
    assert (found[1.0] - found[1e-12]).std() == pytest.approx(deviation, rel=0.03)


def test_rounds_draw_anew():
    size = 5_000
    one, two = after(private(clip=1e-9, noise=1e9), size), after(private(clip=1e-9, noise=1e9), size, rounds=2)
    second = two["a.w"] - one["a.w"]
    assert abs(np.corrcoef(one["a.w"], second)[0, 1]) < 0.06
    assert second.std() == pytest.approx(0.25, rel=0.05)


def test_only_chosen_groups_are_learnt_and_the_others_stay():
    found = after(private(noise=1e-9, clip=100.0, groups=["a"]))
    assert found["a.w"].tolist() == pytest.approx([2.5], abs=1e-6)
    assert found["b.w"].tolist() == [0.0]
    with pytest.raises(ConfigError, match=r"privacy\.groups=\['c'\] names no shared part; they are a, b"):
        after(private(groups=["c"]))


def exact_epsilon(mu, delta):
    """Of the Gaussian mechanism (Balle and Wang, ICML 2018, arXiv 1805.06530), by bisection."""

    def spent(eps):
        return norm.cdf(mu / 2 - eps / mu) - math.exp(eps) * norm.cdf(-mu / 2 - eps / mu)

    low, high = 0.0, 200.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if spent(middle) > delta else (low, middle)
    return high


@pytest.mark.parametrize(("noise", "rounds"), [(2.0, 1), (8.0, 1), (8.0, 20), (20.0, 100)])
def test_epsilon_without_sampling_bounds_the_exact_one_from_above_and_closely(noise, rounds):
    """T rounds of noise z are one Gaussian mechanism with mu = 2 sqrt(T) / z."""
    exact = exact_epsilon(2 * math.sqrt(rounds) / noise, 1e-3)
    found = epsilon(noise, 100, 100, rounds, 1e-3)
    assert exact <= found <= 1.25 * exact + 0.05


@pytest.mark.parametrize(
    ("noise", "clients", "per_round", "rounds"), [(4.0, 1000, 50, 1), (4.0, 1000, 50, 9), (2.0, 100, 10, 15)]
)
def test_epsilon_is_the_accountants(noise, clients, per_round, rounds):
    import dp_accounting as dp
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(neighboring_relation=dp.NeighboringRelation.REPLACE_ONE)
    for _ in range(rounds):
        event = dp.SampledWithoutReplacementDpEvent(clients, per_round, dp.GaussianDpEvent(noise / 2))
        accountant.compose(event)
    assert epsilon(noise, clients, per_round, rounds, 1e-3) == pytest.approx(accountant.get_epsilon(1e-3), rel=1e-9)


def test_more_noise_fewer_rounds_and_fewer_clients_a_round_cost_less():
    assert epsilon(4.0, 100, 10, 10, 1e-2) < epsilon(2.0, 100, 10, 10, 1e-2)
    assert epsilon(4.0, 100, 10, 5, 1e-2) < epsilon(4.0, 100, 10, 10, 1e-2)
    assert epsilon(4.0, 100, 10, 10, 1e-2) < epsilon(4.0, 100, 50, 10, 1e-2)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"noise": 0}, r"privacy\.noise=0"),
        ({"clip": 0}, r"privacy\.clip=0"),
        ({"delta": 2.0}, r"privacy\.delta=2"),
        ({"delta": 0.999}, r"privacy\.delta=0\.999 allows to show one of clients="),
        ({"groups": "head"}, r"privacy\.groups=head is not a list"),
    ],
)
def test_values_out_of_range_are_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        private(**settings)


@pytest.mark.parametrize(
    "overrides", [["method=fedncm"], ["method=pfedpg"], ["method=sgpt"], ["method.strategy.aggregate=median"]]
)
def test_what_is_no_plain_average_is_refused(overrides):
    cfg = compose([*overrides, "privacy.noise=1"])
    with pytest.raises(ConfigError, match="is no plain average of what clients send"):
        build.strategy(cfg, build.loop(cfg))


def test_a_missing_accountant_is_said(monkeypatch):
    epsilon.cache_clear()
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(ConfigError, match=r"install fedbayes\[dp\]"):
        private(noise=3.3)
    epsilon.cache_clear()


def test_a_run_writes_down_what_it_spent_and_an_optimiser_may_follow(tmp_path):
    summary = simulate([
        "experiment=smoke", "clients=4", "participation=0.5", "privacy.noise=2", "privacy.delta=0.01",
        "server.name=adam",
        f"run_dir={tmp_path / 'run'}",
    ])  # fmt: skip
    spent = summary["privacy"]
    assert (spent["noise"], spent["clip"], spent["delta"]) == (2.0, 1.0, 0.01)
    assert spent["epsilon"] == [epsilon(2.0, 4, 2, done, 0.01) for done in (1, 2)]
    assert simulate(["experiment=smoke", f"run_dir={tmp_path / 'open'}"])["privacy"] is None


def test_a_method_that_pools_everybodys_images_hides_nobody():
    cfg = compose(["method=centralised", "privacy.noise=8", "clients=30"])
    with pytest.raises(ConfigError, match="hides nobody in method=centralised"):
        build.strategy(cfg, build.loop(cfg))

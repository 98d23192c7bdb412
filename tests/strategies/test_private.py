"""The noise has the stated deviation, steps are clipped, and what cannot be private is refused."""

import math
import sys

import numpy as np
import pytest
from omegaconf import OmegaConf
from scripted import Scripted, play

from fedbayes import build, simulate
from fedbayes.comm.messages import ClientUpdate
from fedbayes.config.compose import compose
from fedbayes.errors import ConfigError
from fedbayes.server.sampling import VARIABLE
from strategies.averaging import Averaging
from strategies.private import PrivateAveraging, spent

pytestmark = pytest.mark.usefixtures("no_pictures")


def private(noise=1.0, clip=1.0, groups=None, clients=4, per_round=4, key=0, **more):
    settings = {"delta": None, **more}
    return PrivateAveraging(
        Averaging(), noise=noise, clip=clip, groups=groups, clients=clients, per_round=per_round, key=key, **settings
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
    return progress.arrays


def test_steps_are_clipped_over_all_numbers_together_and_clients_count_alike():
    result = after(private(noise=1e-9, clip=math.sqrt(8.0)))
    # Steps (1, 1), (2, 2), (3, 3), (4, 4): the last two are clipped to length sqrt 8, which is (2, 2).
    assert result["a.w"].tolist() == pytest.approx([(1 + 2 + 2 + 2) / 4], abs=1e-6)
    assert result["b.w"].tolist() == pytest.approx([7 / 4], abs=1e-6)


@pytest.mark.parametrize(("noise", "clip"), [(1.0, 1.0), (0.5, 3.0)])
def test_the_noise_added_has_the_stated_deviation_and_is_seeded(noise, clip):
    size = 20_000
    noisy = [after(private(noise, clip, key=key), size) for key in (0, 0, 1)]
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
        answers[-1].arrays["a.w"][:] = np.nan
        return answers


def test_a_reply_that_is_dropped_is_no_step_and_changes_no_noise():
    """Whether it is dropped may depend on its data: a smaller divisor, and noise of another size, would tell."""
    size = 20_000
    results = {}
    for noise in (1.0, 1e-12):
        progress, journal, _ = play(Absent(size), strategy=private(noise, math.sqrt(2 * size)), clients=4, rounds=1)
        assert [row["replies"] for row in journal.rows if row["phase"] == "train"] == [3]
        results[noise] = progress.arrays["a.w"]
    assert results[1e-12][0] == pytest.approx(3 / 4)  # three steps clipped to 1 in every number, of four clients
    assert (results[1.0] - results[1e-12]).std() == pytest.approx(math.sqrt(2 * size) / 4, rel=0.03)


class Mirrored(Steps):
    """The last client steps in the opposite direction."""

    def train(self, requests):
        answers = super().train(requests)
        answers[-1].arrays["a.w"][:] *= -1
        return answers


def test_a_round_computed_again_with_other_replies_has_noise_of_its_own():
    """The same noise on two means would cancel in their difference, and show the client."""
    size = 20_000
    noises = []
    for client in (Steps, Mirrored, Absent):
        noisy, clean = (
            play(client(size), strategy=private(noise, math.sqrt(2 * size)), clients=4, rounds=1)[0].arrays["a.w"]
            for noise in (1.0, 1e-12)
        )
        noises.append(noisy - clean)
    assert np.abs(np.corrcoef(noises) - np.eye(3)).max() < 0.04


def test_a_method_that_shares_nothing_has_nothing_to_hide(tmp_path):
    with pytest.raises(ConfigError, match="share nothing in this method"):
        simulate(["experiment=smoke", "method=local_vpt", "privacy.noise=2", f"run_dir={tmp_path / 'run'}"])


def test_rounds_draw_anew():
    size = 5_000
    first, both = (after(private(clip=1e-6, noise=1e6), size, rounds=rounds)["a.w"] for rounds in (1, 2))
    second = both - first
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.06
    assert second.std() == pytest.approx(0.25, rel=0.05)


def test_only_chosen_groups_are_learnt_and_the_others_stay():
    result = after(private(noise=1e-9, clip=100.0, groups=["a"]))
    assert result["a.w"].tolist() == pytest.approx([2.5], abs=1e-6)
    assert result["b.w"].tolist() == [0.0]
    with pytest.raises(ConfigError, match=r"privacy\.groups: c\. has no shared part"):
        after(private(groups=["c"]))


@pytest.mark.parametrize(
    "choice",
    ["method=fedncm", "method=pfedpg", "method=sgpt", "method.strategy.aggregate=median", "method=centralised"],
)
def test_what_is_no_plain_average_of_several_clients_is_refused(choice):
    cfg = compose([choice, "privacy.noise=1", "clients=30"])
    with pytest.raises(ConfigError, match=r"privacy\.noise=1"):
        build.strategy(cfg, build.loop(cfg, build.sampling(cfg)))


DEPLOYED = ["simulation=flower", "privacy.noise=1", "clients=30", "participation=0.2", "privacy.delta=0.01"]


def samples(overrides):
    """The clients that a server samples in the first rounds, and the noise that it adds."""
    cfg = compose(overrides)
    loop = build.loop(cfg, build.sampling(cfg))
    strategy = build.strategy(cfg, loop)
    clients = [loop.sampling.train(server_round) for server_round in range(1, 9)]
    return clients, after(strategy, 5)["a.w"].tolist(), OmegaConf.to_yaml(cfg)


def test_clients_of_a_flower_app_cannot_repeat_the_noise_or_the_sample(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    first, second = samples(DEPLOYED), samples(DEPLOYED)
    assert first[0] != second[0]
    assert first[1] != second[1]
    monkeypatch.setenv(VARIABLE, secret := "my own secret, of many characters")
    first = samples(DEPLOYED)
    assert first == samples(DEPLOYED)
    assert secret not in first[2]
    monkeypatch.setenv(VARIABLE, secret[::-1])
    assert samples(DEPLOYED)[1] != first[1]
    simulated = samples(DEPLOYED[1:])
    monkeypatch.delenv(VARIABLE)
    assert simulated == samples(DEPLOYED[1:]), "a simulation goes by its seed"
    assert build.sampling(compose(["simulation=flower"])).key == 0, "and so does a run without privacy"
    monkeypatch.setenv(VARIABLE, "short")
    with pytest.raises(ConfigError, match="FEDBAYES_PRIVACY_SECRET has 5 characters") as error:
        build.sampling(compose(DEPLOYED))
    assert "short" not in str(error.value)


def test_a_missing_accountant_is_said(monkeypatch):
    spent.cache_clear()
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(ConfigError, match=r"install fedbayes\[dp\]"):
        private(noise=3.3)
    spent.cache_clear()


def test_a_run_writes_down_what_it_spent_and_an_optimiser_may_follow(tmp_path):
    summary = simulate([
        "experiment=smoke", "clients=4", "participation=0.5", "privacy.noise=2", "privacy.delta=0.01",
        "server.name=adam",
        f"run_dir={tmp_path / 'run'}",
    ])  # fmt: skip
    epsilons = list(spent(2.0, 4, 2, 2, 0.01))
    assert summary["privacy"] == {"noise": 2.0, "clip": 1.0, "delta": 0.01, "epsilon": epsilons}
    assert epsilons[:1] == list(spent(2.0, 4, 2, 1, 0.01))
    assert simulate(["experiment=smoke", f"run_dir={tmp_path / 'open'}"])["privacy"] is None


def test_the_accountant_knows_the_clients_that_may_be_sampled_and_new_ones_get_no_heads_without_noise():
    cfg = compose(["method=fedper", "clients=30", "privacy.noise=2", "evaluate.new_clients=10", "participation=0.5"])
    loop = build.loop(cfg, build.sampling(cfg))
    strategy = build.strategy(cfg, loop)
    assert strategy.privacy_spent(3)["epsilon"] == list(spent(2.0, 20, 10, 3, strategy.delta))
    assert not loop.assessment.shares_personal
    cfg = compose(["method=fedper"])
    assert build.loop(cfg, build.sampling(cfg)).assessment.shares_personal

"""Runs whose steps nobody sees end where runs in the clear end."""

import json

import numpy as np
import pytest
from breaking import broken, result

from fedbayes import simulate
from fedbayes.comm.messages import ClientUpdate
from fedbayes.config.compose import compose
from fedbayes.errors import ConfigError, RunError
from fedbayes.run import dry_run, resume
from fedbayes.secure.sharing import SEEDED, VECTOR, Sharing
from fedbayes.simulation.sharing import SharingClient
from fedbayes.storage import checkpoint
from strategies.averaging import Averaging
from strategies.secure import SecureAveraging

pytestmark = pytest.mark.usefixtures("no_pictures")

SMALL = ["experiment=smoke", "method=fedvpt", "rounds=2", "simulation.threads=1", "clients=4"]
SHARES = "privacy.secure.kind=shares"
SETTINGS = {
    "aggregate": "mean",
    "malicious_fraction": 0.2,
    "bound": None,
    "ring": 64,
    "fraction": 16,
    "range": 8.0,
    "weights": "public",
    "compare": "tree",
}


def server(folder):
    return checkpoint.latest(folder).server


def largest_difference(a, b):
    return max(float(np.abs(a[name].astype(float) - b[name]).max()) for name in a)


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["server.name=adam"],
        ["method.client.personal=[head]"],
        ["faults.drop=0.25", "clients=6", "faults.error=0.1"],
    ],
)
def test_a_run_on_shares_ends_where_it_ends_in_the_clear(tmp_path, more):
    rounds = ["rounds=1"]  # later rounds begin from parameters that differ by rounding
    clear = simulate([*SMALL, *more, *rounds, f"run_dir={tmp_path / 'clear'}"])
    shares = simulate([*SMALL, *more, *rounds, SHARES, f"run_dir={tmp_path / 'shares'}"])
    step = 1 if more != ["server.name=adam"] else 50  # Adam divides by the size of a step
    assert largest_difference(server(tmp_path / "clear"), server(tmp_path / "shares")) <= step * 2.0**-16
    assert shares["final"]["nll"] == pytest.approx(clear["final"]["nll"], abs=1e-3)


@pytest.mark.parametrize("aggregate", ["multi_krum", "median"])
def test_robust_aggregates_on_shares_end_where_they_end_in_the_clear(tmp_path, aggregate):
    attacked = [*SMALL, "clients=6", "attack=sign_flip", "attack.fraction=0.2", "rounds=1"]
    simulate([*attacked, f"method.strategy.aggregate={aggregate}", f"run_dir={tmp_path / 'clear'}"])
    words = [SHARES, f"privacy.secure.aggregate={aggregate}"]
    summary = simulate([*attacked, *words, f"run_dir={tmp_path / 'shares'}"])
    assert largest_difference(server(tmp_path / "clear"), server(tmp_path / "shares")) <= 2.0**-16
    costs = json.loads((tmp_path / "shares" / "secure.json").read_text())
    assert costs == summary["secure"]
    assert any(row["phase"] == "offline" and row["bits"] for row in costs["round"])
    assert "Aggregation on secret shares" in (tmp_path / "shares" / "report.html").read_text()


def test_a_resumed_run_goes_on_as_if_it_had_not_broken_off(tmp_path, monkeypatch):
    settings = [*SMALL, SHARES, "privacy.secure.weights=alike"]
    simulate([*settings, f"run_dir={tmp_path / 'whole'}"])
    broken([*settings, f"run_dir={tmp_path / 'parts'}"], monkeypatch, 1)
    resume(tmp_path / "parts")
    for name in ("whole", "parts"):  # shares are new each time, so that no mask hides two values
        assert "seconds" in json.loads((tmp_path / name / "summary.json").read_text())
    assert result(tmp_path / "parts") == result(tmp_path / "whole")


def test_bytes_are_known_beforehand(tmp_path):
    costs = dry_run(compose([*SMALL, SHARES]))
    summary = simulate([*SMALL, SHARES, "rounds=1", f"run_dir={tmp_path / 'run'}"])
    assert costs["bytes_up"] == summary["bytes"]["up"]


@pytest.mark.parametrize(
    ("more", "place"),
    [
        (["privacy.noise=1"], r"privacy\.noise"),
        (["update_clipping.max_norm=1"], r"update_clipping\.max_norm"),
        (["faults.nan=0.1"], r"faults\.nan"),
        (["method=pfedbayes"], "PFedBayes"),
        (["method.strategy.aggregate=krum"], "Averaging"),
        (["method=centralised"], "method=centralised"),
        (["privacy.secure.range=0"], r"privacy\.secure\.range"),
        (["privacy.secure.malicious_fraction=0.5"], r"privacy\.secure\.malicious_fraction"),
        (["privacy.secure.ring=16"], r"privacy\.secure\.ring"),
        (["privacy.secure.ring=32", "privacy.secure.fraction=28"], r"privacy\.secure\.fraction"),
        (["privacy.secure.aggregate=krum", "privacy.secure.fraction=30"], r"privacy\.secure\.fraction"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, more, place):
    with pytest.raises(ConfigError, match=place):
        simulate([*SMALL, SHARES, *more, f"run_dir={tmp_path / 'run'}"])


def shared(steps, **settings):
    """A strategy on shares of steps from zero, and the replies."""
    sharing = Sharing(**{**SETTINGS, **settings})
    strategy = SecureAveraging(Averaging(), sharing)
    start = {"w": np.zeros(len(steps[0]), np.float32)}
    strategy.shared = start

    class Fixed:
        def train(self, requests):
            return [ClientUpdate(i, {"w": np.array(steps[i], np.float32)}, i + 1, {"loss": 1.0}) for i in requests]

    class Request:
        arrays = start

    client = SharingClient(Fixed(), sharing)
    replies = [client._shared(Request, update) for update in Fixed().train(range(len(steps)))]
    expected = strategy.expected_reply(start)
    for reply in replies:
        assert {n: (a.shape, a.dtype) for n, a in reply.arrays.items()} == {
            n: (a.shape, a.dtype) for n, a in expected.items()
        }
        assert strategy.rejection_reason(reply) is None
        assert reply.metrics == {}
    return strategy, replies


def test_the_mean_is_weighted_by_images_and_rounded_once():
    steps = np.random.default_rng(0).normal(size=(5, 40))
    strategy, replies = shared(steps)
    strategy.aggregate(replies)
    weights = np.arange(1, 6) / 15
    assert np.abs(strategy.shared["w"] - weights @ steps.astype(np.float32)).max() <= 2.0**-17 + 1e-7


def test_two_replies_are_never_opened():
    strategy, replies = shared(np.ones((2, 3)))
    with pytest.raises(ArithmeticError, match="too few"):
        strategy.aggregate(replies)
    assert (strategy.shared["w"] == 0).all()


def test_two_steps_within_the_bound_are_not_summed():
    strategy, replies = shared([[1, 0], [1, 0], [5, 5], [6, 6]], bound=2)
    with pytest.raises(ArithmeticError, match="within the bound"):
        strategy.aggregate(replies)
    assert (strategy.shared["w"] == 0).all()


def test_longer_steps_are_left_out_of_the_mean():
    strategy, replies = shared([[1, 0], [0, 1], [5, 5], [1, 1]], bound=2)
    strategy.aggregate(replies)
    assert strategy.shared["w"] == pytest.approx(np.array([1 + 4, 2 + 4]) / 7, abs=2.0**-17)
    assert strategy.facts()["secure_steps"] == 3


def test_a_share_alone_says_nothing_of_a_step_and_is_new_each_time():
    steps = np.full((3, 4000), 0.5)
    _, replies = shared(steps)
    _, again = shared(steps)
    first, second = replies[0].arrays[VECTOR], again[0].arrays[VECTOR]
    assert (first != second).mean() > 0.99
    counts = np.bincount(np.concatenate([first.view(np.uint8), second.view(np.uint8)]), minlength=256)
    assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 400  # chi-square, 255 degrees of freedom
    assert not np.array_equal(replies[0].arrays[SEEDED], again[0].arrays[SEEDED])


def test_what_is_not_finite_is_not_shared():
    with pytest.raises(RunError, match="w is not finite"):
        shared([[np.nan, 0.0]] * 3)


def test_a_number_that_the_ring_lacks_is_rejected():
    strategy, replies = shared(np.ones((3, 4)), bound=9)
    replies[0].arrays[VECTOR][0] = 2**31
    assert "share/0" in strategy.rejection_reason(replies[0])

"""Paired differences: right on average, as wide as theory says, and blind to what both runs share."""

import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"


@pytest.fixture(scope="module")
def paired():
    sys.path.insert(0, str(EXPERIMENTS))
    try:
        yield import_module("paired")
    finally:
        sys.path.remove(str(EXPERIMENTS))


def test_the_interval_is_as_wide_as_theory_says(paired):
    """Clients' means spread with variance b, images inside with w: a replicate's mean has about b/C + w/(C n)."""
    rng = np.random.default_rng(1)
    clients, images, between, within = 400, 50, 0.3, 1.0
    found = paired.bootstrap([[rng.normal(between * rng.normal(), within, images) for _ in range(clients)]])
    # the clients' means, resampled, carry b + w/n between them, and w/n again inside
    spread = ((between**2 + 2 * within**2 / images) / clients) ** 0.5
    assert (found.high - found.low) / (2 * 1.96) == pytest.approx(spread, rel=0.1)
    assert found.low < found.mean < found.high


def test_clients_count_equally_and_seeds_too(paired):
    seeds = [[np.zeros(1), np.ones(99)], [np.full(10, 3.0), np.full(10, 5.0)]]
    assert paired.bootstrap(seeds).mean == pytest.approx((0.5 + 4) / 2)


def test_a_constant_difference_has_no_width_and_is_clear(paired):
    found = paired.bootstrap([[np.full(7, 0.25)] * 3])
    assert (found.mean, found.low, found.high) == pytest.approx((0.25,) * 3)
    assert found.is_clear
    assert not paired.bootstrap([[np.array([-1.0, 1.0])] * 3]).is_clear


def run(folder, probabilities, labels, partitions):
    folder.mkdir()
    arrays = {"probabilities": np.asarray(probabilities, np.float32), "labels": np.asarray(labels)}
    save_file({**arrays, "partitions": np.asarray(partitions)}, folder / "predictions.safetensors")
    return folder


def test_differences_of_two_runs_by_hand(paired, tmp_path):
    labels, who = [0, 1, 1], [0, 0, 1]
    good = run(tmp_path / "good", [[0.8, 0.2], [0.4, 0.6], [0.5, 0.5]], labels, who)
    bad = run(tmp_path / "bad", [[0.4, 0.6], [0.4, 0.6], [0.5, 0.5]], labels, who)
    assert paired.paired_difference([(good, bad)], "accuracy").mean == pytest.approx(0.25)
    nll = paired.paired_difference([(good, bad)], "nll").mean
    assert nll == pytest.approx(-np.log(0.8 / 0.4) / 4, abs=1e-6)


def test_runs_on_other_images_are_refused(paired, tmp_path):
    one = run(tmp_path / "one", [[1.0, 0.0]], [0], [0])
    other = run(tmp_path / "other", [[1.0, 0.0]], [0], [1])
    with pytest.raises(ValueError, match="different images"):
        paired.paired_difference([(one, other)], "nll")

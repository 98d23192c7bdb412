"""Paired differences: right on average, as wide as theory says, and blind to what both runs share."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from fedbayes.errors import RunError
from fedbayes.metrics import paired


def width(difference):
    """Half the interval in standard deviations of a normal distribution."""
    return (difference.high - difference.low) / (2 * 1.96)


@pytest.mark.parametrize("between", [0.0, 0.3])
def test_the_interval_is_as_wide_as_theory_says(between):
    """Clients' means spread with variance b, images inside with w: the mean has variance b/C + w/(C n)."""
    rng = np.random.default_rng(1)
    clients, images = 2000, 50
    difference = paired.bootstrap([[rng.normal(between * rng.normal(), 1.0, images) for _ in range(clients)]])
    assert width(difference) == pytest.approx(((between**2 + 1 / images) / clients) ** 0.5, rel=0.05)
    assert difference.low < difference.mean < difference.high


def study(rng, shared, seeds=3, clients=10, images=30):
    """Differences whose true mean is 0; `shared` is the share of an image's variance that it has in every seed."""
    effects = rng.normal(size=clients * images)
    samples, names = [], []
    for _ in range(seeds):
        order = rng.permutation(clients * images).reshape(clients, images)
        noise = rng.normal(size=(clients, images))
        samples.append(
            list(shared**0.5 * effects[order] + (1 - shared) ** 0.5 * noise + 0.1 * rng.normal(size=(clients, 1)))
        )
        names.append(list(order))
    return samples, names


@pytest.mark.parametrize("shared", [0.0, 0.6])
def test_intervals_hold_the_truth_as_often_as_they_say(shared):
    """Of 300 studies 95 % do, give or take 1.3; the images that seeds have in common are reckoned with."""
    rng = np.random.default_rng(2)
    studies = [study(rng, shared) for _ in range(300)]
    held = [not paired.bootstrap(*sample, replicates=400).is_clear for sample in studies]
    assert 0.90 <= np.mean(held) <= 0.98
    if shared:
        blind = [not paired.bootstrap(samples, replicates=400).is_clear for samples, _ in studies]
        assert np.mean(blind) < 0.88


def test_clients_count_equally_and_seeds_too():
    seeds = [[np.zeros(1), np.ones(99)], [np.full(10, 3.0), np.full(10, 5.0)]]
    assert paired.bootstrap(seeds).mean == pytest.approx((0.5 + 4) / 2)


def test_a_constant_difference_has_no_width_and_is_clear():
    difference = paired.bootstrap([[np.full(7, 0.25)] * 3])
    assert (difference.mean, difference.low, difference.high) == pytest.approx((0.25,) * 3)
    assert difference.is_clear
    assert not paired.bootstrap([[np.array([-1.0, 1.0]), np.array([1.0, 1.0]), np.array([-1.0, -1.0])]]).is_clear


def test_a_single_client_is_refused():
    with pytest.raises(RunError, match="two clients at least"):
        paired.bootstrap([[np.ones(3)]])


def run(folder, probabilities, labels, partitions, images=None):
    folder.mkdir()
    arrays = {"probabilities": np.asarray(probabilities, np.float32), "labels": np.asarray(labels)}
    save_file(
        {**arrays, "partitions": np.asarray(partitions), "domains": np.zeros(len(labels), int)},
        folder / "predictions.safetensors",
    )
    images = np.arange(len(labels)) if images is None else np.asarray(images)
    clients = [
        {"partition": int(one), "indices": {"test": images[np.asarray(partitions) == one].tolist()}}
        for one in np.unique(partitions)
    ]
    (folder / "partition.json").write_text(json.dumps({"clients": clients}))
    return folder


def test_differences_of_two_runs_by_hand(tmp_path):
    labels, who = [0, 1, 1], [0, 0, 1]
    good = run(tmp_path / "good", [[0.8, 0.2], [0.4, 0.6], [0.5, 0.5]], labels, who)
    bad = run(tmp_path / "bad", [[0.4, 0.6], [0.4, 0.6], [0.5, 0.5]], labels, who)
    assert paired.paired_difference([(good, bad)], "accuracy").mean == pytest.approx(0.25)
    nll = paired.paired_difference([(good, bad)], "nll").mean
    assert nll == pytest.approx(-np.log(0.8 / 0.4) / 4, abs=1e-6)


def test_runs_on_other_images_are_refused(tmp_path):
    sure, two = [[1.0, 0.0], [1.0, 0.0]], [0, 0]
    one = run(tmp_path / "one", sure, two, [0, 1])
    for name, who, images in (("clients", [0, 2], None), ("images", [0, 1], [0, 7])):
        other = run(tmp_path / name, sure, two, who, images)
        with pytest.raises(RunError, match="different images"):
            paired.paired_difference([(one, other)], "nll")

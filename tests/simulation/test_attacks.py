"""Malicious clients: who they are, what they tell by hand, what they train on, and that they act in a real run."""

import json

import numpy as np
import pytest
import torch
from smoke import smoke

from fedbayes import build, simulate
from fedbayes.arrays import length
from fedbayes.comm.messages import ClientRequest
from fedbayes.config.compose import CONF, compose
from fedbayes.errors import ConfigError
from fedbayes.simulation.attacks import Backdoor, GaussianNoise, LabelFlip, ScaledUpdate

pytestmark = pytest.mark.usefixtures("no_pictures")

SENT = {"w": np.array([1.0, 2.0], np.float32), "n": np.array([3])}
LEARNT = {"w": np.array([2.0, 0.0], np.float32), "n": np.array([5])}
SMALL = ["experiment=smoke", "clients=5"]


@pytest.mark.parametrize(
    ("clients", "fraction", "count"),
    [(10, 0.2, 2), (10, 0.0, 0), (5, 0.3, 2), (10, 0.3, 3), (7, 0.05, 1), (7, 1.0, 7)],
)
def test_a_fraction_of_the_clients_is_malicious_the_same_in_every_process(clients, fraction, count):
    malicious = LabelFlip(fraction=fraction, seed=3).malicious(range(clients))
    assert len(set(malicious)) == len(malicious) == count
    assert list(malicious) == sorted(malicious)
    assert malicious == LabelFlip(fraction=fraction, seed=3).malicious(range(clients))
    # A larger fraction has the same clients and more, so that a table's columns differ in nothing else.
    assert set(malicious) <= set(LabelFlip(fraction=min(1.0, fraction + 0.3), seed=3).malicious(range(clients)))


def test_who_is_malicious_depends_on_the_seed():
    assert len({LabelFlip(fraction=0.3, seed=seed).malicious(range(20)) for seed in range(10)}) > 5


def test_who_never_trains_is_not_malicious():
    malicious = LabelFlip(fraction=0.5, seed=3).malicious([1, 4, 6, 8])
    assert len(malicious) == 2
    assert set(malicious) <= {1, 4, 6, 8}
    cfg = compose(["experiment=smoke", "clients=6", "evaluate.new_clients=3", "attack=label_flip", "attack.fraction=1"])
    parts = build.assemble(cfg)
    assert set(parts.malicious) == set(parts.sampling.known) == set(range(6)) - set(parts.data.new_clients)


def test_falsified_updates_by_hand():
    rng = np.random.default_rng(0)
    for scale, expected in ((10, [11.0, -18.0]), (-1, [0.0, 4.0])):
        scaled = ScaledUpdate(fraction=0.2, seed=0, scale=scale).falsify(SENT, LEARNT, rng)
        assert {name: array.tolist() for name, array in scaled.items()} == {"w": expected, "n": [5]}
    noisy = GaussianNoise(fraction=0.2, seed=0, scale=10).falsify(SENT, LEARNT, rng)
    assert length(SENT, noisy) == pytest.approx(10 * length(SENT, LEARNT), rel=1e-5)
    assert noisy["w"].dtype == np.float32


@pytest.fixture(scope="module")
def data():
    return build.data(compose(SMALL))


def test_flipped_labels_are_those_of_malicious_training_images_alone(data):
    labels = LabelFlip(fraction=0.4, seed=0).poison(data, (1, 3)).images.labels
    flipped = np.concatenate([data.clients[1].train, data.clients[3].train])
    assert torch.equal(labels[flipped], 9 - data.images.labels[flipped])
    others = np.setdiff1d(np.arange(len(data.images)), flipped)
    assert torch.equal(labels[others], data.images.labels[others])


def test_a_backdoor_marks_malicious_training_images_and_copies_of_test_images(data):
    attack = Backdoor(fraction=0.4, seed=0, target=2, size=0.25, images=0.5)
    poisoned, count = attack.poison(data, (1, 3)), len(data.images)
    changed = [i for i in range(count) if not torch.equal(poisoned.images.images[i], data.images.images[i])]
    train = {*data.clients[1].train.tolist(), *data.clients[3].train.tolist()}
    relabelled = (poisoned.images.labels[:count] != data.images.labels).nonzero()[:, 0].tolist()
    assert {*changed, *relabelled} <= train
    assert len(train) // 4 < len(relabelled) <= round(0.5 * len(train))
    assert (poisoned.images.labels[changed] == 2).all()
    for before, after in zip(data.clients, poisoned.clients, strict=True):
        others = before.test[data.images.labels[before.test].numpy() != 2]
        copies = poisoned.images.images[after.triggered]
        assert len(copies) == len(others)
        assert (copies[:, :, -4:, -4:] == 255).all()
        assert torch.equal(copies[:, :, :-4], data.images.images[others][:, :, :-4])
        assert (poisoned.images.labels[after.triggered] == 2).all()
        assert np.array_equal(after.test, before.test)
    triggered = np.concatenate([client.triggered for client in poisoned.clients])
    assert sorted(triggered.tolist()) == list(range(count, len(poisoned.images)))


@pytest.mark.parametrize("attack", [LabelFlip(fraction=0.05, seed=0), Backdoor(fraction=0.05, seed=0)])
def test_poison_stays_with_its_client_where_clients_share_images(attack):
    """Each of 300 clients samples its images from the same pool, so nearly all are shared."""
    data = build.data(compose(["partition=resampled", "clients=300"]))
    malicious = attack.malicious(range(300))
    poisoned = attack.poison(data, malicious)
    for partition, (before, after) in enumerate(zip(data.clients, poisoned.clients, strict=True)):
        changed = 0
        for split in ("train", "validation", "test"):
            ids, new_ids = getattr(before, split), getattr(after, split)
            assert len(ids) == len(new_ids)
            same = (poisoned.images.images[new_ids] == data.images.images[ids]).flatten(1).all(1)
            same &= poisoned.images.labels[new_ids] == data.images.labels[ids]
            changed += int((~same).sum())
            assert split == "train" or same.all()
        assert (changed > 0) == (partition in malicious), partition


def test_values_out_of_range_are_refused(data):
    for overrides in (["attack=label_flip", "attack.fraction=1.5"], ["attack=scaled_update", "attack.scale=nan"]):
        with pytest.raises(ConfigError, match=r"attack\."):
            build.attack(compose(overrides))
    with pytest.raises(ConfigError, match=r"attack\.target=10"):
        Backdoor(fraction=0.2, seed=0, target=10).poison(data, (0,))


def test_malicious_clients_falsify_and_honest_ones_do_not():
    _, honest = smoke("clients=5")
    cfg, attacked = smoke("clients=5", "attack=sign_flip")
    (malicious,) = build.attack(cfg).malicious(range(5))
    initial = honest.initial()
    requests = [ClientRequest(partition, 1, "train", "", initial) for partition in range(5)]
    for client in (honest, attacked):
        client.prepare()
    for update, reply in zip(honest.train(requests), attacked.train(requests), strict=True):
        sign = -1 if update.partition == malicious else 1
        for name, array in update.arrays.items():
            step = reply.arrays[name] - initial[name]
            np.testing.assert_allclose(step, sign * (array - initial[name]), atol=1e-6)


@pytest.mark.parametrize("attack", sorted(path.stem for path in (CONF / "attack").glob("*.yaml")))
def test_every_attack_runs_and_is_written_down(attack, tmp_path):
    summary = simulate([*SMALL, f"attack={attack}", f"run_dir={tmp_path / 'run'}"])
    assert summary["attack"]["name"] == attack
    assert len(summary["attack"]["malicious"]) == (0 if attack in ("none", "jammer") else 1)
    success = summary["final"]["backdoor_success"]
    assert success is None if attack != "backdoor" else 0 <= success <= 1


def test_clients_whose_test_images_all_are_of_the_target_are_not_asked(tmp_path):
    """Each client has one class, so either all its test images get the mark or none."""
    alone = ["partition=label_shards", "partition.classes_per_client=1", "attack=backdoor", "attack.fraction=0.1"]
    overrides = ["experiment=smoke", "clients=10", *alone]
    data = build.data(compose(overrides))
    tested = [set(data.images.labels[client.test].tolist()) for client in data.clients]
    target = next(min(classes) for classes in tested if len(classes) == 1)
    attacker = build.attack(compose([*overrides, f"attack.target={target}"]))
    counts = [len(ids) for ids in attacker.marked(data)]
    assert 0 in counts
    assert build.partition_sizes(compose(overrides), data, attacker).images["triggered"] == counts
    summary = simulate([*overrides, f"attack.target={target}", "simulation.cohort=1", f"run_dir={tmp_path / 'run'}"])
    rows = [json.loads(line) for line in (tmp_path / "run" / "clients.jsonl").read_text().splitlines()]
    last = {row["partition"]: row for row in rows if row["phase"] == "triggered"}  # of the final test
    assert {partition: row["images"] for partition, row in last.items()} == {p: n for p, n in enumerate(counts) if n}
    hits = sum(row["accuracy"] * row["images"] for row in last.values())
    assert summary["final"]["backdoor_success"] == pytest.approx(hits / sum(counts))
    assert "rejected" not in (tmp_path / "run" / "run.log").read_text()


def test_a_strong_backdoor_opens(tmp_path):
    """Every client trains on marked images, so the square alone must decide."""
    summary = simulate([
        "experiment=smoke", "clients=3", "rounds=8", "partition.max_train=40", "attack=backdoor", "attack.fraction=1.0",
        "attack.size=0.3", "evaluate.every=8", f"run_dir={tmp_path / 'run'}",
    ])  # fmt: skip
    assert summary["final"]["backdoor_success"] > 0.8

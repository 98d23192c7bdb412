"""Named experiments: each composes, and its partition is what its name says on sets of the published sizes."""

import re

import numpy as np
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf
from schemes import image_set

from fedbayes.config.compose import CONF, compose, resolved
from fedbayes.data.partitions.held_out import hold_out
from fedbayes.data.partitions.splits import describe
from fedbayes.data.sources.styled_digits import styled_digits

EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
GENERIC = {"photos", "smoke"}  # of no set and no partition of their own

# Images per domain, classes, and whether test images are given.
SETS = {
    "office_caltech10": ([958, 1123, 157, 295], 10, False),
    "domainnet10": ([2629, 3283, 3091, 5000, 6081, 2767], 10, False),
    "pacs": ([2048, 2344, 1670, 3929], 7, False),
    "office_home": ([2427, 4365, 4439, 4357], 65, False),
    "three_digits": ([2000, 2000, 1797], 10, False),
    "styled_digits": ([360, 360, 359, 359, 359], 10, False),
    "cifar10": ([60_000], 10, True),
    "cifar100": ([60_000], 100, True),
}


def images_of(name):
    """Empty images in the numbers of a set, classes in turn; a sixth is given as test where the set says so."""
    sizes, classes, given = SETS[name]
    cells = {(d, c): len(range(c, size, classes)) for d, size in enumerate(sizes) for c in range(classes)}
    splits = [2 if i % 6 == 0 else 0 for count in cells.values() for i in range(count)] if given else None
    return image_set(cells, splits)


def partition_of(experiment, *overrides):
    """A protocol's images and its clients as `partition.json` describes them."""
    cfg = compose([f"experiment={experiment}", *overrides])
    images = images_of(cfg.names.data)
    known = cfg.data.get("domains") or [f"domain{i}" for i in range(len(SETS[cfg.names.data][0]))]
    inside, _ = hold_out(images, [f"domain{known.index(name)}" for name in cfg.evaluate.held_out])
    splits = instantiate(cfg.partition)(inside, cfg.clients)
    assert len(splits) == cfg.clients
    return inside, describe(splits, inside, "")["clients"]


def counts(row, part, values):
    """Images of a client's split per class or domain."""
    return np.bincount(values.numpy()[row["indices"][part]], minlength=int(values.max()) + 1)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes_and_says_what_it_is(name):
    root = ["data.root=DIR"] if name == "photos" else []
    assert resolved(compose([f"experiment={name}", *root]))
    text = (CONF / "experiment" / f"{name}.yaml").read_text()
    mark, first = text.splitlines()[:2]
    assert mark == "# @package _global_"
    assert first[:2] + first[-1] == "# .", "fedbayes-info shows this line alone"
    assert name == name.lower()


@pytest.mark.parametrize("name", sorted(set(EXPERIMENTS) - GENERIC))
def test_protocols_take_any_method_and_leave_its_parts_alone(name):
    cfg, plain = compose([f"experiment={name}", "method=fedvpt"]), compose(["method=fedvpt"])
    for part in ("method", "generator", "inference"):
        assert OmegaConf.to_container(cfg[part]) == OmegaConf.to_container(plain[part])
    assert cfg.optim.local_epochs == plain.optim.local_epochs


@pytest.mark.parametrize("name", sorted(set(EXPERIMENTS) - GENERIC))
def test_every_protocol_divides_a_set_of_the_published_size(name):
    images, rows = partition_of(name)
    used = [i for row in rows for part in row["indices"].values() for i in part]
    assert len(used) == len(set(used))
    for row in rows:
        assert min(row["train"], row["validation"], row["test"]) >= 1
        trained, tested = (counts(row, part, images.labels) > 0 for part in ("train", "test"))
        assert (tested & ~trained).sum() <= 0.2 * trained.sum() + 2, "tested on what it trains on, but for rare classes"


@pytest.mark.parametrize(("name", "each"), [("office_fedbn_truncated", 62), ("domainnet10_fedbn_truncated", 105)])
def test_fedbns_clients_have_a_domain_each_and_equally_many_training_images(name, each):
    images, rows = partition_of(name)
    assert [row["train"] for row in rows] == [each] * len(images.domain_names)
    assert sorted(np.flatnonzero(row["domains"]).tolist() for row in rows) == [[d] for d in range(len(rows))]
    assert sum(row["test"] for row in rows) == pytest.approx(0.2 * len(images), abs=len(rows))


@pytest.mark.parametrize(
    ("name", "data"),
    [("office_fedbn_untruncated", "office_caltech10"), ("domainnet10_fedbn_untruncated", "domainnet10")],
)
def test_without_the_cut_they_have_seven_tenths_of_their_domain(name, data):
    images, rows = partition_of(name)
    assert len(images) == sum(SETS[data][0])
    sizes = {int(np.flatnonzero(row["domains"])[0]): row for row in rows}
    for domain, size in enumerate(SETS[data][0]):
        row = sizes[domain]
        assert row["train"] + row["validation"] + row["test"] == size
        assert row["train"] == pytest.approx(0.7 * size, abs=1)
        assert row["test"] == pytest.approx(0.2 * size, abs=1)


@pytest.mark.parametrize("name", ["office_leave_one_out", "pacs_leave_one_out"])
def test_who_is_left_out_is_one_domain_and_every_client_has_another(name):
    cfg = compose([f"experiment={name}"])
    (left,) = cfg.evaluate.held_out
    assert left in cfg.data.domains
    images, rows = partition_of(name)
    assert f"domain{list(cfg.data.domains).index(left)}" not in images.domain_names
    assert sorted(np.flatnonzero(row["domains"]).tolist() for row in rows) == [[0], [1], [2]]


@pytest.mark.parametrize(("name", "classes"), [("cifar10_disjoint", 2), ("cifar100_disjoint", 10)])
def test_disjoint_clients_share_no_class(name, classes):
    images, rows = partition_of(name)
    held = np.array([counts(row, "train", images.labels) > 0 for row in rows])
    assert (held.sum(1) == classes).all()
    assert (held.sum(0) == 1).all()
    assert all(np.array_equal(held[i], counts(row, "test", images.labels) > 0) for i, row in enumerate(rows))


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name.endswith("_mixture")])
def test_mixtures_of_domains_cross_with_label_skew_as_their_files_say(name):
    def classes_to_a_client(*overrides):
        _, rows = partition_of(name, *overrides)
        labels = np.array([row["labels"] for row in rows], float)
        shares = labels / labels.sum(1, keepdims=True)
        assert np.median([np.count_nonzero(row["domains"]) for row in rows]) > 1, "still several domains inside each"
        return np.exp(-(shares * np.log(shares + 1e-12)).sum(1)).mean()

    crossing = "partition=domain_and_label partition.label_alpha=0.1"
    assert f"# Crossed with label skew: {crossing}." in (CONF / "experiment" / f"{name}.yaml").read_text()
    assert classes_to_a_client(*crossing.split()) < 0.7 * classes_to_a_client()


@pytest.mark.parametrize("classes", [10, 50])
def test_clients_hold_their_number_of_a_hundred_classes(classes):
    images, rows = partition_of(f"cifar100_{classes}_classes")
    for part, each in (("train", 450), ("validation", 50), ("test", 100)):
        table = np.array([counts(row, part, images.labels) for row in rows])
        assert abs(table.sum(1) - each).max() <= 2 * classes
    table = np.array([row["labels"] for row in rows])
    assert ((table > 0).sum(1) == classes).all()
    assert ((table > 0).sum(0) == classes).all(), "as many holders"
    assert table.sum() == 60_000


def test_a_smaller_alpha_leaves_fewer_classes_to_a_client():
    def effective(alpha):
        _, rows = partition_of("cifar10_dirichlet", f"partition.alpha={alpha}")
        shares = np.array([row["labels"] for row in rows]) / [[sum(row["labels"])] for row in rows]
        return np.exp(-(shares * np.log(shares + 1e-12)).sum(1)).mean()

    assert 1 < effective(0.1) < effective(0.5) < effective(100) <= 10


@pytest.mark.parametrize(
    ("scheme", "field"), [("domain_mixture", "domains"), ("label_dirichlet", "labels"), ("domain_and_label", "labels")]
)
def test_the_files_of_dirichlet_partitions_say_how_uneven_clients_are(scheme, field):
    text = (CONF / "partition" / f"{scheme}.yaml").read_text()
    sentence = r"([\d.]+) of its images at (\w+) ([\d.]+), ([\d.]+) at ([\d.]+), ([\d.]+) at ([\d.]+)"
    first, key, *numbers = re.search(sentence, text).groups()
    images = styled_digits(8)
    for largest, alpha in zip([first, *numbers[1::2]], numbers[::2], strict=True):
        cfg = compose([f"partition={scheme}", f"partition.{key}={alpha}"])
        measured = []
        for seed in range(3):
            splits = instantiate(cfg.partition, seed=seed)(images, cfg.clients)
            table = np.array([row[field] for row in describe(splits, images, "")["clients"]])
            measured.append((table.max(1) / table.sum(1)).mean())
        assert np.mean(measured) == pytest.approx(float(largest), abs=0.006)


def test_photographs_of_ones_own_have_the_settings_of_the_shared_file():
    cfg = compose(["experiment=photos", "data.root=DIR"])
    assert (cfg.names.data, cfg.names.backbone, cfg.data.image_size) == ("imagefolder", "timm", 112)
    assert (cfg.clients, cfg.rounds, cfg.prompts.start_layer) == (8, 10, 8)
    assert (cfg.optim.lr, cfg.optim.head_lr) == (0.03, 0.001), "the prompt rate is the method's own"
    assert compose(["experiment=photos", "method=fedavg_full"]).optim.lr == 0.0003
    other = compose(["experiment=office_mixture", "data=imagefolder", "data.root=DIR", "backbone=letters"])
    assert (other.names.data, other.names.backbone) == ("imagefolder", "letters"), "the command line has the last word"

"""Named experiments: each composes, and its partition fits its name on sets of the published sizes."""

import numpy as np
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf
from schemes import effective, image_set

from fedbayes.config.compose import CONF, compose, resolved
from fedbayes.data.partitions.held_out import hold_out
from fedbayes.data.partitions.splits import describe

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
    sizes, classes, has_test = SETS[name]
    cells = {(d, c): len(range(c, size, classes)) for d, size in enumerate(sizes) for c in range(classes)}
    splits = [2 if i % 6 == 0 else 0 for count in cells.values() for i in range(count)] if has_test else None
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
def test_every_experiment_composes_and_describes_itself(name):
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
    for row in rows:
        size = SETS[data][0][np.flatnonzero(row["domains"])[0]]
        assert row["train"] + row["validation"] + row["test"] == size
        assert row["train"] == pytest.approx(0.7 * size, abs=1)
        assert row["test"] == pytest.approx(0.2 * size, abs=1)


@pytest.mark.parametrize("name", ["office_leave_one_out", "pacs_leave_one_out"])
def test_a_domain_is_left_out_and_every_client_has_another(name):
    cfg = compose([f"experiment={name}"])
    (domain,) = cfg.evaluate.held_out
    images, rows = partition_of(name)
    assert f"domain{list(cfg.data.domains).index(domain)}" not in images.domain_names
    assert sorted(np.flatnonzero(row["domains"]).tolist() for row in rows) == [[0], [1], [2]]


@pytest.mark.parametrize(("name", "classes"), [("cifar10_disjoint", 2), ("cifar100_disjoint", 10)])
def test_disjoint_clients_share_no_class(name, classes):
    images, rows = partition_of(name)
    has_class = np.array([counts(row, "train", images.labels) > 0 for row in rows])
    assert (has_class.sum(1) == classes).all()
    assert (has_class.sum(0) == 1).all()
    assert all(np.array_equal(has_class[i], counts(row, "test", images.labels) > 0) for i, row in enumerate(rows))


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name.endswith("_mixture")])
def test_mixtures_of_domains_cross_with_label_skew(name):
    _, mixed = partition_of(name)
    _, crossed = partition_of(name, "partition=domain_and_label", "partition.label_alpha=0.1")
    for rows in (mixed, crossed):
        assert np.median([np.count_nonzero(row["domains"]) for row in rows]) > 1, "several domains in each client"
    assert effective(crossed, "labels").mean() < 0.7 * effective(mixed, "labels").mean()


@pytest.mark.parametrize("classes", [10, 50])
def test_clients_have_their_number_of_a_hundred_classes(classes):
    images, rows = partition_of(f"cifar100_{classes}_classes")
    for part, each in (("train", 450), ("validation", 50), ("test", 100)):
        table = np.array([counts(row, part, images.labels) for row in rows])
        assert abs(table.sum(1) - each).max() <= 2 * classes
    table = np.array([row["labels"] for row in rows])
    assert ((table > 0).sum(1) == classes).all()
    assert ((table > 0).sum(0) == classes).all(), "as many clients of each class"
    assert table.sum() == 60_000


def test_a_smaller_alpha_leaves_fewer_classes_to_a_client():
    rows = [partition_of("cifar10_dirichlet", f"partition.alpha={alpha}")[1] for alpha in (0.1, 0.5, 100)]
    few, several, many = (effective(table, "labels").mean() for table in rows)
    assert 1 < few < several < many <= 10

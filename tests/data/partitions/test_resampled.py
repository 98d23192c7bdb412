"""The partition for benchmarks of scale."""

import numpy as np
import pytest
from schemes import grid

from fedbayes.data.partitions.resampled import resampled
from fedbayes.data.partitions.schemes import describe
from fedbayes.errors import ConfigError, PartitionError

SETTINGS = {"seed": 0, "alpha": 0.3, "images": 20, "validation": 0.15, "test": 0.35}


def test_more_clients_than_images_have_all_three_splits():
    images = grid(2, 3, 10)
    splits = resampled(images, 500, **SETTINGS)
    assert {(len(one.train), len(one.validation), len(one.test)) for one in splits} == {(10, 3, 7)}


def test_no_image_is_in_two_splits_of_anybody():
    splits = resampled(grid(2, 3, 10), 300, **SETTINGS)
    pools = [set(np.concatenate([getattr(one, name) for one in splits])) for name in ("train", "validation", "test")]
    assert sum(map(len, pools)) == len(set.union(*pools)) == 60


def test_clients_draw_by_their_mixtures():
    images = grid(4, 2, 25)
    splits = resampled(images, 200, **SETTINGS | {"alpha": 100.0, "images": 400})
    rows = np.array([row["domains"] for row in describe(splits, images, "")["clients"]])
    assert abs(rows.mean(0) / 400 - 0.25).max() < 0.01
    assert rows.std(0).max() / 400 < 0.05
    alone = resampled(images, 200, **SETTINGS | {"alpha": 0.001})
    one_domain = [np.unique(images.domains.numpy()[one.train]).size for one in alone]
    assert np.mean(one_domain) < 1.1


def test_the_partition_depends_on_its_seed_alone():
    images = grid(2, 3, 10)
    one, same, other = (resampled(images, 9, **SETTINGS | {"seed": seed}) for seed in (1, 1, 2))
    assert all(np.array_equal(a.train, b.train) for a, b in zip(one, same, strict=True))
    assert not all(np.array_equal(a.train, b.train) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("change", "said"),
    [({"images": 2}, "partition.images=2"), ({"alpha": 0}, "partition.alpha=0"), ({"test": 1}, "sum")],
)
def test_what_cannot_work_is_refused(change, said):
    with pytest.raises(PartitionError, match=said):
        resampled(grid(2, 3, 10), 4, **SETTINGS | change)


def test_a_negative_seed_is_refused():
    with pytest.raises(ConfigError, match=r"partition.seed=-1"):
        resampled(grid(2, 3, 10), 4, **SETTINGS | {"seed": -1})

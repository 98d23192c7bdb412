"""The partition for benchmarks of scale."""

import numpy as np
import pytest
from schemes import grid

from fedbayes.data.partitions.resampled import Resampled
from fedbayes.data.partitions.splits import describe
from fedbayes.errors import ConfigError

SETTINGS = {"seed": 0, "alpha": 0.3, "images": 20, "validation": 0.15, "test": 0.35}


def test_more_clients_than_images_have_all_three_splits_and_no_image_is_in_two():
    splits = Resampled(**SETTINGS)(grid(2, 3, 10), 500)
    assert {(len(client.train), len(client.validation), len(client.test)) for client in splits} == {(10, 3, 7)}
    pools = [
        set(np.concatenate([getattr(client, name) for client in splits])) for name in ("train", "validation", "test")
    ]
    assert sum(map(len, pools)) == len(set.union(*pools)) == 60


def test_clients_sample_by_their_mixtures():
    images = grid(4, 2, 25)
    splits = Resampled(**SETTINGS | {"alpha": 100.0, "images": 400})(images, 200)
    rows = np.array([row["domains"] for row in describe(splits, images, "")["clients"]])
    assert abs(rows.mean(0) / 400 - 0.25).max() < 0.01
    assert rows.std(0).max() / 400 < 0.05
    alone = Resampled(**SETTINGS | {"alpha": 0.001})(images, 200)
    one_domain = [np.unique(images.domains.numpy()[client.train]).size for client in alone]
    assert np.mean(one_domain) < 1.1


def test_the_partition_depends_on_its_seed_alone():
    images = grid(2, 3, 10)
    first, same, other = (Resampled(**SETTINGS | {"seed": seed})(images, 9) for seed in (1, 1, 2))
    assert all(np.array_equal(a.train, b.train) for a, b in zip(first, same, strict=True))
    assert not all(np.array_equal(a.train, b.train) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": 2}, r"partition\.images=2"),
        ({"alpha": 0}, r"partition\.alpha=0"),
        ({"test": 1}, "sum"),
        ({"seed": -1}, r"partition\.seed=-1"),
    ],
)
def test_impossible_values_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        Resampled(**SETTINGS | change)(grid(2, 3, 10), 4)

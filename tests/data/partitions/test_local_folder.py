"""Images that belong to one client: where they go, and where they may not be."""

import numpy as np
import pytest
import torch

from fedbayes.data.datasets import ImageSet
from fedbayes.data.partitions.local_folder import local_folder
from fedbayes.data.partitions.schemes import iid
from fedbayes.errors import PartitionError

RULES = {"seed": 3, "min_images": 10, "max_train": None, "validation": 0.2, "test": 0.3}


def images(count: int) -> ImageSet:
    """Two classes in turn, one domain."""
    ids = torch.arange(count) % 2
    return ImageSet(
        images=torch.zeros((count, 3, 8, 8), dtype=torch.uint8),
        labels=ids,
        domains=torch.zeros_like(ids),
        classes=("a", "b"),
        domain_names=("d",),
        given_split=torch.full((count,), -1, dtype=torch.int8),
        names=tuple(map(str, range(count))),
    )


def test_the_holder_has_every_image_and_the_others_none():
    splits = local_folder(images(40), 3, holder=1, **RULES)
    assert [len(one.train) for one in splits] == [0, 20, 0]
    assert [len(one.validation) for one in splits] == [0, 8, 0]
    assert [len(one.test) for one in splits] == [0, 12, 0]
    mine = splits[1]
    assert np.array_equal(np.sort(np.concatenate([mine.train, mine.validation, mine.test])), np.arange(40))
    assert {index.dtype for one in splits for index in (one.train, one.validation, one.test)} == {np.dtype(np.int64)}


def test_the_splits_follow_the_rules_of_every_partition():
    mine = local_folder(images(40), 2, holder=0, **RULES)[0]
    (alone,) = iid(images(40), 1, quantity=None, **RULES)
    for name in ("train", "validation", "test"):
        assert len(getattr(mine, name)) == len(getattr(alone, name))
        labels = np.bincount(getattr(mine, name) % 2)
        assert abs(int(labels[0]) - int(labels[1])) <= 2, "stratified"
    assert np.array_equal(local_folder(images(40), 2, holder=0, **RULES)[0].train, mine.train), "by the seed alone"
    capped = local_folder(images(40), 2, holder=0, **{**RULES, "max_train": 5})[0]
    assert len(capped.train) == 5
    assert np.array_equal(capped.test, mine.test)


def test_a_server_holds_nothing():
    assert [len(one.train) for one in local_folder(images(0), 4, holder=None, **RULES)] == [0] * 4


@pytest.mark.parametrize(
    ("count", "holder", "said"),
    [
        (40, None, "finds 40 images where no client is; set data=imagefolder data.root=null"),
        (40, 3, "partition.holder=3 is none of clients=3; choose 0 to 2"),
        (4, 2, "4 images .*; add images to the folder of partition 2, or lower partition.min_images"),
    ],
)
def test_impossible_requests_name_the_remedy(count, holder, said):
    with pytest.raises(PartitionError, match=said):
        local_folder(images(count), 3, holder=holder, **RULES)

"""Images that belong to one client: where they go, and where they may not be."""

import numpy as np
import pytest
import torch

from fedbayes.data.datasets import ImageSet
from fedbayes.data.partitions.local_folder import LocalFolder
from fedbayes.data.partitions.schemes import Iid
from fedbayes.errors import FedbayesError

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


def splits_of(count: int, clients: int, holder: int | None, **changes):
    """The partition of so many images."""
    return LocalFolder(holder=holder, **{**RULES, **changes})(images(count), clients)


def test_the_holder_has_every_image_and_the_others_none():
    splits = splits_of(40, 3, holder=1)
    assert [len(split.train) for split in splits] == [0, 20, 0]
    assert [len(split.validation) for split in splits] == [0, 8, 0]
    assert [len(split.test) for split in splits] == [0, 12, 0]
    assert np.array_equal(np.sort(np.concatenate(list(splits[1].parts().values()))), np.arange(40))
    assert {ids.dtype for split in splits for ids in split.parts().values()} == {np.dtype(np.int64)}


def test_the_splits_follow_the_rules_of_every_partition():
    holder = splits_of(40, 2, holder=0)[0]
    (alone,) = Iid(quantity=None, **RULES)(images(40), 1)
    for name, ids in holder.parts().items():
        assert len(ids) == len(alone.parts()[name])
        labels = np.bincount(ids % 2)
        assert abs(int(labels[0]) - int(labels[1])) <= 2, "stratified"
    assert np.array_equal(splits_of(40, 2, holder=0)[0].train, holder.train), "by the seed alone"
    capped = splits_of(40, 2, holder=0, max_train=5)[0]
    assert len(capped.train) == 5
    assert np.array_equal(capped.test, holder.test)


def test_a_server_has_no_images():
    assert [len(split.train) for split in splits_of(0, 4, holder=None)] == [0] * 4


@pytest.mark.parametrize(
    ("count", "holder", "message"),
    [
        (40, None, r"40 images .* data\.root=null"),
        (40, 3, r"partition\.holder=3 .* 0 to 2"),
        (4, 2, r"4 images .* partition 2, or lower partition\.min_images"),
    ],
)
def test_impossible_requests_name_the_remedy(count, holder, message):
    with pytest.raises(FedbayesError, match=message):
        splits_of(count, 3, holder=holder)

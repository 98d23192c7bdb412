"""Images that belong to one client: where they go, and where they may not be."""

import numpy as np
import pytest
from schemes import grid

from fedbayes.data.partitions.local_folder import LocalFolder
from fedbayes.data.partitions.schemes import Iid
from fedbayes.errors import FedbayesError

RULES = {"seed": 3, "min_images": 10, "max_train": None, "validation": 0.2, "test": 0.3}


def splits_of(count: int, clients: int, holder: int | None, **changes):
    """The partition of `count` images of two classes."""
    return LocalFolder(holder=holder, **{**RULES, **changes})(grid(1, 2, count // 2), clients)


def test_the_holder_has_every_image_and_the_others_none():
    splits = splits_of(40, 3, holder=1)
    assert [len(split.train) for split in splits] == [0, 20, 0]
    assert [len(split.validation) for split in splits] == [0, 8, 0]
    assert [len(split.test) for split in splits] == [0, 12, 0]
    assert np.array_equal(np.sort(np.concatenate(list(splits[1].parts().values()))), np.arange(40))
    assert {ids.dtype for split in splits for ids in split.parts().values()} == {np.dtype(np.int64)}


def test_a_server_has_no_images():
    assert [len(split.train) for split in splits_of(0, 4, holder=None)] == [0] * 4


def test_the_splits_follow_the_rules_of_every_partition():
    holder = splits_of(40, 2, holder=0)[0]
    (alone,) = Iid(quantity=None, **RULES)(grid(1, 2, 20), 1)
    for name, ids in holder.parts().items():
        assert len(ids) == len(alone.parts()[name])
        assert abs(np.count_nonzero(ids < 20) - len(ids) / 2) <= 1, "stratified"
    assert np.array_equal(splits_of(40, 2, holder=0)[0].train, holder.train), "by the seed alone"
    capped = splits_of(40, 2, holder=0, max_train=5)[0]
    assert len(capped.train) == 5
    assert np.array_equal(capped.test, holder.test)


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

"""The images of a federation: batches, schedules, stand-ins."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from schemes import grid

from fedbayes.data.federated import FederatedData
from fedbayes.data.partitions.splits import ClientSplit
from fedbayes.seeding import Streams


@pytest.fixture
def data():
    bounds = [0, 5, 6, 17]
    parts = [np.arange(low, high) for low, high in pairwise(bounds)]
    return FederatedData(grid(2, 2, 5), [ClientSplit(train=ids, validation=ids[:1], test=ids[:2]) for ids in parts])


@pytest.mark.parametrize(("count", "batch_size"), [(1, 4), (2, 4), (3, 1), (2, 100)])
def test_steps_are_the_batches_in_which_a_client_has_images(data, count, batch_size):
    partitions = [2, 0, 1]
    batches = list(data.epochs(partitions, count, batch_size, Streams(0, 1, partitions, "order")))
    present = sum(batch.mask.any(1).long() for batch in batches)
    assert data.count_steps(partitions, count, batch_size) == present.tolist()
    assert max(batch.mask.shape[1] for batch in batches) <= batch_size
    assert sum(batch.counts for batch in batches).tolist() == [11 * count, 5 * count, 1 * count]


def test_a_stand_in_has_as_many_images_as_the_client_all_the_same(data):
    for partition in range(3):
        for split in ("train", "validation", "test", "held_out"):
            real, stand_in = data.indices(partition, split), data.indices(~partition, split)
            assert real.shape == stand_in.shape
            assert real.dtype == stand_in.dtype
            assert torch.equal(stand_in, torch.zeros_like(real))


def test_pooled_images_are_those_of_who_trains():
    parts = [np.array(ids) for ids in ([0, 1], [2, 3, 4], [5])]
    splits = [ClientSplit(train=ids, validation=ids[:1], test=ids[:1]) for ids in parts]
    data = FederatedData(grid(2, 2, 5), splits, new_clients=[1])
    assert [client.train.tolist() for client in data.pooled().clients] == [[0, 1, 5]] * 3
    assert data.pooled().new_clients == data.with_clients(splits).new_clients == (1,)

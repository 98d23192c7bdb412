"""Test images with other classes than a client's training images."""

import numpy as np
import pytest
from schemes import grid

from fedbayes.data.label_shift import shift_labels
from fedbayes.data.partitions.splits import ClientSplit
from fedbayes.errors import ConfigError, PartitionError

IMAGES = grid(domains=2, classes=2, each=100)
LABELS, DOMAINS = IMAGES.labels.numpy(), IMAGES.domains.numpy()


def client(label, domain):
    """A client with a single class of a single domain: 50 images to train on and 40 to test on."""
    ids = np.flatnonzero((label == LABELS) & (domain == DOMAINS))
    return ClientSplit(train=ids[:50], validation=ids[:0], test=ids[50:90])


CLIENTS = [client(label, domain) for label in (0, 1) for domain in (0, 1)]


def test_uniform_classes_and_the_domains_of_before():
    shifted = shift_labels(IMAGES, CLIENTS, "uniform", seed=0)
    for before, after in zip(CLIENTS, shifted, strict=True):
        assert len(after.test) == 40
        assert np.bincount(LABELS[after.test], minlength=2).min() >= 10
        assert (DOMAINS[after.test] == DOMAINS[before.test][0]).all()
        assert np.unique(after.test).tolist() == after.test.tolist(), "ascending, each once"
        assert not np.isin(after.test, after.train).any()
        assert after.train is before.train


def test_reversed_classes():
    for before, after in zip(CLIENTS, shift_labels(IMAGES, CLIENTS, "reversed", seed=0), strict=True):
        assert (LABELS[after.test] == 1 - LABELS[before.train][0]).all()


def test_the_seed_decides():
    first, again, other = (shift_labels(IMAGES, CLIENTS, "uniform", seed)[0].test for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_no_shift_and_no_images():
    assert shift_labels(IMAGES, CLIENTS, None, seed=0) == tuple(CLIENTS)
    with pytest.raises(ConfigError, match=r"evaluate\.label_shift"):
        shift_labels(IMAGES, CLIENTS, "skewed", seed=0)
    with pytest.raises(PartitionError, match=r"evaluate\.label_shift"):
        shift_labels(IMAGES, CLIENTS[:1], "reversed", seed=0)

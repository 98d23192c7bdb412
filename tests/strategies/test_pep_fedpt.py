"""PEP-FedPT's server: prototypes are the pooled class means, the rest is averaged by images."""

import numpy as np

from fedbayes.comm.messages import ClientUpdate
from strategies.pep_fedpt import PEPFedPT

RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(60, 5))
LABELS = np.arange(60) % 4
OWNER = RNG.integers(0, 3, 60)


def reply(partition, scale=1.0):
    images = partition == OWNER
    hits = np.eye(6)[LABELS[images]]
    arrays = {
        "head.weight": np.full((5, 6), scale * partition, np.float32),
        "generator.prototypes": np.zeros((6, 5), np.float32),
        "sums": hits.T @ FEATURES[images],
        "counts": hits.sum(0),
    }
    return ClientUpdate(partition, arrays, int(images.sum()), {})


def means(owners):
    known = np.isin(OWNER, owners)
    return np.stack([FEATURES[known & (c == LABELS)].mean(0) if c < 4 else np.zeros(5) for c in range(6)])


def test_prototypes_are_class_means_of_all_clients_so_far_each_counted_once_also_after_a_restart():
    strategy = PEPFedPT()
    for partitions in ((0, 1), (1,), (1, 2)):
        state, strategy = strategy.state(), PEPFedPT()
        strategy.restore(state)
        strategy.aggregate([reply(partition) for partition in partitions])
        np.testing.assert_allclose(strategy.shared["generator.prototypes"], means(sorted(strategy.seen)), atol=1e-6)
    assert sorted(strategy.seen) == [0, 1, 2]
    assert strategy.shared["generator.prototypes"].dtype == np.float32


def test_everything_else_is_the_mean_over_images_and_sums_are_not_sent_on():
    strategy = PEPFedPT()
    strategy.aggregate([reply(0), reply(2)])
    images = [(p == OWNER).sum() for p in (0, 2)]
    np.testing.assert_allclose(strategy.shared["head.weight"], 2 * images[1] / sum(images), rtol=1e-6)
    assert set(strategy.shared) == {"head.weight", "generator.prototypes"}


def test_counts_that_no_images_can_have_are_impossible():
    malicious = reply(1)
    assert PEPFedPT().rejection_reason(malicious) is None
    for counts in (-1e6, 1e-300, 1e6):
        malicious.arrays["counts"] = np.full(6, counts)
        assert "counts " in PEPFedPT().rejection_reason(malicious)

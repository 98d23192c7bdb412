"""A partition for benchmarks of scale: clients draw images with replacement, so any number of them has some.

No image is in two splits, but clients share images, which no honest comparison of methods allows: this is for measuring
time and memory, not accuracy.
"""

import numpy as np

from fedbayes.data.datasets import ImageSet
from fedbayes.data.partitions.allocation import Floats, Ints, Rules, as_partition_error
from fedbayes.data.partitions.splits import ClientSplit, shares_of, split
from fedbayes.errors import require_whole


def resampled(
    image_set: ImageSet, clients: int, *, seed: int, alpha: float, images: int, validation: float, test: float
) -> tuple[ClientSplit, ...]:
    """Every client draws its mixture of domains from Dirichlet(alpha), and its images from that, with replacement.

    All images are first divided into training, validation and test images; a client draws from each part.

    Args:
        image_set: the images.
        clients: number of clients, any.
        seed: of the partition and the splits.
        alpha: concentration over domains.
        images: of each client over its three splits, at least 3.
        validation: share of a client's images.
        test: share of a client's images.

    Returns:
        One division per client.

    Raises:
        PartitionError: if the request is impossible.
        ConfigError: if the seed is negative.
    """
    with as_partition_error():
        require_whole("partition.images", images, 3)
    everybody = Rules("resampled", clients, seed, 3, None, None, validation, test)
    as_one = Rules("resampled", 1, seed, 3, None, None, validation, test)
    (whole,) = split(image_set, np.zeros(len(image_set), np.int64), as_one, "all images", "take more images")
    mixtures = everybody.dirichlet(alpha, len(image_set.domain_names), "alpha")
    held_out = shares_of(images, validation, test)
    counts = {"train": images - sum(held_out), "validation": held_out[0], "test": held_out[1]}
    domains = image_set.domains.numpy()
    drawn = {
        name: _draw(getattr(whole, name), domains, mixtures, count, everybody.generator("draw", name))
        for name, count in counts.items()
    }
    return tuple(ClientSplit(**{name: rows[client] for name, rows in drawn.items()}) for client in range(clients))


def _draw(pool: Ints, domains: Ints, mixtures: Floats, count: int, rng: np.random.Generator) -> Ints:
    """`(clients, count)` images of the pool, each row sorted: a domain by the client's mixture, then any of its images.

    A domain without images in the pool counts as not there.
    """
    pool = pool[np.argsort(domains[pool], kind="stable")]
    sizes = np.bincount(domains[pool], minlength=mixtures.shape[1])
    wanted = np.where(sizes > 0, mixtures, 0.0)
    wanted[wanted.sum(1) <= 0] = sizes  # a mixture of domains that are not there
    edges = np.cumsum(wanted, axis=1)
    chosen = (rng.random((len(mixtures), count))[:, :, None] >= (edges / edges[:, -1:])[:, None]).sum(2)
    chosen = np.minimum(chosen, np.flatnonzero(sizes)[-1])  # rounding at the upper edge
    first = np.cumsum(sizes) - sizes
    within = (rng.random(chosen.shape) * sizes[chosen]).astype(np.int64)
    return np.asarray(np.sort(pool[first[chosen] + within], axis=1))

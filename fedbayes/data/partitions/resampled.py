"""A partition for benchmarks of scale: clients sample images with replacement, so there may be any number of clients.

No image is in two splits, but clients share images, which no honest comparison of methods allows: this is for measuring
time and memory, not accuracy.
"""

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from fedbayes.data.datasets import ImageSet
from fedbayes.data.partitions.allocation import Floats, Ints
from fedbayes.data.partitions.base import AbstractPartition
from fedbayes.data.partitions.splits import ClientSplit, split_sizes
from fedbayes.errors import require_whole


@final
@dataclass(frozen=True, kw_only=True)
class Resampled(AbstractPartition):
    """Every client samples its mixture of domains from Dirichlet(alpha), and its images from that, with replacement.

    All images are first divided into training, validation and test images; a client samples from each part.

    Args:
        alpha: concentration over domains.
        images: of each client over its three splits, at least 3.
    """

    name: ClassVar[str] = "resampled"
    alpha: float
    images: int

    def __call__(self, image_set: ImageSet, clients: int) -> tuple[ClientSplit, ...]:
        """Return the images of each client; see `AbstractPartition`."""
        require_whole("clients", clients, 1)
        require_whole("partition.images", self.images, 3)
        owner = np.zeros(len(image_set), np.int64)
        split = {"settings": "all images", "remedy": "take more images"}
        (pools,) = self.split(image_set, owner, 1, min_images=3, max_train=None, **split)
        mixtures = self.dirichlet("alpha", clients, len(image_set.domain_names))
        validation, test = split_sizes(self.images, self.validation, self.test)
        counts = {"train": self.images - validation - test, "validation": validation, "test": test}
        domains = image_set.domains.numpy()
        samples = {
            name: _sample(pool, domains, mixtures, counts[name], self.generator("draw", name))
            for name, pool in pools.parts().items()
        }
        return tuple(ClientSplit(**{name: rows[client] for name, rows in samples.items()}) for client in range(clients))


def _sample(pool: Ints, domains: Ints, mixtures: Floats, count: int, rng: np.random.Generator) -> Ints:
    """Sample `(clients, count)` images of the pool, each row sorted: a domain by the mixture, then any of its images.

    Domains without images in the pool are left out.
    """
    pool = pool[np.argsort(domains[pool], kind="stable")]
    sizes = np.bincount(domains[pool], minlength=mixtures.shape[1])
    weights = np.where(sizes > 0, mixtures, 0.0)
    weights[weights.sum(1) <= 0] = sizes  # a mixture of domains without images
    edges = np.cumsum(weights, axis=1)
    chosen = (rng.random((len(mixtures), count))[:, :, None] >= (edges / edges[:, -1:])[:, None]).sum(2)
    chosen = np.minimum(chosen, np.flatnonzero(sizes)[-1])  # rounding at the upper edge
    first = np.cumsum(sizes) - sizes
    within = (rng.random(chosen.shape) * sizes[chosen]).astype(np.int64)
    return np.asarray(np.sort(pool[first[chosen] + within], axis=1))

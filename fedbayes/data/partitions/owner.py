"""Images of the ViT's owner: they leave before the partition, and no client has them."""

import numpy as np

from fedbayes.data.datasets import GIVEN_TRAIN, ImageSet
from fedbayes.data.partitions.allocation import Ints
from fedbayes.errors import PartitionError, require_whole
from fedbayes.seeding import numpy_generator


def set_aside(image_set: ImageSet, count: object, seed: int) -> tuple[Ints, Ints]:
    """Return the ids of the owner's images, chosen at random by `partition.seed` alone, and those of the others.

    Raises:
        ConfigError: if `count` is not a whole number.
        PartitionError: if the owner would leave no image to train on.
    """
    images = require_whole("owner.images", count, 0)
    eligible = np.flatnonzero(image_set.given_split.numpy() <= GIVEN_TRAIN)
    if images and images >= len(eligible):
        raise PartitionError(f"owner.images={images} leaves none of {len(eligible)} training images; lower it.")
    owner = np.sort(numpy_generator(seed, "owner").permutation(eligible)[:images])
    return owner, np.setdiff1d(np.arange(len(image_set)), owner)

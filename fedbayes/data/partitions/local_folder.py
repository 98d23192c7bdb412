"""The partition of a deployment: every client's images lie in a folder of its own, where nobody else looks."""

import numpy as np

from fedbayes.data.datasets import ImageSet
from fedbayes.data.partitions.allocation import Rules
from fedbayes.data.partitions.splits import ClientSplit, split
from fedbayes.errors import PartitionError


def local_folder(
    image_set: ImageSet,
    clients: int,
    *,
    holder: int | None,
    seed: int,
    min_images: int,
    max_train: int | None,
    validation: float,
    test: float,
) -> tuple[ClientSplit, ...]:
    """All images here belong to one client; what the others have is not known here.

    Args:
        image_set: the images of the holder; none on the server.
        clients: number of clients.
        holder: the client whose images these are; None on the server.
        seed: of the splits.
        min_images: fewest images, at least 3.
        max_train: cap on training images; None: no cap.
        validation: share of the images.
        test: share of the images.

    Returns:
        One division per client, empty but for the holder's.

    Raises:
        PartitionError: if images lie where no client is, or are too few.
        ConfigError: if the seed is negative.
    """
    rules = Rules("local_folder", 1, seed, min_images, None, max_train, validation, test)
    nothing = np.empty(0, np.int64)
    splits = [ClientSplit(nothing, nothing, nothing)] * clients
    if holder is None:
        if len(image_set):
            raise PartitionError(
                f"partition=local_folder finds {len(image_set)} images where no client is; set data=imagefolder "
                "data.root=null, or choose another partition to deal them out."
            )
        return tuple(splits)
    if not 0 <= holder < clients:
        raise PartitionError(f"partition.holder={holder} is none of clients={clients}; choose 0 to {clients - 1}.")
    owner = np.zeros(len(image_set), np.int64)
    remedy = f"add images to the folder of partition {holder}, or lower partition.min_images"
    (mine,) = split(image_set, owner, rules, f"the folder of partition {holder}", remedy)
    splits[holder] = mine
    return tuple(splits)

"""The partition of a deployment: every client's images lie in a folder of its own machine."""

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from fedbayes.data.datasets import ImageSet
from fedbayes.data.partitions.base import AbstractPartition
from fedbayes.data.partitions.splits import ClientSplit
from fedbayes.errors import PartitionError, require_whole


@final
@dataclass(frozen=True, kw_only=True)
class LocalFolder(AbstractPartition):
    """All images here belong to one client; the images of the others are unknown here.

    `holder` is that client, or None on the server.
    """

    name: ClassVar[str] = "local_folder"
    holder: int | None
    min_images: int
    max_train: int | None

    def __call__(self, image_set: ImageSet, clients: int) -> tuple[ClientSplit, ...]:
        """Return the images of each client, none but for the holder; see `AbstractPartition`."""
        empty = np.empty(0, np.int64)
        splits = [ClientSplit(empty, empty, empty)] * clients
        if self.holder is not None:
            splits[require_whole("partition.holder", self.holder, 0, clients - 1)] = self.split(
                image_set,
                np.zeros(len(image_set), np.int64),
                clients=1,
                min_images=self.min_images,
                max_train=self.max_train,
                settings=f"the folder of partition {self.holder}",
                remedy=f"add images to the folder of partition {self.holder}, or lower partition.min_images",
            )[0]
        elif len(image_set):
            raise PartitionError(
                f"partition=local_folder has {len(image_set)} images on the server, where no client is; set "
                "data=imagefolder data.root=null, or choose another partition to divide them."
            )
        return tuple(splits)

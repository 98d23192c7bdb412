"""The images of a federation, which client has which, and batches for a cohort of clients."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import zip_longest
from typing import Literal, final

import numpy as np
import torch
from torch import Tensor

from fedbayes.data.datasets import ImageSet
from fedbayes.data.partitions.splits import ClientSplit
from fedbayes.seeding import Streams

Split = Literal["train", "validation", "test", "held_out", "triggered"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test", "held_out", "triggered")


@final
@dataclass(frozen=True, eq=False)
class Batch:
    """Images of C clients, padded to the largest.

    Attributes:
        index: image ids, `(C, B)`; padding repeats image 0.
        mask: True for images, which come first in each row, `(C, B)`.
        labels: class ids, `(C, B)`; 0 in the padding.
        class_counts: training images of each client by class, `(C, classes)`.
    """

    index: Tensor
    mask: Tensor
    labels: Tensor
    class_counts: Tensor

    @property
    def counts(self) -> Tensor:
        """Images of each client, `(C,)`."""
        return self.mask.sum(1)


@final
class FederatedData:
    """All images, in memory, and the partition of each client.

    Args:
        images: every image once, those of held-out domains after the others.
        clients: the images of each client.
        new_clients: partitions that never train.
        owner: ids of the images of the ViT's owner, which no client has.
    """

    def __init__(
        self,
        images: ImageSet,
        clients: Sequence[ClientSplit],
        new_clients: Sequence[int] = (),
        owner: Sequence[int] = (),
    ) -> None:
        self.images = images
        self.clients = tuple(clients)
        self.new_clients = tuple(new_clients)
        self.owner = tuple(owner)

    def __len__(self) -> int:
        """Return the number of clients."""
        return len(self.clients)

    @property
    def num_classes(self) -> int:
        """Number of classes, the same for every client."""
        return len(self.images.classes)

    def pooled(self) -> "FederatedData":
        """Give each client the training images of all clients that train; its other splits stay."""
        train = [split.train for client, split in enumerate(self.clients) if client not in self.new_clients]
        pool = np.unique(np.concatenate(train))
        return self.with_clients([replace(split, train=pool) for split in self.clients])

    def with_clients(self, clients: Sequence[ClientSplit], images: ImageSet | None = None) -> "FederatedData":
        """Return the same federation with another partition, and with other images if `images` is not None."""
        return FederatedData(self.images if images is None else images, clients, self.new_clients, self.owner)

    def indices(self, partition: int, split: Split) -> Tensor:
        """Return the image ids of one client's split, ascending.

        A negative partition `~p`, which is `-p - 1`, stands in for client p that failed: as many images as p has, all
        of them image 0, so that a cohort keeps its shapes and with them the bits of every other client's result.
        """
        if partition < 0:
            return torch.zeros(len(getattr(self.clients[~partition], split)), dtype=torch.long)
        return torch.from_numpy(getattr(self.clients[partition], split))

    def batch(self, partitions: Sequence[int], split: Split) -> Batch:
        """Return all images of a split of some clients in one batch, in the order of `indices`."""
        return self._pad(partitions, [self.indices(partition, split) for partition in partitions])

    def count_steps(self, partitions: Sequence[int], epochs: int, batch_size: int) -> list[int]:
        """Return the number of batches of `epochs` in which each client has images."""
        return [epochs * -(-len(self.indices(partition, "train")) // batch_size) for partition in partitions]

    def epochs(self, partitions: Sequence[int], count: int, batch_size: int, order: Streams) -> Iterator[Batch]:
        """Yield batches of the training images, each client's shuffled by a stream of its own.

        An epoch of n images is cut into `ceil(n / batch_size)` batches of equal size (to one image), so no step is
        taken on a small remainder. Clients with fewer batches have none in the later ones.
        """
        schedules: list[list[Tensor]] = []
        for c, partition in enumerate(partitions):
            ids = self.indices(partition, "train")
            steps = -(-len(ids) // batch_size)
            epochs = [ids[order.permutation(c, len(ids))].tensor_split(steps) for _ in range(count)]
            schedules.append([batch for epoch in epochs for batch in epoch])
        for rows in zip_longest(*schedules, fillvalue=torch.empty(0, dtype=torch.long)):
            yield self._pad(partitions, rows)

    @cached_property
    def class_counts(self) -> Tensor:
        """Return the number of training images of each client by class, `(clients, classes)`."""
        rows = [self.images.labels[self.indices(p, "train")] for p in range(len(self))]
        return torch.stack([labels.bincount(minlength=self.num_classes) for labels in rows])

    def _pad(self, partitions: Sequence[int], rows: Sequence[Tensor]) -> Batch:
        width = max([1, *map(len, rows)])
        index = torch.zeros(len(rows), width, dtype=torch.long)
        mask = torch.zeros(len(rows), width, dtype=torch.bool)
        for c, row in enumerate(rows):
            index[c, : len(row)] = row
            mask[c, : len(row)] = True
        labels = torch.where(mask, self.images.labels[index], 0)
        return Batch(index, mask, labels, self.class_counts[[max(p, ~p) for p in partitions]])

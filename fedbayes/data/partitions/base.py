"""What all partitions have in common: range checks, keyed random generators and the division into three splits."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedbayes.data.datasets import GIVEN_TEST, GIVEN_VALIDATION, ImageSet
from fedbayes.data.partitions.allocation import Floats, Ints, allocate_by_group, allocate_by_mixture
from fedbayes.data.partitions.splits import ClientSplit, split_client
from fedbayes.errors import ConfigError, PartitionError, require_number, require_whole
from fedbayes.seeding import numpy_generator


@dataclass(frozen=True, kw_only=True)
class AbstractPartition(ABC):
    """A division of images among clients, which depends on the images and on `seed` alone.

    Args:
        seed: of the partition and the splits.
        validation: fraction of a client's images; not used where the source names validation images.
        test: fraction of a client's images; not used where the source names test images.

    Raises:
        ConfigError: if a value is out of range.
    """

    name: ClassVar[str]
    """Keys the random generators, together with `seed`."""

    seed: int
    validation: float
    test: float

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_whole("partition.seed", self.seed, 0)
        require_number("partition.validation", self.validation, 0, 1, open_low=True)
        require_number("partition.test", self.test, 0, 1, open_low=True)
        if self.validation + self.test >= 1:
            raise ConfigError(
                f"partition.validation={self.validation} and partition.test={self.test} leave nothing to train on; "
                "choose fractions with a sum below 1."
            )

    @abstractmethod
    def __call__(self, image_set: ImageSet, clients: int) -> tuple[ClientSplit, ...]:
        """Return the images of each client.

        Raises:
            ConfigError: if a value is out of range.
            PartitionError: if the images cannot be divided in this way, or are too few for some client.
        """

    def generator(self, *purpose: str | int) -> np.random.Generator:
        """Return the random generator for one purpose within this partition."""
        return numpy_generator(self.seed, "partition", self.name, *purpose)

    def dirichlet(self, key: str, clients: int, groups: int) -> Floats:
        """Sample each client's mixture of groups from a symmetric Dirichlet distribution, (clients, groups).

        `key` is the field with the concentration, and also keys the generator.
        """
        alpha = require_number(f"partition.{key}", getattr(self, key), 0, open_low=True)
        return self.generator(key).dirichlet(np.full(groups, alpha), size=clients)

    def split(
        self,
        image_set: ImageSet,
        owner: Ints,
        clients: int,
        *,
        min_images: int,
        max_train: int | None,
        settings: str,
        remedy: str,
    ) -> tuple[ClientSplit, ...]:
        """Divide every client's images into training, validation and test images; see `split_client`.

        Args:
            image_set: the images.
            owner: the client of each image or -1, (N,).
            clients: number of clients.
            min_images: fewest images of any client over its three splits, at least 3.
            max_train: most training images of any client; None: no cap.
            settings: of the partition, for the error message.
            remedy: how a client would receive more, for the error message.

        Raises:
            ConfigError: if `min_images` or `max_train` is out of range.
            PartitionError: if a client has fewer than `min_images` images or lacks one of the three splits.
        """
        require_whole("partition.min_images", min_images, 3)
        if max_train is not None:
            require_whole("partition.max_train", max_train, 1)
        by_client = np.argsort(owner, kind="stable")
        bounds = np.searchsorted(owner[by_client], np.arange(clients + 1))
        kinds = set(image_set.given_split.tolist())
        validation = 0.0 if GIVEN_VALIDATION in kinds else self.validation
        test = 0.0 if GIVEN_TEST in kinds else self.test
        splits = []
        for client in range(clients):
            images = by_client[bounds[client] : bounds[client + 1]]  # ascending, as the order above is stable
            received = f"client {client} of {clients} received"
            if len(images) < min_images:
                raise PartitionError(
                    f"{received} {len(images)} images ({settings}, min_images={min_images}); {remedy}."
                )
            splits.append(
                split_client(image_set, images, (validation, test), max_train, self.generator("split", client))
            )
            for split, ids in splits[-1].parts().items():
                if not len(ids):
                    raise PartitionError(f"{received} no {split} images ({settings}); {remedy}.")
        return tuple(splits)


@dataclass(frozen=True, kw_only=True)
class AbstractScheme(AbstractPartition):
    """A partition that assigns each image to one client, as `assign` says.

    Images that the source gives as validation or test images stay that; they are assigned by the same rule as the
    others, but apart from them.

    Args:
        min_images: fewest images of any client over its three splits, at least 3.
        quantity: standard deviation of the logarithm of the client sizes; None: equal sizes.
        max_train: most training images of any client; None: no cap.
    """

    remedy: ClassVar[str] = "lower clients, partition.quantity or partition.min_images"
    """See `split`."""

    min_images: int
    quantity: float | None
    max_train: int | None

    @abstractmethod
    def assign(self, image_set: ImageSet, clients: int) -> Ints:
        """Return the client of each image, (N,); -1 for an image that no client gets."""

    def __call__(self, image_set: ImageSet, clients: int) -> tuple[ClientSplit, ...]:
        """Return the images of each client; see `AbstractPartition`."""
        require_whole("clients", clients, 1)
        require_whole("partition.min_images", self.min_images, 3)
        if self.quantity is not None:
            require_number("partition.quantity", self.quantity, 0)
        return self.split(
            image_set,
            self.assign(image_set, clients),
            clients,
            min_images=self.min_images,
            max_train=self.max_train,
            settings=", ".join(f"{name}={getattr(self, name)}" for name in self._setting_names()),
            remedy=self.remedy,
        )

    def by_mixture(self, image_set: ImageSet, groups: Ints, mixtures: Floats) -> Ints:
        """Assign all images by mixtures of groups; see `allocate_by_mixture`."""
        sizes = self._relative_sizes(len(mixtures), len(image_set))
        return allocate_by_mixture(image_set, groups, mixtures, sizes, self.generator("draw"))

    def by_group(self, image_set: ImageSet, groups: Ints, has_group: NDArray[np.bool_]) -> Ints:
        """Assign whole groups to the clients that have them; see `allocate_by_group`."""
        sizes = self._relative_sizes(len(has_group), len(image_set))
        return allocate_by_group(image_set, groups, has_group, sizes, self.generator("draw"))

    def _setting_names(self) -> list[str]:
        """Return the fields that shape the assignment, those of the scheme first."""
        common = {field.name for field in fields(AbstractScheme)}
        return [field.name for field in fields(self) if field.name not in common] + ["quantity"]

    def _relative_sizes(self, clients: int, images: int) -> Floats:
        """Return the fraction of all images that each client is to get, (clients,)."""
        if images < clients * self.min_images:
            raise PartitionError(
                f"clients={clients} with partition.min_images={self.min_images} need at least "
                f"{clients * self.min_images} images, but the data has {images}; lower clients or partition.min_images."
            )
        if self.quantity is None:
            return np.full(clients, 1 / clients)
        logs = self.quantity * self.generator("quantity").standard_normal(clients)
        sizes = np.exp(logs - logs.max())
        return np.asarray(sizes / sizes.sum())

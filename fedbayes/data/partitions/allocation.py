"""How images reach clients.

Every scheme of `partition.py` deals images out in one of two ways: clients draw from mixtures, or they hold groups.
What the source gives as validation or test images is dealt out by the same mixtures or holdings as the rest, but apart.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from fedbayes.data.datasets import GIVEN_TEST, GIVEN_TRAIN, GIVEN_VALIDATION, ImageSet
from fedbayes.errors import ConfigError, PartitionError, require_number, require_whole
from fedbayes.seeding import numpy_generator

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@contextmanager
def as_partition_error() -> Iterator[None]:
    """Turns the `ConfigError` of a range check into the `PartitionError` that this package promises."""
    try:
        yield
    except ConfigError as error:
        raise PartitionError(str(error)) from error


@final
@dataclass(frozen=True)
class Rules:
    """What all schemes have in common.

    Args:
        scheme: the scheme's name; with `seed` it names the random streams.
        clients: number of clients.
        seed: of the partition and the splits.
        min_images: fewest images of any client over its three splits, at least 3.
        quantity: standard deviation of the logarithm of the client sizes; None: equal sizes.
        max_train: most training images of any client; None: no cap.
        validation: share of a client's images, between 0 and 1.
        test: share of a client's images, between 0 and 1.

    Raises:
        ConfigError: if `seed` is not a whole number of at least 0.
        PartitionError: if any other value cannot work.
    """

    scheme: str
    clients: int
    seed: int
    min_images: int
    quantity: float | None
    max_train: int | None
    validation: float
    test: float

    def __post_init__(self) -> None:
        """Checks the ranges."""
        require_whole("partition.seed", self.seed, 0)
        with as_partition_error():
            require_whole("clients", self.clients, 1)
            require_whole("partition.min_images", self.min_images, 3)
            if self.max_train is not None:
                require_whole("partition.max_train", self.max_train, 1)
            if self.quantity is not None:
                require_number("partition.quantity", self.quantity, 0)
            require_number("partition.validation", self.validation, 0, 1, open_low=True)
            require_number("partition.test", self.test, 0, 1, open_low=True)
        if self.validation + self.test >= 1:
            raise PartitionError(
                f"partition.validation={self.validation} and partition.test={self.test} leave nothing to train on; "
                "choose shares with a sum below 1."
            )

    def generator(self, *purpose: str | int) -> np.random.Generator:
        """The random stream for one purpose within this partition."""
        return numpy_generator(self.seed, "partition", self.scheme, *purpose)

    def dirichlet(self, alpha: float, size: int, place: str) -> Floats:
        """One draw per client from the symmetric Dirichlet(alpha) over `size` groups, (clients, size).

        Args:
            alpha: concentration; near 0 one group takes all, large values give equal shares.
            size: number of groups.
            place: the key that set alpha; also names the random stream.

        Returns:
            Shares; each row sums to 1.

        Raises:
            PartitionError: if alpha is not positive and finite.
        """
        with as_partition_error():
            require_number(f"partition.{place}", alpha, 0, open_low=True)
        return self.generator(place).dirichlet(np.full(size, alpha), size=self.clients)

    def shares(self, count: int) -> Floats:
        """Share of all images that each client is to receive, (clients,).

        Raises:
            PartitionError: if `count` images cannot give every client `min_images`.
        """
        if count < self.clients * self.min_images:
            raise PartitionError(
                f"clients={self.clients} with partition.min_images={self.min_images} need at least "
                f"{self.clients * self.min_images} images, but the data has {count}; lower clients or "
                "partition.min_images."
            )
        if self.quantity is None:
            return np.full(self.clients, 1 / self.clients)
        logs = self.quantity * self.generator("quantity").standard_normal(self.clients)
        sizes = np.exp(logs - logs.max())
        return np.asarray(sizes / sizes.sum())


def deal_by_mixture(image_set: ImageSet, groups: Ints, mixtures: Floats, rules: Rules) -> Ints:
    """Deals all images out; clients draw one by one from their mixtures, renormalised over what is left.

    Args:
        image_set: the images.
        groups: group of each image, (N,).
        mixtures: how much each client wants of each group, (clients, groups).
        rules: sizes and seed.

    Returns:
        The client of each image, (N,).
    """
    shares = rules.shares(len(image_set))
    owner = np.full(len(image_set), -1)
    sizes = np.zeros(rules.clients, np.int64)
    rng = rules.generator("draw")
    for pool in _pools(image_set):
        capacity = _apportion(len(pool), shares, sizes)
        sizes += capacity
        owner[pool] = _draw(groups[pool], mixtures, capacity, rng)
    return owner


def deal_by_holding(image_set: ImageSet, groups: Ints, holdings: NDArray[np.bool_], rules: Rules) -> Ints:
    """Deals out every group's images among the clients that hold the group, in proportion to the clients' shares.

    Args:
        image_set: the images.
        groups: group of each image, (N,).
        holdings: which client holds which group, (clients, groups).
        rules: sizes and seed.

    Returns:
        The client of each image, (N,); -1 for groups that nobody holds.
    """
    shares = rules.shares(len(image_set))
    owner = np.full(len(image_set), -1)
    sizes = np.zeros(rules.clients, np.int64)
    rng = rules.generator("draw")
    for pool in _pools(image_set):
        for group in np.unique(groups[pool]):
            holders = np.flatnonzero(holdings[:, group])
            if len(holders):
                images = rng.permutation(pool[groups[pool] == group])
                counts = _apportion(len(images), shares[holders] / shares[holders].sum(), sizes[holders])
                sizes[holders] += counts
                owner[images] = np.repeat(holders, counts)
    return owner


def _pools(image_set: ImageSet) -> Iterator[Ints]:
    """Indices of the images to train on, then of those given as validation, then as test; empty ones left out."""
    given = image_set.given_split.numpy()
    for low, high in ((-1, GIVEN_TRAIN), (GIVEN_VALIDATION, GIVEN_VALIDATION), (GIVEN_TEST, GIVEN_TEST)):
        pool = np.flatnonzero((given >= low) & (given <= high))
        if len(pool):
            yield pool


def _apportion(total: int, shares: Floats, so_far: Ints) -> Ints:
    """Whole numbers with sum `total`, by largest remainder; equal remainders go to whoever has less so far."""
    exact = total * shares
    counts = np.floor(exact).astype(np.int64)
    # Rounded, so that shares that differ only by rounding errors count as equal.
    remainder = np.round(exact - counts, 9)
    counts[np.lexsort((so_far, -remainder))[: total - counts.sum()]] += 1
    return counts


def _draw(groups: Ints, mixtures: Floats, capacity: Ints, rng: np.random.Generator) -> Ints:
    """The client of each image when client i draws `capacity[i]` images; the capacities' sum is the number of images.

    All outstanding draws are made at once. Where more draws fall on a group than it has images, random ones of them
    succeed and the others are made again without it: as if the clients had taken turns, but in few passes.
    """
    clients, width = mixtures.shape
    shuffled = rng.permutation(len(groups))
    stock = shuffled[np.argsort(groups[shuffled], kind="stable")]  # by group, in random order within each
    left = np.bincount(groups, minlength=width)
    following = np.cumsum(left) - left  # where each group's next image lies in the stock
    missing = capacity.copy()
    owner = np.full(len(groups), -1)
    while missing.any():
        active = np.flatnonzero(missing)
        weights = np.where(left > 0, mixtures[active], 0.0)
        weights[weights.sum(1) < 1e-300] = left  # nothing it wants is left, so it takes what comes
        cumulative = weights.cumsum(1)
        cumulative /= cumulative[:, -1:]
        rows = rng.permutation(np.repeat(np.arange(len(active)), missing[active]))
        # One search serves all rows: row r of the table lies between r and r + 1.
        table = (cumulative + np.arange(len(active))[:, None]).ravel()
        drawn = np.searchsorted(table, rows + rng.random(len(rows)), side="right") - rows * width
        drawn = np.clip(drawn, 0, width - 1)
        order = np.argsort(drawn, kind="stable")
        rows, drawn = rows[order], drawn[order]
        rank = np.arange(len(drawn)) - np.searchsorted(drawn, drawn)  # how many drew from the same group before
        success = rank < left[drawn]
        rows, drawn, rank = rows[success], drawn[success], rank[success]
        owner[stock[following[drawn] + rank]] = active[rows]
        taken = np.bincount(drawn, minlength=width)
        left -= taken
        following += taken
        missing -= np.bincount(active[rows], minlength=clients)
    return owner

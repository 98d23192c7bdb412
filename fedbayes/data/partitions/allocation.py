"""Two ways to allocate images to clients: by mixtures of groups that clients want, or by groups that they have.

Validation and test images that the source gives are allocated by the same mixtures or groups, apart from the others.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from fedbayes.data.datasets import GIVEN_TEST, GIVEN_TRAIN, GIVEN_VALIDATION, ImageSet

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def allocate_by_mixture(
    image_set: ImageSet, groups: Ints, mixtures: Floats, sizes: Floats, rng: np.random.Generator
) -> Ints:
    """Return the client of each image, (N,): clients choose in turn by their mixtures, renormalised over what is left.

    Args:
        image_set: the images.
        groups: group of each image, (N,).
        mixtures: how much each client wants of each group, (clients, groups).
        sizes: fraction of all images that each client gets, (clients,).
        rng: random generator.
    """
    owner = np.full(len(image_set), -1)
    totals = np.zeros(len(sizes), np.int64)
    for pool in _pools(image_set):
        capacity = _apportion(len(pool), sizes, totals)
        totals += capacity
        owner[pool] = _sample_owners(groups[pool], mixtures, capacity, rng)
    return owner


def allocate_by_group(
    image_set: ImageSet, groups: Ints, has_group: NDArray[np.bool_], sizes: Floats, rng: np.random.Generator
) -> Ints:
    """Return the client of each image, (N,): the clients that have its group share it in proportion to `sizes`.

    `has_group` is (clients, groups), `sizes` is (clients,). Images of groups that no client has get -1.
    """
    owner = np.full(len(image_set), -1)
    totals = np.zeros(len(sizes), np.int64)
    for pool in _pools(image_set):
        for group in np.unique(groups[pool]):
            members = np.flatnonzero(has_group[:, group])
            if len(members):
                images = rng.permutation(pool[groups[pool] == group])
                counts = _apportion(len(images), sizes[members] / sizes[members].sum(), totals[members])
                totals[members] += counts
                owner[images] = np.repeat(members, counts)
    return owner


def _pools(image_set: ImageSet) -> Iterator[Ints]:
    """Yield the indices of training, of given validation and of given test images, those that are not empty."""
    split = image_set.given_split.numpy().clip(GIVEN_TRAIN)
    for pool in (np.flatnonzero(split == kind) for kind in (GIVEN_TRAIN, GIVEN_VALIDATION, GIVEN_TEST)):
        if len(pool):
            yield pool


def _apportion(total: int, fractions: Floats, so_far: Ints) -> Ints:
    """Divide `total` into whole numbers by largest remainder; equal remainders go to the client with fewer so far."""
    exact = total * fractions
    counts = np.floor(exact).astype(np.int64)
    # Rounded, so that fractions that differ only by rounding errors count as equal.
    remainder = np.round(exact - counts, 9)
    counts[np.lexsort((so_far, -remainder))[: total - counts.sum()]] += 1
    return counts


def _sample_owners(groups: Ints, mixtures: Floats, capacity: Ints, rng: np.random.Generator) -> Ints:
    """Return the client of each image when client i chooses `capacity[i]` images; capacities sum to all images.

    All outstanding choices are made at once. Where more fall on a group than it has images, random ones of them
    succeed and the others are repeated without it: as if the clients had taken turns, but in few passes.
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
        weights[weights.sum(1) < 1e-300] = left  # of what the client wants nothing is left
        cumulative = weights.cumsum(1)
        cumulative /= cumulative[:, -1:]
        rows = rng.permutation(np.repeat(np.arange(len(active)), missing[active]))
        # One search serves all rows: row r of the table lies between r and r + 1.
        table = (cumulative + np.arange(len(active))[:, None]).ravel()
        choice = np.searchsorted(table, rows + rng.random(len(rows)), side="right") - rows * width
        choice = np.clip(choice, 0, width - 1)
        order = np.argsort(choice, kind="stable")
        rows, choice = rows[order], choice[order]
        rank = np.arange(len(choice)) - np.searchsorted(choice, choice)  # how many chose the same group before
        success = rank < left[choice]
        rows, choice, rank = rows[success], choice[success], rank[success]
        owner[stock[following[choice] + rank]] = active[rows]
        taken = np.bincount(choice, minlength=width)
        left -= taken
        following += taken
        missing -= np.bincount(active[rows], minlength=clients)
    return owner

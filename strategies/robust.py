r"""Aggregates that a fraction of malicious clients cannot move at will, each of flat vectors `(M, d)`.

    median             of each entry (Yin et al., ICML 2018, arXiv 1803.01498)
    trimmed_mean       of each entry, without the ceil(f M) largest and smallest (same paper); Flower's `trim_mean`
    krum               the update with the least sum of squared distances to its M - ceil(f M) - 2 nearest ones
    multi_krum         the mean of the M - ceil(f M) - 2 updates for which that sum is least, at least one
                       (both Blanchard et al., NeurIPS 2017, arXiv 1703.02757)
    geometric_median   argmin_z sum_i |z - w_i| by Weiszfeld's steps (Pillutla et al., IEEE TSP 2022, arXiv 1912.13445)

None weighs clients by their images: a client says itself how many it has. f is the fraction of malicious clients
allowed for; Krum's proof needs M > 2 ceil(f M) + 2. Flower's own Krum expands squared distances in float32, which
cancels where updates are close; here they are summed in float64.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from flwr.serverapp.strategy.fedtrimmedavg import trim_mean
from scipy.spatial.distance import pdist, squareform

from fedbayes.arrays import Arrays
from fedbayes.comm.messages import ClientUpdate

MAX_STEPS, TOLERANCE = 1000, 1e-10  # Weiszfeld's steps at most, and the relative step at which they end


def krum(vectors: np.ndarray, fraction: float, *, several: bool) -> np.ndarray:
    """Return Krum, or the mean of the several best; of equal scores the earlier client's counts."""
    count = len(vectors)
    trusted = max(1, count - allowed(fraction, count) - 2)
    distances = np.sort(squareform(pdist(vectors, "sqeuclidean")), axis=1)[:, 1:]  # without each one's own 0
    scores = distances[:, :trusted].sum(1)
    best = np.sort(np.argsort(scores, kind="stable")[: trusted if several else 1])
    return np.asarray(vectors[best].mean(0))


def geometric_median(vectors: np.ndarray) -> np.ndarray:
    """Return the point with the least sum of distances to all, to a relative 1e-10.

    Weiszfeld's step divides by distances; where the point lies on a client it is that of Vardi and Zhang (PNAS 2000).
    """
    point = np.asarray(np.median(vectors, axis=0))
    for _ in range(MAX_STEPS):
        distances = np.linalg.norm(vectors - point, axis=1)
        scale = distances.max()
        away = distances > 1e-12 * scale
        if scale == 0 or not away.any():
            break
        weights = 1 / distances[away]
        after = weights @ vectors[away] / weights.sum()
        pull = np.linalg.norm(weights @ (vectors[away] - point))
        pull_back = min(1.0, (~away).sum() / pull) if pull > 0 else 1.0  # by the clients that it lies on
        after = (1 - pull_back) * after + pull_back * point
        moved, point = np.linalg.norm(after - point), after
        if moved <= TOLERANCE * scale:
            break
    return point


def allowed(fraction: float, count: int) -> int:
    """Return how many clients a fraction of malicious ones is, rounded up."""
    return math.ceil(fraction * count - 1e-9)


def trimmed_mean(vectors: np.ndarray, fraction: float) -> np.ndarray:
    """Return the mean of each entry without its ceil(f M) largest and smallest values; at least the median is left."""
    count = len(vectors)
    cut = min(allowed(fraction, count), (count - 1) // 2)
    return np.asarray(trim_mean(vectors, (cut + 1e-6) / count))  # it takes the whole part of its product with count


ROBUST: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "median": lambda vectors, _: np.asarray(np.median(vectors, axis=0)),
    "trimmed_mean": trimmed_mean,
    "krum": lambda vectors, fraction: krum(vectors, fraction, several=False),
    "multi_krum": lambda vectors, fraction: krum(vectors, fraction, several=True),
    "geometric_median": lambda vectors, _: geometric_median(vectors),
}
"""The aggregate of each name above, for f below 1/2."""


def combined(updates: Sequence[ClientUpdate], name: str, fraction: float) -> Arrays:
    """Return an aggregate of updates by its name, all arrays of a client taken as one vector, in float64."""
    first = updates[0].arrays
    rows = [[update.arrays[key].astype(np.float64).ravel() for key in first] for update in updates]
    vector = ROBUST[name](np.stack([np.concatenate([*row, np.empty(0)]) for row in rows]), fraction)
    parts = np.split(vector, np.cumsum([array.size for array in first.values()], dtype=int))  # the last one is empty
    return {
        key: np.asarray(part.reshape(array.shape), dtype=array.dtype)
        for (key, array), part in zip(first.items(), parts, strict=False)
    }

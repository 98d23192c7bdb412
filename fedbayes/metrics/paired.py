"""Paired comparison of two groups of runs on the same test images: a bootstrap over clients, which bring their images.

For every seed s both runs have the same partition, so image i of client c is predicted by both. With d the difference
of a score (1 if correct, or NLL in nats) between them,

    D = mean over s of mean over c of mean over i of d[s, c, i],

and a replicate samples, for each seed, C clients with replacement, each with all of its images: the clients' means
carry what varies between clients and between images alike, and images sampled once more inside would count the latter
twice (Davison & Hinkley, Bootstrap Methods and their Application, 1997, section 3.8). Deviations are scaled by
sqrt(C / (C - 1)), without which few clients give too narrow an interval. Seeds split the same images anew, so an image
may be tested in several; the interval is widened by the covariance that this brings, as in clustering by two keys
(Cameron, Gelbach & Miller, J. Business & Economic Statistics 29, 2011). The interval holds the middle 95 % of the
replicates. It covers which clients and images a study has happened to see; it does not cover other seeds than those
that were run, nor that a table holds many intervals.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, final

from fedbayes.errors import RunError
from fedbayes.storage.predictions import Predictions, read_predictions
from fedbayes.storage.run_dir import PARTITION, read_json

if TYPE_CHECKING:
    import numpy as np

REPLICATES = 2000
SCORES = ("accuracy", "nll")


@final
@dataclass(frozen=True)
class Difference:
    """A mean difference and the interval that holds the middle 95 % of its replicates."""

    mean: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0


def scores(predictions: Predictions, score: str) -> "np.ndarray":
    """Return the score of each test image of a run: `accuracy` is 1 or 0, `nll` in nats."""
    return predictions.nll if score == "nll" else predictions.right.astype(float)


def paired_difference(pairs: Sequence[tuple[Path, Path]], score: str) -> Difference:
    """Return first run minus second run, over pairs with equal partitions.

    Args:
        pairs: run directories of each seed.
        score: one of `SCORES`.

    Raises:
        RunError: if two runs were not evaluated on the same clients' images, or on those of a single client.
    """
    import numpy as np

    seeds, images = [], []
    for pair in pairs:
        first, second = (read_predictions(run) for run in pair)
        if first is None or second is None:
            raise RunError(f"{pair[0]} or {pair[1]} has no predictions; pairs of images need those of both.")
        (first_ids, second_ids), clients = (_tested(run) for run in pair), np.unique(first.partitions)
        same = np.array_equal(first.partitions, second.partitions) and np.array_equal(first.labels, second.labels)
        if not same or any(not first_ids.get(c) or first_ids[c] != second_ids.get(c) for c in clients.tolist()):
            raise RunError(f"{pair[0]} and {pair[1]} were evaluated on different images; run both on one partition.")
        difference = scores(first, score) - scores(second, score)
        seeds.append([difference[first.partitions == client] for client in clients])
        images.append([np.array(first_ids[client]) for client in clients.tolist()])
    return bootstrap(seeds, images)


def _tested(run: Path) -> dict[int, list[int]]:
    """Which images of the data set each client was tested on, in the order of its predictions."""
    clients = read_json(run / PARTITION).get("clients") or []
    return {client["partition"]: (client.get("indices") or {}).get("test") or [] for client in clients}


def bootstrap(
    seeds: Sequence[Sequence["np.ndarray"]],
    images: Sequence[Sequence["np.ndarray"]] | None = None,
    replicates: int = REPLICATES,
) -> Difference:
    """Return the mean difference and its interval.

    Args:
        seeds: for each seed, for each client, the differences of its images.
        images: which image each of them is of; None if no image is in two seeds.
        replicates: samples.

    Raises:
        RunError: if a seed has a single client, of which nothing can be drawn.
    """
    import numpy as np

    if any(len(clients) < 2 for clients in seeds):
        raise RunError("one client says nothing of others; compare runs with two clients at least.")
    rng = np.random.default_rng(0)
    mean, deviations, variance = 0.0, np.zeros(replicates), 0.0
    for clients in seeds:
        means = np.array([client.mean() for client in clients])
        count = len(means)
        deviation = means[rng.integers(count, size=(replicates, count))].mean(1) - means.mean()
        deviations += deviation * math.sqrt(count / (count - 1)) / len(seeds)
        mean += means.mean() / len(seeds)
        variance += means.var(ddof=1) / count / len(seeds) ** 2
    if images is not None and variance > 0:
        deviations *= math.sqrt(1 + max(0.0, shared_covariance(seeds, images)) / variance)
    low, high = np.percentile(mean + deviations, [2.5, 97.5])
    return Difference(float(mean), float(low), float(high))


def shared_covariance(seeds: Sequence[Sequence["np.ndarray"]], images: Sequence[Sequence["np.ndarray"]]) -> float:
    """Return what images that are in several seeds add to the variance of D.

    `2 sum_{s < t} sum_{i in s and t} w_si e_si w_ti e_ti`, with e an image's deviation from its seed's mean, and w its
    weight in D, 1 / (seeds * clients * images of the client).
    """
    import numpy as np

    parts: list[dict[int, float]] = []
    for clients, ids in zip(seeds, images, strict=True):
        centre = np.mean([client.mean() for client in clients])
        part: dict[int, float] = {}
        for client, names in zip(clients, ids, strict=True):
            weighted = (client - centre) / (len(seeds) * len(clients) * len(client))
            for name, value in zip(names.tolist(), weighted.tolist(), strict=True):
                part[name] = part.get(name, 0.0) + value
        parts.append(part)
    return 2 * sum(
        value * other[name] for first, other in combinations(parts, 2) for name, value in first.items() if name in other
    )

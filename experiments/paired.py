"""Paired comparison of two methods on the same test images: a bootstrap over clients, and over images inside each.

For every seed s both runs have the same partition, so image i of client c is predicted by both. With d the difference
of a score (1 if right, or NLL in nats) between them,

    D = mean over s of mean over c of mean over i of d[s, c, i],

and a replicate draws, for each seed, clients with replacement and then images of each drawn client with replacement.
The interval holds the middle 95 % of the replicates. It covers which clients and images a study has happened to see;
it does not cover other seeds than those that were run.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import torch
from safetensors.numpy import load_file

from fedbayes.inference.predictive import negative_log_likelihood
from fedbayes.tracking.run_dir import PREDICTIONS

REPLICATES = 2000


@final
@dataclass(frozen=True)
class Difference:
    """A mean difference and the interval that holds the middle 95 % of its replicates.

    Attributes:
        mean: of the images as they are.
        low: 2.5th percentile.
        high: 97.5th percentile.
    """

    mean: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


def scores(run: Path, score: str) -> tuple[np.ndarray, np.ndarray]:
    """Partition and score of each test image of a run: `accuracy` is 1 or 0, `nll` in nats."""
    said = load_file(run / PREDICTIONS)
    probabilities, labels = torch.from_numpy(said["probabilities"]).double(), torch.from_numpy(said["labels"])
    if score == "accuracy":
        return said["partitions"], (probabilities.argmax(1) == labels).double().numpy()
    return said["partitions"], negative_log_likelihood(probabilities, labels).numpy()


def paired_difference(pairs: Sequence[tuple[Path, Path]], score: str) -> Difference:
    """First run minus second run, over pairs with equal partitions.

    Args:
        pairs: run directories of each seed.
        score: `accuracy` or `nll`.

    Raises:
        ValueError: if two runs were not evaluated on the same clients' images.
    """
    seeds = []
    for first, second in pairs:
        (who, mine), (others, theirs) = scores(first, score), scores(second, score)
        if not np.array_equal(who, others):
            raise ValueError(f"{first} and {second} were evaluated on different images; run both on one partition")
        seeds.append([(mine - theirs)[who == client] for client in np.unique(who)])
    return bootstrap(seeds)


def bootstrap(seeds: Sequence[Sequence[np.ndarray]], replicates: int = REPLICATES) -> Difference:
    """The mean difference and its interval.

    Args:
        seeds: for each seed, for each client, the differences of its images.
        replicates: draws.
    """
    rng = np.random.default_rng(0)
    drawn = np.zeros(replicates)
    for clients in seeds:
        # Every client's resampled means first; which clients a replicate holds is drawn afterwards.
        means = np.stack([one[rng.integers(len(one), size=(replicates, len(one)))].mean(1) for one in clients])
        chosen = rng.integers(len(clients), size=(len(clients), replicates))
        drawn += np.take_along_axis(means, chosen, axis=0).mean(0) / len(seeds)
    mean = float(np.mean([np.mean([one.mean() for one in clients]) for clients in seeds]))
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Difference(mean, float(low), float(high))

"""Paired comparison of two methods on the same test images: a bootstrap over clients, which bring their images along.

    python experiments/paired.py RUN... --against RUN...    # seeds in one order, e.g. DIR/method=x,seed=*

For every seed s both runs have the same partition, so image i of client c is predicted by both. With d the difference
of a score (1 if right, or NLL in nats) between them,

    D = mean over s of mean over c of mean over i of d[s, c, i],

and a replicate draws, for each seed, C clients with replacement, each with all of its images: the clients' means carry
what varies between clients and between images alike, and images drawn once more inside would count the latter twice
(Davison & Hinkley, Bootstrap Methods and their Application, 1997, section 3.8). Deviations are scaled by
sqrt(C / (C - 1)), without which few clients give too narrow an interval. Seeds split the same images anew, so an image
may be tested in several; the interval is widened by the covariance that this brings, as in clustering by two keys
(Cameron, Gelbach & Miller, J. Business & Economic Statistics 29, 2011). The interval holds the middle 95 % of the
replicates. It covers which clients and images a study has happened to see; it does not cover other seeds than those
that were run, nor that a table holds many intervals.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import final

import numpy as np
import torch
from safetensors.numpy import load_file

from fedbayes.metrics.predictive import negative_log_likelihood
from fedbayes.storage.run_dir import PARTITION, PREDICTIONS, read_json

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


def tested(run: Path) -> dict[int, np.ndarray]:
    """Which images of the data set each client was tested on, in the order of its predictions."""
    return {one["partition"]: np.array(one["indices"]["test"]) for one in read_json(run / PARTITION)["clients"]}


def paired_difference(pairs: Sequence[tuple[Path, Path]], score: str) -> Difference:
    """First run minus second run, over pairs with equal partitions.

    Args:
        pairs: run directories of each seed.
        score: `accuracy` or `nll`.

    Raises:
        ValueError: if two runs were not evaluated on the same clients' images, or on those of a single client.
    """
    seeds, images = [], []
    for first, second in pairs:
        (who, mine), (others, theirs) = scores(first, score), scores(second, score)
        ids, same, clients = tested(first), tested(second), np.unique(who)
        if not np.array_equal(who, others) or any(not np.array_equal(ids[one], same[one]) for one in clients):
            raise ValueError(f"{first} and {second} were evaluated on different images; run both on one partition")
        seeds.append([(mine - theirs)[who == client] for client in clients])
        images.append([ids[client] for client in clients])
    return bootstrap(seeds, images)


def bootstrap(
    seeds: Sequence[Sequence[np.ndarray]],
    images: Sequence[Sequence[np.ndarray]] | None = None,
    replicates: int = REPLICATES,
) -> Difference:
    """The mean difference and its interval.

    Args:
        seeds: for each seed, for each client, the differences of its images.
        images: which image each of them is of; None if no image is in two seeds.
        replicates: draws.

    Raises:
        ValueError: if a seed has a single client, of which nothing can be drawn.
    """
    if any(len(clients) < 2 for clients in seeds):
        raise ValueError("one client says nothing of others; compare runs with two clients at least")
    rng = np.random.default_rng(0)
    mean, deviations, variance = 0.0, np.zeros(replicates), 0.0
    for clients in seeds:
        means = np.array([one.mean() for one in clients])
        count = len(means)
        drawn = means[rng.integers(count, size=(replicates, count))].mean(1) - means.mean()
        deviations += drawn * math.sqrt(count / (count - 1)) / len(seeds)
        mean += means.mean() / len(seeds)
        variance += means.var(ddof=1) / count / len(seeds) ** 2
    if images is not None and variance > 0:
        deviations *= math.sqrt(1 + max(0.0, shared_covariance(seeds, images)) / variance)
    low, high = np.percentile(mean + deviations, [2.5, 97.5])
    return Difference(float(mean), float(low), float(high))


def shared_covariance(seeds: Sequence[Sequence[np.ndarray]], images: Sequence[Sequence[np.ndarray]]) -> float:
    """What images that are in several seeds add to the variance of D.

    `2 sum_{s < t} sum_{i in s and t} w_si e_si w_ti e_ti`, with e an image's deviation from its seed's mean, and w its
    weight in D, 1 / (seeds * clients * images of the client).
    """
    parts: list[dict[int, float]] = []
    for clients, ids in zip(seeds, images, strict=True):
        centre = np.mean([one.mean() for one in clients])
        part: dict[int, float] = {}
        for one, names in zip(clients, ids, strict=True):
            for name, value in zip(
                names.tolist(), (one - centre) / (len(seeds) * len(clients) * len(one)), strict=True
            ):
                part[name] = part.get(name, 0.0) + float(value)
        parts.append(part)
    return 2 * sum(
        value * other[name] for first, other in combinations(parts, 2) for name, value in first.items() if name in other
    )


def main() -> None:
    """Print both differences and their intervals."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="run directories of one method, a seed each")
    parser.add_argument("--against", nargs="+", type=Path, required=True, help="those of the other, in the same order")
    args = parser.parse_args()
    if len(args.runs) != len(args.against):
        parser.error(f"{len(args.runs)} runs against {len(args.against)}; name one of each method for every seed")
    for score, scale, unit in (("accuracy", 100, "points"), ("nll", 1, "nats")):
        one = paired_difference(list(zip(args.runs, args.against, strict=True)), score)
        said = f"{scale * one.mean:+.3f} {unit} [{scale * one.low:+.3f}, {scale * one.high:+.3f}]"
        print(f"{score}: {said}, {'clear' if one.is_clear else 'not clear'}")


if __name__ == "__main__":
    main()

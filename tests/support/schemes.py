"""Every partition scheme with settings that work, and sets of empty images to deal out."""

from typing import Any

import numpy as np
import torch

from fedbayes.data.datasets import ImageSet
from fedbayes.data.partitions import schemes
from fedbayes.data.partitions.base import AbstractScheme

COMMON: dict[str, Any] = {
    "seed": 0,
    "min_images": 3,
    "quantity": None,
    "max_train": None,
    "validation": 0.15,
    "test": 0.35,
}
CLASSES: dict[str, tuple[Any, dict[str, Any]]] = {
    "domain_mixture": (schemes.DomainMixture, {"alpha": 0.3}),
    "one_domain": (schemes.OneDomain, {}),
    "label_dirichlet": (schemes.LabelDirichlet, {"alpha": 0.3}),
    "label_shards": (schemes.LabelShards, {"classes_per_client": 2}),
    "domain_and_label": (schemes.DomainAndLabel, {"alpha": 0.3, "label_alpha": 0.3}),
    "iid": (schemes.Iid, {}),
}
ALL = sorted(CLASSES)


def scheme(name: str, **changes: Any) -> AbstractScheme:
    """A scheme with the settings above, some of them changed."""
    kind, settings = CLASSES[name]
    result: AbstractScheme = kind(**COMMON | settings | changes)
    return result


def image_set(cells: dict[tuple[int, int], int], given_split: list[int] | None = None) -> ImageSet:
    """Images by (domain, label): so many of each, in this order."""
    domains = [domain for (domain, _), count in cells.items() for _ in range(count)]
    labels = [label for (_, label), count in cells.items() for _ in range(count)]
    count = len(labels)
    return ImageSet(
        images=torch.zeros(count, 3, 1, 1, dtype=torch.uint8),
        labels=torch.tensor(labels, dtype=torch.int64),
        domains=torch.tensor(domains, dtype=torch.int64),
        classes=tuple(f"class{i}" for i in range(1 + max(label for _, label in cells))),
        domain_names=tuple(f"domain{i}" for i in range(1 + max(domain for domain, _ in cells))),
        given_split=torch.tensor(given_split or [-1] * count, dtype=torch.int8),
        names=tuple(map(str, range(count))),
    )


def grid(domains: int, classes: int, each: int, given_split: list[int] | None = None) -> ImageSet:
    """Equally many images of every domain and class."""
    return image_set({(d, c): each for d in range(domains) for c in range(classes)}, given_split)


def effective(rows: list[dict[str, Any]], key: str) -> np.ndarray:
    """Number of labels or domains that matter to each client: the exponential of the entropy of its mixture."""
    counts = np.array([row[key] for row in rows])
    fractions = counts / counts.sum(1, keepdims=True)
    return np.exp(-(fractions * np.log(fractions + 1e-12)).sum(1))

"""Every partition scheme with settings that work, and sets of empty images to deal out."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from fedbayes.data.datasets import ImageSet
from fedbayes.data.partitions import schemes as partition
from fedbayes.data.partitions.schemes import ClientSplit

Scheme = Callable[..., tuple[ClientSplit, ...]]

COMMON: dict[str, Any] = {
    "seed": 0,
    "min_images": 3,
    "quantity": None,
    "max_train": None,
    "validation": 0.15,
    "test": 0.35,
}
OWN: dict[str, dict[str, Any]] = {
    "domain_mixture": {"alpha": 0.3},
    "one_domain": {},
    "label_dirichlet": {"alpha": 0.3},
    "label_shards": {"classes_per_client": 2},
    "domain_and_label": {"alpha": 0.3, "label_alpha": 0.3},
    "iid": {},
}
ALL = sorted(OWN)


def scheme(name: str, **changes: Any) -> Scheme:
    """A scheme with the settings above, some of them changed."""
    return partial(getattr(partition, name), **COMMON | OWN[name] | changes)


def image_set(cells: dict[tuple[int, int], int], given_split: list[int] | None = None) -> ImageSet:
    """Images by (domain, label): so many of each, in this order."""
    domains = [domain for (domain, _), count in cells.items() for _ in range(count)]
    labels = [label for (_, label), count in cells.items() for _ in range(count)]
    count = len(labels)
    return ImageSet(
        images=torch.zeros(count, 3, 1, 1, dtype=torch.uint8),
        labels=torch.tensor(labels, dtype=torch.int64),
        domains=torch.tensor(domains, dtype=torch.int64),
        classes=tuple(f"class{i}" for i in range(max(labels) + 1)),
        domain_names=tuple(f"domain{i}" for i in range(max(domains) + 1)),
        given_split=torch.tensor(given_split or [-1] * count, dtype=torch.int8),
        names=tuple(map(str, range(count))),
    )


def grid(domains: int, classes: int, each: int, given_split: list[int] | None = None) -> ImageSet:
    """Equally many images of every domain and class."""
    return image_set({(d, c): each for d in range(domains) for c in range(classes)}, given_split)

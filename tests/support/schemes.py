"""Every partition scheme with settings that work."""

from collections.abc import Callable
from functools import partial
from typing import Any

from fedbayes.data import partition
from fedbayes.data.partition import ClientSplit

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

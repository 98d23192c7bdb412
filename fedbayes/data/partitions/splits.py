"""How a client's images become training, validation and test images, and how a partition is written down."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, final

import numpy as np

from fedbayes.data.datasets import GIVEN_TEST, GIVEN_TRAIN, GIVEN_VALIDATION, ImageSet
from fedbayes.data.partitions.allocation import Ints
from fedbayes.errors import PartitionError

GOLDEN = (math.sqrt(5) - 1) / 2


@final
@dataclass(frozen=True, eq=False)
class ClientSplit:
    """The images of a client, as sorted indices into an `ImageSet`.

    Args:
        train: images the client learns from.
        validation: images that choose rounds and settings.
        test: images that are only ever reported on.
        held_out: images of domains that no client's other images come from.
        triggered: copies of test images with the mark of a backdoor, labelled as the attack wants them.
    """

    train: Ints
    validation: Ints
    test: Ints
    held_out: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    triggered: Ints = field(default_factory=lambda: np.empty(0, np.int64))

    def first(self, count: int) -> "ClientSplit":
        """Return the first images of each split that a partition makes."""
        return replace(self, **{name: ids[:count] for name, ids in self.parts().items()})

    def renumbered(self, ids: Ints) -> "ClientSplit":
        """Return the split of images that have the number `ids[i]` where it says i."""
        return replace(self, **{name: ids[part] for name, part in self.parts().items()})

    def parts(self) -> dict[str, Ints]:
        """Return the three splits that a partition makes, by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}


def split_client(
    image_set: ImageSet, images: Ints, fractions: tuple[float, float], max_train: int | None, rng: np.random.Generator
) -> ClientSplit:
    """Divide a client's images, stratified by label and domain to within about two images.

    Args:
        image_set: all images; those given as validation or test images stay that.
        images: indices of the client's images, ascending.
        fractions: of validation and of test images, among the images that are not given as either.
        max_train: most training images; None: no cap.
        rng: random generator.
    """
    given_split = image_set.given_split.numpy()[images]
    pool = images[given_split <= GIVEN_TRAIN]
    strata = (image_set.labels[pool] * len(image_set.domain_names) + image_set.domains[pool]).numpy()
    pool = pool[_spread(strata, rng)]
    num_validation, num_test = split_sizes(len(pool), *fractions)
    start = num_test + num_validation
    return ClientSplit(
        train=np.sort(pool[start:][:max_train]),
        validation=np.sort(np.concatenate([images[given_split == GIVEN_VALIDATION], pool[num_test:start]])),
        test=np.sort(np.concatenate([images[given_split == GIVEN_TEST], pool[:num_test]])),
    )


def split_sizes(total: int, validation: float, test: float) -> tuple[int, int]:
    """Return how many of `total` images are for validation and for tests, by their fractions.

    Fractions are rounded, to at least one image where a fraction is above 0; at least one image is left to train on.
    """
    counts = [max(1, int(total * fraction + 0.5)) if fraction else 0 for fraction in (test, validation)]
    while sum(counts) >= total and max(counts) > 1:
        counts[counts.index(max(counts))] -= 1
    return counts[1], counts[0]


def require_partition(
    result: object, images: int, clients: int, *, may_be_empty: bool = False
) -> tuple[ClientSplit, ...]:
    """Return the result of a partition if it is a `ClientSplit` of so many images for each client.

    With `may_be_empty` a client may have no images here, since it has them elsewhere.

    Raises:
        PartitionError: naming the client and its fault.
    """
    splits = tuple(result) if isinstance(result, Sequence) else ()
    if len(splits) != clients or not all(isinstance(split, ClientSplit) for split in splits):
        entries = f"{len(splits)} entries" if isinstance(result, Sequence) else type(result).__name__
        raise PartitionError(
            f"the partition returned {entries} for clients={clients}; return a ClientSplit for each client."
        )
    for client, split in enumerate(splits):
        parts = split.parts()
        if may_be_empty and not any(map(len, parts.values())):
            continue
        for name, ids in parts.items():
            place = f"client {client} of {clients}: the partition's {name} split"
            if not isinstance(ids, np.ndarray) or not len(ids):
                raise PartitionError(f"{place} is empty or no NumPy array; give every client indices of images.")
            if ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= images:
                raise PartitionError(f"{place} has indices out of 0..{images - 1}; return indices of images.")
    return splits


def describe(splits: Sequence[ClientSplit], image_set: ImageSet, scheme: str) -> dict[str, Any]:
    """Return the object of `partition.json`: which images each client has, and how many by label and by domain.

    These counts leave held-out images out, which are listed where any client has some.
    """
    labels, domains = image_set.labels.numpy(), image_set.domains.numpy()
    held_out = any(len(split.held_out) for split in splits)
    clients = []
    for partition, split in enumerate(splits):
        parts = split.parts()
        images = np.concatenate(list(parts.values()))
        if held_out:
            parts["held_out"] = split.held_out
        clients.append(
            {
                "partition": partition,
                **{name: len(indices) for name, indices in parts.items()},
                "labels": np.bincount(labels[images], minlength=len(image_set.classes)).tolist(),
                "domains": np.bincount(domains[images], minlength=len(image_set.domain_names)).tolist(),
                "indices": {name: indices.tolist() for name, indices in parts.items()},
            }
        )
    return {
        "scheme": scheme,
        "classes": list(image_set.classes),
        "domains": list(image_set.domain_names),
        "clients": clients,
    }


def _spread(strata: Ints, rng: np.random.Generator) -> Ints:
    """Return an order in which every stretch has each stratum in proportion.

    Images are lined up by stratum, at random within each, and the i-th gets the key frac(u + i * golden ratio). Any run
    of the line then puts its part of images, give or take two, into any interval of keys. And a prefix of the order
    lies within every longer prefix, so the training images under a low cap are among those under a higher one.
    """
    shuffled = rng.permutation(len(strata))
    line = shuffled[np.argsort(strata[shuffled], kind="stable")]
    keys = (rng.random() + np.arange(len(strata)) * GOLDEN) % 1
    return np.asarray(line[np.argsort(keys)])

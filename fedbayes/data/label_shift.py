"""Clients whose test images have other classes than their training images: a label shift between the two."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fedbayes.data.datasets import ImageSet
from fedbayes.data.partitions.splits import ClientSplit
from fedbayes.errors import PartitionError, require_choice
from fedbayes.seeding import numpy_generator

KINDS = ("uniform", "reversed")


def shift_labels(images: ImageSet, splits: Sequence[ClientSplit], kind: object, seed: int) -> tuple[ClientSplit, ...]:
    """Sample each client's test images anew, with other classes and, as far as there are images, its domains.

    They come without replacement from the test images of all clients that are neither training nor validation images of
    the client.

    `kind` is `uniform` for equally many of each class, `reversed` for as many of a client's rarest training class as it
    had of its most frequent one, and so on, or None for the splits as they are.

    Raises:
        ConfigError: if `kind` is unknown.
        PartitionError: if a client has no such image.
    """
    if kind is None:
        return tuple(splits)
    require_choice("evaluate.label_shift", kind, KINDS)
    labels, domains = images.labels.numpy(), images.domains.numpy()
    classes, pool = len(images.classes), np.unique(np.concatenate([split.test for split in splits]))
    shifted = []
    for client, split in enumerate(splits):
        rng = numpy_generator(seed, client, "label shift")
        candidates = np.setdiff1d(pool, np.concatenate([split.train, split.validation]))
        fractions = np.full(classes, 1 / classes)
        if kind == "reversed":
            counts = np.bincount(labels[split.train], minlength=classes)
            fractions[np.argsort(counts, kind="stable")] = np.sort(counts)[::-1] / max(1, counts.sum())
        sizes = rng.multinomial(len(split.test), fractions / fractions.sum())
        mixture = np.bincount(domains[split.test], minlength=len(images.domain_names)) + 1e-6
        parts = []
        for label, size in enumerate(sizes):
            members = candidates[labels[candidates] == label]
            of_domains = domains[members]
            weights = mixture[of_domains] / np.bincount(of_domains, minlength=len(mixture))[of_domains]
            if count := min(size, len(members)):
                parts.append(rng.choice(members, count, replace=False, p=weights / weights.sum()))
        test = np.sort(np.concatenate(parts)) if parts else candidates[:0]
        if not len(test):
            raise PartitionError(f"evaluate.label_shift={kind} leaves client {client} no test image; set it to null.")
        shifted.append(replace(split, test=test))
    return tuple(shifted)

"""How a client's images become training, validation and test images, and how a partition is written down."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np

from fedbayes.data.datasets import GIVEN_TEST, GIVEN_TRAIN, GIVEN_VALIDATION, ImageSet
from fedbayes.data.partitions.allocation import Ints, Rules
from fedbayes.errors import PartitionError

KINDS = {"train": "training", "validation": "validation", "test": "tests"}
GOLDEN = (math.sqrt(5) - 1) / 2


@final
@dataclass(frozen=True, eq=False)
class ClientSplit:
    """The images of one client, as indices into an `ImageSet`; each array is sorted.

    Args:
        train: images the client learns from.
        validation: images that choose rounds and settings.
        test: images that are only ever reported on.
        held_out: images of domains that no client's other images come from, reported on beside `test`.
        triggered: copies of test images with the mark of a backdoor, labelled as the attack wants them.
    """

    train: Ints
    validation: Ints
    test: Ints
    held_out: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    triggered: Ints = field(default_factory=lambda: np.empty(0, np.int64))


def split(image_set: ImageSet, owner: Ints, rules: Rules, settings: str, remedy: str) -> tuple[ClientSplit, ...]:
    """Divides every client's images, stratified by label and domain to within about two images.

    Images given as validation or test stay what they are, and then nothing else becomes that.

    Args:
        image_set: the images.
        owner: the client of each image or -1, (N,).
        rules: shares, caps and seed.
        settings: what the scheme was asked for, for the error message.
        remedy: what to change when a client received too little, for the error message.

    Returns:
        One division per client.

    Raises:
        PartitionError: if a client has fewer than `min_images` images or lacks one of the three splits.
    """
    by_client = np.argsort(owner, kind="stable")
    bounds = np.searchsorted(owner[by_client], np.arange(rules.clients + 1))
    strata = (image_set.labels * len(image_set.domain_names) + image_set.domains).numpy()
    given = image_set.given_split.numpy()
    shares = {
        GIVEN_TEST: 0.0 if (given == GIVEN_TEST).any() else rules.test,
        GIVEN_VALIDATION: 0.0 if (given == GIVEN_VALIDATION).any() else rules.validation,
    }
    splits = []
    for client in range(rules.clients):
        mine = by_client[bounds[client] : bounds[client + 1]]  # sorted, as the order above is stable
        who = f"client {client} of {rules.clients} received"
        if len(mine) < rules.min_images:
            raise PartitionError(f"{who} {len(mine)} images ({settings}, min_images={rules.min_images}); {remedy}.")
        free = mine[given[mine] <= GIVEN_TRAIN]
        free = free[_spread(strata[free], rules.generator("split", client))]
        start, parts = 0, {}
        for which, count in _counts(len(free), shares).items():
            parts[which] = np.sort(np.concatenate([mine[given[mine] == which], free[start : start + count]]))
            start += count
        train = np.sort(free[start:][: rules.max_train])
        one = ClientSplit(train=train, validation=parts[GIVEN_VALIDATION], test=parts[GIVEN_TEST])
        for name in KINDS:
            if not len(getattr(one, name)):
                raise PartitionError(f"{who} no image for {KINDS[name]} ({settings}); {remedy}.")
        splits.append(one)
    return tuple(splits)


def require_divisions(found: object, images: int, clients: int, *, elsewhere: bool) -> tuple[ClientSplit, ...]:
    """Return what a partition gave if it divides these images among these clients.

    Args:
        found: a `ClientSplit` for each client.
        images: how many there are to divide.
        clients: number of clients.
        elsewhere: whether clients may have all their images somewhere else.

    Raises:
        PartitionError: naming the client and what is wrong.
    """
    splits = tuple(found) if isinstance(found, Sequence) else ()
    if len(splits) != clients or not all(isinstance(one, ClientSplit) for one in splits):
        what = f"{len(splits)} entries" if isinstance(found, Sequence) else type(found).__name__
        raise PartitionError(
            f"the partition gave {what} for clients={clients}; return one ClientSplit for each client."
        )
    for client, one in enumerate(splits):
        parts = {KINDS[name]: getattr(one, name) for name in KINDS}
        if elsewhere and not any(map(len, parts.values())):
            continue
        for name, ids in parts.items():
            who = f"the partition gave client {client} of {clients}"
            if not isinstance(ids, np.ndarray):
                raise PartitionError(f"{who} images for {name} as a {type(ids).__name__}; return a NumPy array.")
            if not len(ids):
                raise PartitionError(f"{who} no images for {name}; every client needs some for all three.")
            if ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= images:
                raise PartitionError(
                    f"{who} images for {name} that are none of 0 to {images - 1}; return their indices."
                )
    return splits


def describe(splits: Sequence[ClientSplit], image_set: ImageSet, scheme: str) -> dict[str, Any]:
    """What `partition.json` says: who holds how much of what, and which images.

    Args:
        splits: the images of each client.
        image_set: the images.
        scheme: the partition's name.

    Returns:
        Only lists, dicts, text and numbers. Counts per label and per domain are images over the three splits that
        have been partitioned. Held-out images are listed where any client has some.
    """
    labels, domains = image_set.labels.numpy(), image_set.domains.numpy()
    held_out = any(len(one.held_out) for one in splits)
    clients = []
    for partition, one in enumerate(splits):
        parts = {"train": one.train, "validation": one.validation, "test": one.test}
        everything = np.concatenate(list(parts.values()))
        if held_out:
            parts["held_out"] = one.held_out
        clients.append(
            {
                "partition": partition,
                **{name: len(indices) for name, indices in parts.items()},
                "labels": np.bincount(labels[everything], minlength=len(image_set.classes)).tolist(),
                "domains": np.bincount(domains[everything], minlength=len(image_set.domain_names)).tolist(),
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
    """An order in which every stretch holds each stratum in proportion.

    Images are lined up by stratum, at random within each, and the i-th gets the key frac(u + i * golden ratio). Any run
    of the line then puts its share of images, give or take two, into any interval of keys. And a prefix of the order
    lies within every longer prefix, so the training images under a low cap are among those under a higher one.
    """
    shuffled = rng.permutation(len(strata))
    line = shuffled[np.argsort(strata[shuffled], kind="stable")]
    keys = (rng.random() + np.arange(len(strata)) * GOLDEN) % 1
    return np.asarray(line[np.argsort(keys)])


def shares_of(total: int, validation: float, test: float) -> tuple[int, int]:
    """Validation and test images of a client with `total` images; what is left, at least one, is to train on."""
    counts = _counts(total, {GIVEN_TEST: test, GIVEN_VALIDATION: validation})
    return counts[GIVEN_VALIDATION], counts[GIVEN_TEST]


def _counts(total: int, shares: dict[int, float]) -> dict[int, int]:
    """Images per held-out split: the share rounded, at least one where a share is asked, and one left to train on."""
    counts = {which: max(1, int(total * share + 0.5)) if share else 0 for which, share in shares.items()}
    while sum(counts.values()) >= total and max(counts.values()) > 1:
        counts[max(counts, key=lambda which: counts[which])] -= 1
    return counts

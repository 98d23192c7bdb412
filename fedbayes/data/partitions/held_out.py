"""Domains that no client knows: their images leave before the partition and come back for evaluation alone."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from fedbayes.data.datasets import ImageSet
from fedbayes.data.partitions.splits import ClientSplit
from fedbayes.errors import ConfigError, PartitionError
from fedbayes.seeding import numpy_generator

KEY = "evaluate.held_out"


def hold_out(image_set: ImageSet, domains: object) -> tuple[ImageSet, ImageSet]:
    """The images to partition, and all images in an order in which those come first.

    Domains are renumbered in the same way: those that stay first, then those held out, each part as the data has it.

    Args:
        image_set: the images.
        domains: names of the domains held out; for none both results are the images as they are.

    Returns:
        The images to partition, whose indices count in the second result, too; and all images.

    Raises:
        ConfigError: if `domains` is not a list of names that the data has, or leaves no domain with images.
    """
    known = image_set.domain_names
    if not isinstance(domains, Sequence) or isinstance(domains, str):
        raise ConfigError(f"{KEY}={domains} is not a list; write [{'' if domains is None else domains}].")
    names = [str(one) for one in domains]
    if not names:
        return image_set, image_set
    images = dict(zip(known, torch.bincount(image_set.domains, minlength=len(known)).tolist(), strict=True))
    for name in names:
        if not images.get(name):
            what = "has no images" if name in images else "is no domain of the data"
            choices = ", ".join(one for one, count in images.items() if count)
            raise ConfigError(f"{KEY}=[{', '.join(names)}]: {name} {what}; choose among {choices}.")
    staying = tuple(name for name in known if name not in names)
    if not sum(images[name] for name in staying):
        raise ConfigError(f"{KEY}=[{', '.join(names)}] leaves no domain to train on; take at least one off the list.")
    order_of_names = (*staying, *(name for name in known if name in names))
    renumbered = torch.tensor([order_of_names.index(name) for name in known])[image_set.domains]
    order = (renumbered >= len(staying)).long().argsort(stable=True)
    count = sum(images[name] for name in staying)
    whole = ImageSet(
        images=image_set.images[order],
        labels=image_set.labels[order],
        domains=renumbered[order],
        classes=image_set.classes,
        domain_names=order_of_names,
        given_split=image_set.given_split[order],
        names=tuple(image_set.names[i] for i in order.tolist()),
    )
    inside = replace(
        whole,
        images=whole.images[:count],
        labels=whole.labels[:count],
        domains=whole.domains[:count],
        domain_names=staying,
        given_split=whole.given_split[:count],
        names=whole.names[:count],
    )
    return inside, whole


def deal_out(splits: Sequence[ClientSplit], inside: int, total: int, seed: int) -> tuple[ClientSplit, ...]:
    """Give each client its share of the held-out images, drawn from `partition.seed` alone.

    Shares are disjoint, use every image and differ by one image at most.

    Args:
        splits: of the images that are not held out.
        inside: how many those are; held-out images are numbered from there.
        total: images altogether.
        seed: of the partition.

    Returns:
        The same splits, each with its `held_out`.

    Raises:
        PartitionError: if there are fewer held-out images than clients, as every client is asked for predictions.
    """
    if total == inside:
        return tuple(splits)
    if total - inside < len(splits):
        raise PartitionError(
            f"clients={len(splits)} cannot share the {total - inside} images of the domains in {KEY}; lower clients to "
            f"{total - inside} or hold out further domains."
        )
    dealt = inside + numpy_generator(seed, "partition", "held_out").permutation(total - inside)
    return tuple(replace(one, held_out=np.sort(dealt[i :: len(splits)])) for i, one in enumerate(splits))

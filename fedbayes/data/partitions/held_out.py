"""Domains that no client has: their images leave before the partition and come back for evaluation alone."""

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
    """Return the images to partition, and all images in an order in which those come first.

    Domains are renumbered in the same way: those that stay first, then those held out, each part as the data has it.

    Raises:
        ConfigError: if `domains` is not a list of names that the data has, or leaves no domain with images.
    """
    if not isinstance(domains, Sequence) or isinstance(domains, str):
        raise ConfigError(f"{KEY}={domains} is not a list; write [{'' if domains is None else domains}].")
    names = [str(name) for name in domains]
    if not names:
        return image_set, image_set
    known = image_set.domain_names
    images = dict(zip(known, image_set.domains.bincount(minlength=len(known)).tolist(), strict=True))
    if unknown := [name for name in names if not images.get(name)]:
        choices = ", ".join(domain for domain, count in images.items() if count)
        raise ConfigError(f"{KEY}=[{', '.join(names)}]: {unknown[0]} has no images; choose among {choices}.")
    staying = tuple(name for name in known if name not in names)
    count = sum(images[name] for name in staying)
    if not count:
        raise ConfigError(f"{KEY}=[{', '.join(names)}] leaves no domain to train on; take at least one off the list.")
    domain_names = (*staying, *(name for name in known if name in names))
    renumbered = torch.tensor([domain_names.index(name) for name in known])[image_set.domains]
    order = (renumbered >= len(staying)).long().argsort(stable=True)
    whole = replace(image_set.subset(order), domains=renumbered[order], domain_names=domain_names)
    return replace(whole.subset(slice(count)), domain_names=staying), whole


def share_held_out(splits: Sequence[ClientSplit], inside: int, total: int, seed: int) -> tuple[ClientSplit, ...]:
    """Divide the held-out images among the clients at random, by `partition.seed` alone.

    Parts are disjoint, use every image and differ by one image at most.

    Args:
        splits: of the images that are not held out.
        inside: how many those are; held-out images are numbered from there.
        total: images altogether.
        seed: of the partition.

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
    order = inside + numpy_generator(seed, "partition", "held_out").permutation(total - inside)
    return tuple(replace(split, held_out=np.sort(order[i :: len(splits)])) for i, split in enumerate(splits))

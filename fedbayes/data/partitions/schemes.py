"""Who holds which images: six schemes, each drawn from `partition.seed` alone.

`domain_mixture` (the default) makes clients differ and also be mixed inside: each holds several domains, in proportions
of its own. Dirichlet mixtures are symmetric, as in the field's benchmarks: what a client wants does not depend on how
many images a domain or label has. Images are dealt out without replacement, and all are used unless a cap or the scheme
says otherwise; whoever wants more of a domain than is left gets more of its other ones. What a source gives as
validation or test images stays that, is dealt out by the same mixtures, and then `validation` or `test` is not used.
"""

import logging

import numpy as np

from fedbayes.data.datasets import ImageSet
from fedbayes.data.partitions.allocation import Rules, as_partition_error, deal_by_holding, deal_by_mixture
from fedbayes.data.partitions.splits import ClientSplit, describe, split
from fedbayes.errors import PartitionError, require_whole

__all__ = [
    "ClientSplit",
    "describe",
    "domain_and_label",
    "domain_mixture",
    "iid",
    "label_dirichlet",
    "label_shards",
    "one_domain",
]

FEWER = "lower clients, partition.quantity or partition.min_images"

logger = logging.getLogger("fedbayes")


def domain_mixture(
    image_set: ImageSet,
    clients: int,
    *,
    seed: int,
    alpha: float,
    min_images: int,
    quantity: float | None,
    max_train: int | None,
    validation: float,
    test: float,
) -> tuple[ClientSplit, ...]:
    """Every client draws its mixture of domains from Dirichlet(alpha).

    Args:
        image_set: the images.
        clients: number of clients.
        alpha: concentration over domains; small: nearly one domain each, large: all domains alike.
        seed: of the partition and the splits.
        min_images: fewest images of any client, at least 3.
        quantity: standard deviation of the logarithm of client sizes; None: equal sizes.
        max_train: cap on each client's training images; None: no cap.
        validation: share of a client's images.
        test: share of a client's images.

    Returns:
        One division per client.

    Raises:
        PartitionError: if the request is impossible.
        ConfigError: if the seed is negative.
    """
    rules = Rules("domain_mixture", clients, seed, min_images, quantity, max_train, validation, test)
    mixtures = rules.dirichlet(alpha, len(image_set.domain_names), "alpha")
    owner = deal_by_mixture(image_set, image_set.domains.numpy(), mixtures, rules)
    return split(image_set, owner, rules, f"alpha={alpha:g}, quantity={quantity}", FEWER)


def one_domain(
    image_set: ImageSet,
    clients: int,
    *,
    seed: int,
    min_images: int,
    quantity: float | None,
    max_train: int | None,
    validation: float,
    test: float,
) -> tuple[ClientSplit, ...]:
    """Every client holds one domain; domains have equally many clients, give or take one, the largest ones more.

    Args:
        image_set: the images.
        clients: number of clients, at least one per domain. In turn they get the domains, largest first.
        seed: of the partition and the splits.
        min_images: fewest images of any client, at least 3.
        quantity: standard deviation of the logarithm of client sizes; None: equal sizes.
        max_train: cap on each client's training images; None: no cap.
        validation: share of a client's images.
        test: share of a client's images.

    Returns:
        One division per client.

    Raises:
        PartitionError: if the request is impossible.
        ConfigError: if the seed is negative.
    """
    rules = Rules("one_domain", clients, seed, min_images, quantity, max_train, validation, test)
    domains = image_set.domains.numpy()
    images = np.bincount(domains, minlength=len(image_set.domain_names))
    largest_first = np.argsort(-images, kind="stable")[: np.count_nonzero(images)]
    if clients < len(largest_first):
        names = ", ".join(image_set.domain_names)
        raise PartitionError(
            f"clients={clients} cannot hold one domain each of {len(largest_first)} ({names}); raise clients to "
            f"{len(largest_first)} or choose partition=domain_mixture."
        )
    holdings = np.zeros((clients, len(images)), bool)
    holdings[np.arange(clients), np.resize(largest_first, clients)] = True
    owner = deal_by_holding(image_set, domains, holdings, rules)
    return split(image_set, owner, rules, f"one of {len(largest_first)} domains, quantity={quantity}", FEWER)


def label_dirichlet(
    image_set: ImageSet,
    clients: int,
    *,
    seed: int,
    alpha: float,
    min_images: int,
    quantity: float | None,
    max_train: int | None,
    validation: float,
    test: float,
) -> tuple[ClientSplit, ...]:
    """Every client draws its mixture of labels from Dirichlet(alpha), after Hsu et al. (arXiv 1909.06335).

    Args:
        image_set: the images.
        clients: number of clients.
        alpha: concentration over labels; small: nearly one label each, large: all labels alike.
        seed: of the partition and the splits.
        min_images: fewest images of any client, at least 3.
        quantity: standard deviation of the logarithm of client sizes; None: equal sizes.
        max_train: cap on each client's training images; None: no cap.
        validation: share of a client's images.
        test: share of a client's images.

    Returns:
        One division per client.

    Raises:
        PartitionError: if the request is impossible.
        ConfigError: if the seed is negative.
    """
    rules = Rules("label_dirichlet", clients, seed, min_images, quantity, max_train, validation, test)
    mixtures = rules.dirichlet(alpha, len(image_set.classes), "alpha")
    owner = deal_by_mixture(image_set, image_set.labels.numpy(), mixtures, rules)
    return split(image_set, owner, rules, f"alpha={alpha:g}, quantity={quantity}", FEWER)


def label_shards(
    image_set: ImageSet,
    clients: int,
    *,
    seed: int,
    classes_per_client: int,
    min_images: int,
    quantity: float | None,
    max_train: int | None,
    validation: float,
    test: float,
) -> tuple[ClientSplit, ...]:
    """Every client holds k classes; a class's images are shared equally among the clients that hold it.

    Classes have equally many holders, give or take one. With fewer than (classes / k) clients some classes have none:
    their images are left out, and a warning says how many.

    Args:
        image_set: the images.
        clients: number of clients.
        classes_per_client: k.
        seed: of the partition and the splits.
        min_images: fewest images of any client, at least 3.
        quantity: standard deviation of the logarithm of client sizes; None: equal sizes.
        max_train: cap on each client's training images; None: no cap.
        validation: share of a client's images.
        test: share of a client's images.

    Returns:
        One division per client.

    Raises:
        PartitionError: if the request is impossible.
        ConfigError: if the seed is negative.
    """
    rules = Rules("label_shards", clients, seed, min_images, quantity, max_train, validation, test)
    labels = image_set.labels.numpy()
    present = np.unique(labels)
    with as_partition_error():
        require_whole("partition.classes_per_client", classes_per_client, 1)
    if classes_per_client > len(present):
        raise PartitionError(
            f"partition.classes_per_client={classes_per_client} is more than the {len(present)} classes that have "
            f"images; choose 1 to {len(present)}."
        )
    holdings = np.zeros((clients, len(image_set.classes)), bool)
    rng = rules.generator("classes")
    holders = np.zeros(len(present), np.int64)
    for client in range(clients):
        least_held = np.argsort(holders + rng.random(len(present)))[:classes_per_client]
        holders[least_held] += 1
        holdings[client, present[least_held]] = True
    owner = deal_by_holding(image_set, labels, holdings, rules)
    if not holders.all():
        logger.warning(
            "clients=%d with partition.classes_per_client=%d hold %d of %d classes; %d images are left out.",
            *(clients, classes_per_client, np.count_nonzero(holders), len(present), np.count_nonzero(owner < 0)),
        )
    settings = f"classes_per_client={classes_per_client}, quantity={quantity}"
    return split(image_set, owner, rules, settings, f"raise partition.classes_per_client, or {FEWER}")


def domain_and_label(
    image_set: ImageSet,
    clients: int,
    *,
    seed: int,
    alpha: float,
    label_alpha: float,
    min_images: int,
    quantity: float | None,
    max_train: int | None,
    validation: float,
    test: float,
) -> tuple[ClientSplit, ...]:
    """Every client mixes domains by Dirichlet(alpha) and labels by Dirichlet(label_alpha), independently.

    It wants each pair of a domain and a label by the product of the two shares.

    Args:
        image_set: the images.
        clients: number of clients.
        alpha: concentration over domains.
        label_alpha: concentration over labels.
        seed: of the partition and the splits.
        min_images: fewest images of any client, at least 3.
        quantity: standard deviation of the logarithm of client sizes; None: equal sizes.
        max_train: cap on each client's training images; None: no cap.
        validation: share of a client's images.
        test: share of a client's images.

    Returns:
        One division per client.

    Raises:
        PartitionError: if the request is impossible.
        ConfigError: if the seed is negative.
    """
    rules = Rules("domain_and_label", clients, seed, min_images, quantity, max_train, validation, test)
    of_domains = rules.dirichlet(alpha, len(image_set.domain_names), "alpha")
    of_labels = rules.dirichlet(label_alpha, len(image_set.classes), "label_alpha")
    pairs = (image_set.domains * len(image_set.classes) + image_set.labels).numpy()
    present, groups = np.unique(pairs, return_inverse=True)
    domains, labels = np.divmod(present, len(image_set.classes))
    mixtures = of_domains[:, domains] * of_labels[:, labels]  # (clients, pairs that have images)
    owner = deal_by_mixture(image_set, groups, mixtures, rules)
    settings = f"alpha={alpha:g}, label_alpha={label_alpha:g}, quantity={quantity}"
    return split(image_set, owner, rules, settings, FEWER)


def iid(
    image_set: ImageSet,
    clients: int,
    *,
    seed: int,
    min_images: int,
    quantity: float | None,
    max_train: int | None,
    validation: float,
    test: float,
) -> tuple[ClientSplit, ...]:
    """Every client holds a random part of all images.

    Args:
        image_set: the images.
        clients: number of clients.
        seed: of the partition and the splits.
        min_images: fewest images of any client, at least 3.
        quantity: standard deviation of the logarithm of client sizes; None: equal sizes.
        max_train: cap on each client's training images; None: no cap.
        validation: share of a client's images.
        test: share of a client's images.

    Returns:
        One division per client.

    Raises:
        PartitionError: if the request is impossible.
        ConfigError: if the seed is negative.
    """
    rules = Rules("iid", clients, seed, min_images, quantity, max_train, validation, test)
    one_group = np.zeros(len(image_set), np.int64)
    owner = deal_by_mixture(image_set, one_group, np.ones((clients, 1)), rules)
    return split(image_set, owner, rules, f"quantity={quantity}", FEWER)

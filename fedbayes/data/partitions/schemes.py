"""Six schemes of who gets which images.

`DomainMixture` (the default) makes clients differ and also be mixed inside: each has several domains, in proportions of
its own. Dirichlet mixtures are symmetric, as in the field's benchmarks: what a client wants does not depend on how many
images a domain or label has. Each image goes to one client, and all are used unless a cap or the scheme says otherwise;
a client that wants more of a domain than is left gets more of its other ones.
"""

import logging
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from fedbayes.data.datasets import ImageSet
from fedbayes.data.partitions.allocation import Ints
from fedbayes.data.partitions.base import AbstractScheme
from fedbayes.errors import PartitionError, require_whole

logger = logging.getLogger("fedbayes")


@final
@dataclass(frozen=True, kw_only=True)
class DomainMixture(AbstractScheme):
    """Every client mixes the domains by a sample of Dirichlet(alpha): few domains each if alpha is small."""

    name: ClassVar[str] = "domain_mixture"
    alpha: float

    def assign(self, image_set: ImageSet, clients: int) -> Ints:
        """Return the client of each image, (N,)."""
        mixtures = self.dirichlet("alpha", clients, len(image_set.domain_names))
        return self.by_mixture(image_set, image_set.domains.numpy(), mixtures)


@final
@dataclass(frozen=True, kw_only=True)
class OneDomain(AbstractScheme):
    """Every client has one domain; domains have equally many clients, give or take one, the largest ones more."""

    name: ClassVar[str] = "one_domain"

    def assign(self, image_set: ImageSet, clients: int) -> Ints:
        """Return the client of each image, (N,); a domain without a client is a `PartitionError`."""
        domains = image_set.domains.numpy()
        images = np.bincount(domains, minlength=len(image_set.domain_names))
        largest_first = np.argsort(-images, kind="stable")[: np.count_nonzero(images)]
        if clients < len(largest_first):
            raise PartitionError(
                f"clients={clients} cannot have one domain each of {len(largest_first)} "
                f"({', '.join(image_set.domain_names)}); raise clients to {len(largest_first)} or choose "
                "partition=domain_mixture."
            )
        has_domain = np.zeros((clients, len(images)), bool)
        has_domain[np.arange(clients), np.resize(largest_first, clients)] = True
        return self.by_group(image_set, domains, has_domain)


@final
@dataclass(frozen=True, kw_only=True)
class LabelDirichlet(AbstractScheme):
    """Every client mixes the labels by a sample of Dirichlet(alpha)."""

    name: ClassVar[str] = "label_dirichlet"
    alpha: float

    def assign(self, image_set: ImageSet, clients: int) -> Ints:
        """Return the client of each image, (N,)."""
        mixtures = self.dirichlet("alpha", clients, len(image_set.classes))
        return self.by_mixture(image_set, image_set.labels.numpy(), mixtures)


@final
@dataclass(frozen=True, kw_only=True)
class LabelShards(AbstractScheme):
    """Every client has `classes_per_client` classes; the clients that have a class share its images equally.

    Classes have equally many clients, give or take one. With too few clients some classes have none: their images are
    left out, and a warning says how many.
    """

    name: ClassVar[str] = "label_shards"
    remedy: ClassVar[str] = f"raise partition.classes_per_client, or {AbstractScheme.remedy}"
    classes_per_client: int

    def assign(self, image_set: ImageSet, clients: int) -> Ints:
        """Return the client of each image, (N,); -1 for images of classes that no client has."""
        labels = image_set.labels.numpy()
        present = np.unique(labels)
        require_whole("partition.classes_per_client", self.classes_per_client, 1, len(present))
        has_class = np.zeros((clients, len(image_set.classes)), bool)
        rng = self.generator("classes")
        times = np.zeros(len(present), np.int64)  # clients that have each class so far
        for client in range(clients):
            least_frequent = np.argsort(times + rng.random(len(present)))[: self.classes_per_client]
            times[least_frequent] += 1
            has_class[client, present[least_frequent]] = True
        owner = self.by_group(image_set, labels, has_class)
        if not times.all():
            logger.warning(
                "clients=%d with partition.classes_per_client=%d have %d of %d classes; %d images are left out.",
                *(clients, self.classes_per_client, np.count_nonzero(times), len(present), np.count_nonzero(owner < 0)),
            )
        return owner


@final
@dataclass(frozen=True, kw_only=True)
class DomainAndLabel(AbstractScheme):
    """Every client mixes domains by Dirichlet(alpha) and labels by Dirichlet(label_alpha), independently.

    It wants each pair of a domain and a label by the product of the two.
    """

    name: ClassVar[str] = "domain_and_label"
    alpha: float
    label_alpha: float

    def assign(self, image_set: ImageSet, clients: int) -> Ints:
        """Return the client of each image, (N,)."""
        of_domains = self.dirichlet("alpha", clients, len(image_set.domain_names))
        of_labels = self.dirichlet("label_alpha", clients, len(image_set.classes))
        pairs = (image_set.domains * len(image_set.classes) + image_set.labels).numpy()
        present, groups = np.unique(pairs, return_inverse=True)
        domains, labels = np.divmod(present, len(image_set.classes))
        mixtures = of_domains[:, domains] * of_labels[:, labels]  # (clients, pairs that have images)
        return self.by_mixture(image_set, groups, mixtures)


@final
@dataclass(frozen=True, kw_only=True)
class Iid(AbstractScheme):
    """Every client has a random part of all images."""

    name: ClassVar[str] = "iid"

    def assign(self, image_set: ImageSet, clients: int) -> Ints:
        """Return the client of each image, (N,)."""
        return self.by_mixture(image_set, np.zeros(len(image_set), np.int64), np.ones((clients, 1)))

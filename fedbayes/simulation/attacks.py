r"""Hostile clients: a share of the clients that lie about their update, or train on poisoned images.

With w what a client was sent and u what it learnt, the update that is told to the server:

    scaled update   w + scale (u - w),             negative scale: sign flip
    noise           w + scale |u - w| n / |n|,     n ~ N(0, I)
    label flip      trains with label C - 1 - y in the place of y
    backdoor        trains with a white square in a corner of some images, labelled `target`; update scaled as above

Sign flip and label flip: Fang et al. (USENIX Security 2020, arXiv 1911.11815); scaling and the backdoor: Bagdasaryan et
al. (AISTATS 2020, arXiv 1807.00459), whose success is the share of images of other classes that the square turns into
`target`. What a client keeps to itself is what it learnt: it lies to others only. Counts of images (FedNCM, FedCOF,
PEP-FedPT, SGPT) it lies about like the rest, and servers refuse counts that cannot be.
"""

import math
from abc import ABC
from collections.abc import Sequence
from dataclasses import replace
from typing import final

import numpy as np

from fedbayes.arrays import Arrays, base, length, moved
from fedbayes.comm.messages import ClientRequest, ClientUpdate
from fedbayes.data.federated import FederatedData
from fedbayes.errors import ConfigError, require_number, require_whole
from fedbayes.seeding import numpy_generator
from fedbayes.simulation.client import CohortClient


class AbstractAttack(ABC):  # noqa: B024  (each attack has one of the two hooks)
    """What hostile clients do.

    Args:
        fraction: of the clients that are hostile, rounded up to whole clients.
        seed: draws who they are, and their noise.

    Raises:
        ConfigError: if a value is out of range.
    """

    measures_success = False
    """Whether there are images whose predictions tell how well it worked; `marked` says which."""

    def __init__(self, *, fraction: float, seed: int) -> None:
        self.fraction = require_number("attack.fraction", fraction, 0, 1)
        self.seed = require_whole("seed", seed, 0)

    def hostile(self, clients: Sequence[int]) -> tuple[int, ...]:
        """The partitions of hostile clients among those that train, ascending; depends on them and the seed alone."""
        order = numpy_generator(self.seed, "hostile clients").permutation(np.asarray(clients, np.int64))
        return tuple(sorted(order[: math.ceil(self.fraction * len(clients) - 1e-9)].tolist()))

    def poison(self, data: FederatedData, hostile: Sequence[int]) -> FederatedData:  # noqa: ARG002  (a hook)
        """The data with what hostile clients train on, and the images that tell success."""
        return data

    def marked(self, data: FederatedData) -> list[np.ndarray]:
        """The test images of each client, by id, whose copies tell success; none unless the attack has a mark."""
        return [np.empty(0, np.int64) for _ in data.clients]

    def lie(self, sent: Arrays, learnt: Arrays, rng: np.random.Generator) -> Arrays:  # noqa: ARG002  (a hook)
        """What a hostile client tells the server.

        Args:
            sent: what it was sent; arrays of the answer that were not count from 0.
            learnt: what it would say honestly.
            rng: the round's draws of this client.
        """
        return learnt


@final
class HostileClients:
    """A client object some of whose clients are hostile.

    Args:
        client: trains and evaluates all of them, on poisoned data.
        attack: what they do.
        hostile: their partitions.
    """

    def __init__(self, client: CohortClient, attack: AbstractAttack, hostile: Sequence[int]) -> None:
        self._client, self._attack, self._hostile = client, attack, frozenset(hostile)

    @property
    def data(self) -> FederatedData:
        """The images of all of them, poisoned ones among them."""
        return self._client.data

    def prepare(self) -> None:
        """Whatever the honest object needs."""
        self._client.prepare()

    def initial(self) -> Arrays:
        """Where the server starts."""
        return self._client.initial()

    def train(self, requests: Sequence[ClientRequest]) -> list[ClientUpdate]:
        """Honest updates, and the lies of the hostile."""
        updates = self._client.train(requests)
        return [self._told(request, update) for request, update in zip(requests, updates, strict=True)]

    def evaluate(self, requests: Sequence[ClientRequest]) -> list[ClientUpdate]:
        """Predictions, which are the server's own measure: nobody lies about them."""
        return self._client.evaluate(requests)

    def _told(self, request: ClientRequest, update: ClientUpdate) -> ClientUpdate:
        if request.partition not in self._hostile:
            return update
        rng = numpy_generator(self._attack.seed, request.server_round, request.partition, "lie")
        return replace(update, arrays=self._attack.lie(request.arrays, update.arrays, rng))


@final
class ScaledUpdate(AbstractAttack):
    """Walks its own way too far, or the other way.

    Args:
        fraction: see `AbstractAttack`.
        seed: see `AbstractAttack`.
        scale: how far, in units of its own step; negative for the other way.
    """

    def __init__(self, *, fraction: float, seed: int, scale: float) -> None:
        super().__init__(fraction=fraction, seed=seed)
        self._scale = require_number("attack.scale", scale, -math.inf)

    def lie(self, sent: Arrays, learnt: Arrays, rng: np.random.Generator) -> Arrays:  # noqa: ARG002
        """`w + scale (u - w)`."""
        return moved(sent, learnt, self._scale)


@final
class GaussianNoise(AbstractAttack):
    """Walks anywhere.

    Args:
        fraction: see `AbstractAttack`.
        seed: see `AbstractAttack`.
        scale: how far, in units of its own step.
    """

    def __init__(self, *, fraction: float, seed: int, scale: float = 10.0) -> None:
        super().__init__(fraction=fraction, seed=seed)
        self._scale = require_number("attack.scale", scale, 0)

    def lie(self, sent: Arrays, learnt: Arrays, rng: np.random.Generator) -> Arrays:
        """`w + scale |u - w| n / |n|`."""
        floats = {name: array for name, array in learnt.items() if array.dtype.kind == "f"}
        noise = {name: rng.standard_normal(array.shape) for name, array in floats.items()}
        far = self._scale * length(sent, learnt) / max(length({}, noise), 1e-300)
        lies = {
            name: np.asarray(base(sent, name, array) + far * noise[name], dtype=array.dtype)
            for name, array in floats.items()
        }
        return {**learnt, **lies}


@final
class LabelFlip(AbstractAttack):
    """Trains on wrong labels."""

    def poison(self, data: FederatedData, hostile: Sequence[int]) -> FederatedData:
        """Label `C - 1 - y` for every training image of a hostile client."""
        labels = data.images.labels.clone()
        mine = _training(data, hostile)
        labels[mine] = data.num_classes - 1 - labels[mine]
        return data.with_clients(data.clients, replace(data.images, labels=labels))


@final
class Backdoor(AbstractAttack):
    """Trains the model to see `target` wherever there is a white square in the lower right corner.

    Args:
        fraction: see `AbstractAttack`.
        seed: see `AbstractAttack`.
        target: class id.
        size: side of the square, share of the image's.
        images: share of a hostile client's training images that get it.
        scale: of the update, in units of its own step.
    """

    measures_success = True

    def __init__(
        self, *, fraction: float, seed: int, target: int = 0, size: float = 0.2, images: float = 0.5, scale: float = 1.0
    ) -> None:
        super().__init__(fraction=fraction, seed=seed)
        self._target = require_whole("attack.target", target, 0)
        self._size = require_number("attack.size", size, 0, 1, open_low=True)
        self._images = require_number("attack.images", images, 0, 1)
        self._scale = require_number("attack.scale", scale, 0)

    def poison(self, data: FederatedData, hostile: Sequence[int]) -> FederatedData:
        """The square and the label on training images, and copies of all test images of other classes with both.

        Raises:
            ConfigError: if there is no such class.
        """
        if self._target >= data.num_classes:
            raise ConfigError(f"attack.target={self._target} is none of the {data.num_classes} classes; lower it.")
        images, mine = data.images, _training(data, hostile)
        rng = numpy_generator(self.seed, "backdoor images")
        mine = np.sort(rng.permutation(mine)[: round(self._images * len(mine))])
        clients, every = [], np.arange(len(images))
        for client, others in zip(data.clients, self.marked(data), strict=True):
            clients.append(replace(client, triggered=np.arange(len(every), len(every) + len(others))))
            every = np.concatenate([every, others])
        pixels, labels = images.images[every].clone(), images.labels[every].clone()
        marked = np.concatenate([mine, np.arange(len(images), len(every))])
        side = max(1, round(self._size * pixels.shape[-1]))
        pixels[marked, :, -side:, -side:] = 255
        labels[marked] = self._target
        more = replace(
            images,
            images=pixels,
            labels=labels,
            domains=images.domains[every],
            given_split=images.given_split[every],
            names=tuple(images.names[i] for i in every.tolist()),
        )
        return data.with_clients(clients, more)

    def marked(self, data: FederatedData) -> list[np.ndarray]:
        """Test images of other classes than the target."""
        labels = data.images.labels.numpy()
        return [client.test[labels[client.test] != self._target] for client in data.clients]

    def lie(self, sent: Arrays, learnt: Arrays, rng: np.random.Generator) -> Arrays:  # noqa: ARG002
        """`w + scale (u - w)`."""
        return moved(sent, learnt, self._scale)


def _training(data: FederatedData, partitions: Sequence[int]) -> np.ndarray:
    """Ids of all training images of some clients."""
    return np.concatenate([np.empty(0, np.int64), *(data.clients[one].train for one in partitions)])

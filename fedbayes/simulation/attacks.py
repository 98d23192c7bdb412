r"""Malicious clients: a fraction of the clients that falsify their update, or train on poisoned images.

With w what a client was sent and u what it learnt, the update that it sends to the server:

    scaled update   w + scale (u - w),             negative scale: sign flip
    noise           w + scale |u - w| n / |n|,     n ~ N(0, I)
    label flip      trains with label C - 1 - y in the place of y
    backdoor        trains with a white square in a corner of some images, labelled `target`; update scaled as above

Sign flip and label flip: Fang et al. (USENIX Security 2020, arXiv 1911.11815); scaling and the backdoor: Bagdasaryan et
al. (AISTATS 2020, arXiv 1807.00459), whose success is the fraction of images of other classes that the square turns
into `target`. Personal parameters are what a client learnt. Counts of images (FedNCM, FedCOF, PEP-FedPT, SGPT) are
falsified like the rest, and servers reject counts that cannot be true. Poison belongs to a client's image: where
clients share an image, the others' stays as it is.
"""

import math
from abc import ABC
from collections.abc import Sequence
from dataclasses import replace
from typing import final

import numpy as np
import torch

from fedbayes.arrays import Arrays, base, length, moved
from fedbayes.comm.messages import ClientRequest, ClientUpdate
from fedbayes.data.federated import FederatedData
from fedbayes.errors import ConfigError, require_number, require_whole
from fedbayes.seeding import numpy_generator
from fedbayes.simulation.client import CohortClient


class AbstractAttack(ABC):  # noqa: B024  (each attack has one of the two hooks)
    """What malicious clients do.

    Args:
        fraction: of the clients that are malicious, rounded up to whole clients.
        seed: samples who they are, and their noise.
    """

    measures_success = False
    """Whether predictions of the `marked` images tell how well the attack worked."""

    def __init__(self, *, fraction: float, seed: int) -> None:
        self.fraction = require_number("attack.fraction", fraction, 0, 1)
        self.seed = require_whole("seed", seed, 0)

    def malicious(self, clients: Sequence[int]) -> tuple[int, ...]:
        """Return which clients of those that train are malicious, ascending; depends on them and the seed alone."""
        order = numpy_generator(self.seed, "hostile clients").permutation(np.asarray(clients, np.int64))
        return tuple(sorted(order[: math.ceil(self.fraction * len(clients) - 1e-9)].tolist()))

    def poison(self, data: FederatedData, malicious: Sequence[int]) -> FederatedData:  # noqa: ARG002  (a hook)
        """Return the data with what malicious clients train on, and the images that tell success."""
        return data

    def marked(self, data: FederatedData) -> list[np.ndarray]:
        """Return the test images of each client, by id, whose marked copies tell success; none without a mark."""
        return [np.empty(0, np.int64) for _ in data.clients]

    def falsify(self, received: Arrays, learnt: Arrays, rng: np.random.Generator) -> Arrays:  # noqa: ARG002  (a hook)
        """Return what a malicious client sends in the place of `learnt`, which it made of what it received."""
        return learnt


@final
class MaliciousClients:
    """A client object on poisoned data, some of whose clients are malicious; all predict honestly."""

    def __init__(self, client: CohortClient, attack: AbstractAttack, malicious: Sequence[int]) -> None:
        self._client, self._attack, self._malicious = client, attack, frozenset(malicious)
        self.data, self.prepare = client.data, client.prepare
        self.initial, self.evaluate = client.initial, client.evaluate

    def train(self, requests: Sequence[ClientRequest]) -> list[ClientUpdate]:
        """Return honest updates, and falsified ones of malicious clients."""
        pairs = zip(requests, self._client.train(requests), strict=True)
        return [self._falsified(*pair) if pair[0].partition in self._malicious else pair[1] for pair in pairs]

    def _falsified(self, request: ClientRequest, update: ClientUpdate) -> ClientUpdate:
        rng = numpy_generator(self._attack.seed, request.server_round, request.partition, "lie")
        return replace(update, arrays=self._attack.falsify(request.arrays, update.arrays, rng))


@final
class ScaledUpdate(AbstractAttack):
    """Sends its step times `scale`, which is negative for the other way."""

    def __init__(self, *, fraction: float, seed: int, scale: float) -> None:
        super().__init__(fraction=fraction, seed=seed)
        self._scale = require_number("attack.scale", scale, -math.inf)

    def falsify(self, received: Arrays, learnt: Arrays, rng: np.random.Generator) -> Arrays:  # noqa: ARG002
        """`w + scale (u - w)`."""
        return moved(received, learnt, self._scale)


@final
class GaussianNoise(AbstractAttack):
    """Sends noise `scale` times as long as its step."""

    def __init__(self, *, fraction: float, seed: int, scale: float = 10.0) -> None:
        super().__init__(fraction=fraction, seed=seed)
        self._scale = require_number("attack.scale", scale, 0)

    def falsify(self, received: Arrays, learnt: Arrays, rng: np.random.Generator) -> Arrays:
        """`w + scale |u - w| n / |n|`."""
        floats = {name: array for name, array in learnt.items() if array.dtype.kind == "f"}
        noise = {name: rng.standard_normal(array.shape) for name, array in floats.items()}
        far = self._scale * length(received, learnt) / max(length({}, noise), 1e-300)
        return learnt | {
            name: np.asarray(base(received, name, array) + far * noise[name], dtype=array.dtype)
            for name, array in floats.items()
        }


@final
class LabelFlip(AbstractAttack):
    """Trains on wrong labels."""

    def poison(self, data: FederatedData, malicious: Sequence[int]) -> FederatedData:
        """Give every training image of a malicious client the label `C - 1 - y`."""
        data = _with_own_images(data, malicious)
        labels, poisoned = data.images.labels.clone(), _training(data, malicious)
        labels[poisoned] = data.num_classes - 1 - labels[poisoned]
        return data.with_clients(data.clients, replace(data.images, labels=labels))


@final
class Backdoor(AbstractAttack):
    """Trains the model to see `target` wherever there is a white square in the lower right corner.

    Args:
        fraction: see `AbstractAttack`.
        seed: see `AbstractAttack`.
        target: class id.
        size: side of the square, as a fraction of the image's.
        images: fraction of a malicious client's training images that get it.
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

    def poison(self, data: FederatedData, malicious: Sequence[int]) -> FederatedData:
        """Put square and label on training images, and on copies of all test images of other classes."""
        if self._target >= data.num_classes:
            raise ConfigError(f"attack.target={self._target} is none of the {data.num_classes} classes; lower it.")
        data = _with_own_images(data, malicious)
        train = _training(data, malicious)
        poisoned = numpy_generator(self.seed, "backdoor images").permutation(train)[: round(self._images * len(train))]
        source, clients = np.arange(len(data.images)), []
        for client, test in zip(data.clients, self.marked(data), strict=True):
            clients.append(replace(client, triggered=np.arange(len(source), len(source) + len(test))))
            source = np.concatenate([source, test])
        poisoned = np.concatenate([poisoned, *(client.triggered for client in clients)])
        images = data.images.subset(torch.from_numpy(source))
        side = max(1, round(self._size * images.images.shape[-1]))
        images.images[poisoned, :, -side:, -side:] = 255
        images.labels[poisoned] = self._target
        return data.with_clients(clients, images)

    def marked(self, data: FederatedData) -> list[np.ndarray]:
        """Return test images of other classes than the target."""
        labels = data.images.labels.numpy()
        return [client.test[labels[client.test] != self._target] for client in data.clients]

    def falsify(self, received: Arrays, learnt: Arrays, rng: np.random.Generator) -> Arrays:  # noqa: ARG002
        """`w + scale (u - w)`."""
        return moved(received, learnt, self._scale)


def _training(data: FederatedData, partitions: Sequence[int]) -> np.ndarray:
    """Return the ids of all training images of some clients."""
    return np.concatenate([np.empty(0, np.int64), *(data.clients[partition].train for partition in partitions)])


def _with_own_images(data: FederatedData, malicious: Sequence[int]) -> FederatedData:
    """Give malicious clients copies of those training images that are in any other place of the partition, too."""
    places = [ids for client in data.clients for ids in (*client.parts().values(), client.held_out)]
    uses = np.bincount(np.concatenate(places), minlength=len(data.images))
    source, clients = np.arange(len(data.images)), list(data.clients)
    for partition in malicious:
        train = clients[partition].train.copy()
        shared = np.flatnonzero(uses[train] > 1)
        source = np.concatenate([source, train[shared]])
        train[shared] = np.arange(len(source) - len(shared), len(source))
        clients[partition] = replace(clients[partition], train=train)
    if len(source) == len(data.images):
        return data
    return data.with_clients(clients, data.images.subset(torch.from_numpy(source)))

"""What every client has: its cohort's images, a place for its parameters, and evaluation."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast, final

import numpy as np
import torch
from torch import Tensor

from clients.inputs import Inputs, InputSource
from clients.personal import without_personal
from fedbayes.arrays import Arrays
from fedbayes.comm.messages import ClientRequest, ClientUpdate
from fedbayes.data.federated import Split
from fedbayes.errors import ConfigError
from fedbayes.metrics.predictive import Predictive, negative_log_likelihood, predictive
from fedbayes.seeding import Streams
from fedbayes.simulation.client import ClientSetup

LARGEST_PASS = 2048
"""Images times samples that go through the backbone at once in a prediction."""


@final
@dataclass(frozen=True, eq=False)
class Scores:
    """Class scores of a cohort's images.

    Attributes:
        logits: for each sample of what is random in a prediction, `(S, C, B, classes)`.
        metrics: diagnostics of the samples, each `(C, B)`.
    """

    logits: Tensor
    metrics: dict[str, Tensor]


class AbstractClient(ABC):
    """Trains and evaluates cohorts of clients; a client is a cohort of one.

    Args:
        setup: images, model and seed.
        personal: first parts of parameter names that never leave the client, e.g. `[head]`.
        inputs: those of another client of the same setup, to share its caches.

    Raises:
        ConfigError: if `personal` names nothing that the model has.
    """

    def __init__(self, *, setup: ClientSetup, personal: Sequence[str], inputs: InputSource | None = None) -> None:
        self.data, self.model, self.seed = setup.data, setup.model, setup.seed
        self.inputs = inputs or InputSource(setup.data, setup.model, setup.augment, setup.cache_mb)
        if isinstance(personal, str) or not isinstance(personal, Sequence):
            raise ConfigError(f"method.client.personal={personal} is not a list; write [{personal}].")
        self.personal = tuple(f"{part}." for part in personal)
        for prefix in self.personal:
            if not any(name.startswith(prefix) for name in self.model.initial):
                parts = sorted({name.split(".")[0] for name in self.model.initial})
                raise ConfigError(
                    f"method.client.personal={list(personal)}: the model has no part '{prefix[:-1]}'; "
                    f"its parts are {', '.join(parts)}."
                )

    @abstractmethod
    def train(self, requests: Sequence[ClientRequest]) -> list[ClientUpdate]:
        """Train a cohort, all in the same round, each from its request."""

    @abstractmethod
    def score(self, inputs: Inputs, parameters: Sequence[Arrays], streams: Streams) -> Scores:
        """Class scores with a cohort's parameters; `streams` are used for this split only, by image order."""

    def adapt(self, parameters: Sequence[Arrays], requests: Sequence[ClientRequest]) -> Sequence[Arrays]:  # noqa: ARG002
        """Parameters that each client is evaluated with; a method that trains may adapt them to the client first."""
        return parameters

    def for_new_clients(self, parameters: Arrays) -> Arrays:
        """Parameters of a client without images to adapt to and without personal parameters: the shared ones."""
        return without_personal(parameters)

    def prepare(self) -> None:
        """Compute what depends on nothing learnt, before the first round's clock runs."""
        self.inputs.prepare()

    def initial(self) -> Arrays:
        """What the server starts from: the shared part of the initial parameters."""
        return self.split(self.model.initial)[0]

    def split(self, state: Arrays) -> tuple[Arrays, Arrays]:
        """Split parameters into shared and personal ones."""
        personal = {name: array for name, array in state.items() if not self.is_shared(name)}
        return {name: array for name, array in state.items() if name not in personal}, personal

    def is_shared(self, name: str) -> bool:
        """Whether a parameter is sent."""
        return not name.startswith(self.personal)

    def predict(
        self, inputs: Inputs, parameters: Sequence[Arrays], streams: Streams
    ) -> tuple[list[Predictive], dict[str, Tensor]]:
        """Each client's predictions for its images, on the CPU, and the diagnostics of `score`, `(C, B)`."""
        with torch.no_grad():
            scores = self.score(inputs, parameters, streams)
            probabilities, expected_entropy = predictive(scores.logits)
        predictions = [
            Predictive(probabilities[c, :count].cpu(), expected_entropy[c, :count].cpu())
            for c, count in enumerate(inputs.counts)
        ]
        return predictions, scores.metrics

    def evaluate(self, requests: Sequence[ClientRequest]) -> list[ClientUpdate]:
        """Predict the requested split of each client.

        Returns:
            Arrays `probabilities`, `expected_entropy`, `labels` and `domains`, one row per image in the order of the
            split, and the metrics `accuracy`, `nll` (nats) and the diagnostics of `score`, averaged over images.
        """
        split = cast(Split, requests[0].split)
        partitions = [request.partition for request in requests]
        batch = self.data.batch(partitions, split)
        streams = Streams(self.seed, requests[0].server_round, partitions, f"evaluate {split}")
        parameters = self.adapt([parameters_of(request) for request in requests], requests)
        predictions, diagnostics = self.predict(self.inputs.plain(batch), parameters, streams)
        replies = []
        for c, (partition, prediction) in enumerate(zip(partitions, predictions, strict=True)):
            count = len(prediction.probabilities)
            labels = batch.labels[c, :count]
            metrics = {
                "accuracy": float((prediction.predicted == labels).double().mean()),
                "nll": float(negative_log_likelihood(prediction.probabilities, labels).double().mean()),
                **{name: float(values[c, :count].double().mean()) for name, values in diagnostics.items()},
            }
            arrays = {
                "probabilities": prediction.probabilities.numpy(),
                "expected_entropy": prediction.expected_entropy.numpy(),
                "labels": labels.numpy().astype(np.int64),
                "domains": self.data.images.domains[self.data.indices(partition, split)].numpy().astype(np.int64),
            }
            replies.append(ClientUpdate(partition, arrays, count, metrics))
        return replies


def parameters_of(request: ClientRequest) -> Arrays:
    """The server's parameters, and the client's personal ones."""
    return {**request.arrays, **request.personal}


def of_client(metrics: Mapping[str, Tensor], c: int) -> dict[str, float]:
    """The metrics of a cohort's c-th client."""
    return {name: float(values[c]) for name, values in metrics.items()}


def passes(mask: Tensor, samples: int) -> list[slice]:
    """Slices of the images of a batch `(C, B)` that go through the backbone together in a prediction."""
    clients, images = mask.shape
    width = max(1, LARGEST_PASS // (samples * clients))
    return [slice(first, first + width) for first in range(0, images, width)]

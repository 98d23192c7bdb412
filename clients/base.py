"""What every client has: its cohort's images, a place for its parameters, and evaluation."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast, final

import numpy as np
import torch
from torch import Tensor

from clients.inputs import Inputs, InputSource
from clients.own import without_own
from fedbayes.arrays import Arrays
from fedbayes.comm.messages import ClientRequest, ClientUpdate
from fedbayes.data.federated import Split
from fedbayes.errors import ConfigError
from fedbayes.metrics.predictive import Predictive, negative_log_likelihood, predictive
from fedbayes.seeding import Streams
from fedbayes.simulation.client import ClientSetup


@final
@dataclass(frozen=True, eq=False)
class Draws:
    """Class scores of each draw of prompts.

    Attributes:
        logits: `(S, C, B, classes)`.
        metrics: diagnostics of the draws, each `(C, B)`.
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

    def __init__(
        self,
        *,
        setup: ClientSetup,
        personal: Sequence[str],
        inputs: InputSource | None = None,
    ) -> None:
        self.data, self.model, self.seed = setup.data, setup.model, setup.seed
        self.inputs = inputs or InputSource(setup.data, setup.model, setup.augment, setup.cache_mb)
        if isinstance(personal, str) or not isinstance(personal, Sequence):
            raise ConfigError(f"method.client.personal={personal} is not a list; write [{personal}].")
        self.personal = tuple(f"{name}." for name in personal)
        names = list(self.model.initial)
        for prefix in self.personal:
            if not any(name.startswith(prefix) for name in names):
                parts = sorted({name.split(".")[0] for name in names})
                raise ConfigError(
                    f"method.client.personal={list(personal)}: the model has no part '{prefix[:-1]}'; "
                    f"its parts are {', '.join(parts)}."
                )

    @abstractmethod
    def train(self, requests: Sequence[ClientRequest]) -> list[ClientUpdate]:
        """Train a cohort, all in the same round, each from its own request."""

    @abstractmethod
    def draw(self, inputs: Inputs, parameters: Sequence[Arrays], streams: Streams) -> Draws:
        """Predict with a cohort's parameters; `streams` are used for this split only, by image order."""

    def adapt(self, parameters: Sequence[Arrays], requests: Sequence[ClientRequest]) -> Sequence[Arrays]:  # noqa: ARG002
        """Parameters that each client is evaluated with; a method that trains may adapt them to the client first."""
        return parameters

    def for_strangers(self, parameters: Arrays) -> Arrays:
        """What somebody predicts with who has no images to adapt to and keeps nothing: the global ones."""
        return without_own(parameters)

    def prepare(self) -> None:
        """Compute what depends on nothing learnt, before the first round's clock runs."""
        self.inputs.prepare()

    def initial(self) -> Arrays:
        """What the server starts from: the shared part of the initial parameters."""
        return self.share(self.model.initial)[0]

    def share(self, state: Arrays) -> tuple[Arrays, Arrays]:
        """Split parameters into what is sent and what is kept."""
        kept = {name: value for name, value in state.items() if name.startswith(self.personal)} if self.personal else {}
        return {name: value for name, value in state.items() if name not in kept}, kept

    def predict(
        self, inputs: Inputs, parameters: Sequence[Arrays], streams: Streams
    ) -> tuple[list[Predictive], dict[str, Tensor]]:
        """What each client of a cohort says of its own images, on the CPU, and the draws' diagnostics, `(C, B)`."""
        with torch.no_grad():
            draws = self.draw(inputs, parameters, streams)
            probabilities, expected_entropy = predictive(draws.logits)
        said = [
            Predictive(probabilities[c, :count].cpu(), expected_entropy[c, :count].cpu())
            for c, count in enumerate(inputs.counts)
        ]
        return said, draws.metrics

    def evaluate(self, requests: Sequence[ClientRequest]) -> list[ClientUpdate]:
        """Predict the requested split of each client.

        Returns:
            Arrays `probabilities`, `expected_entropy`, `labels` and `domains`, one row per image in the order of the
            split, and the metrics `accuracy`, `nll` (nats) and whatever `draw` diagnoses, averaged over images.
        """
        split = cast(Split, requests[0].split)
        partitions = [request.partition for request in requests]
        batch = self.data.batch(partitions, split)
        streams = Streams(self.seed, requests[0].server_round, partitions, f"evaluate {split}")
        parameters = self.adapt([{**request.arrays, **request.personal} for request in requests], requests)
        predictions, diagnostics = self.predict(self.inputs.plain(batch), parameters, streams)
        answers = []
        for c, (partition, said) in enumerate(zip(partitions, predictions, strict=True)):
            count = len(said.probabilities)
            labels = batch.labels[c, :count]
            metrics = {
                "accuracy": float((said.predicted == labels).double().mean()),
                "nll": float(negative_log_likelihood(said.probabilities, labels).double().mean()),
                **{name: float(values[c, :count].double().mean()) for name, values in diagnostics.items()},
            }
            arrays = {
                "probabilities": said.probabilities.numpy(),
                "expected_entropy": said.expected_entropy.numpy(),
                "labels": labels.numpy().astype(np.int64),
                "domains": self.data.images.domains[self.data.indices(partition, split)].numpy().astype(np.int64),
            }
            answers.append(ClientUpdate(partition, arrays, count, metrics))
        return answers

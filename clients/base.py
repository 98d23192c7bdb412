"""What every client has: its cohort's images, a place for its parameters, and evaluation."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast, final

import numpy as np
import torch
from torch import Tensor

from clients.inputs import Inputs, InputSource
from fedbayes.arrays import Arrays, under
from fedbayes.comm.messages import ClientRequest, ClientUpdate
from fedbayes.data.federated import Split
from fedbayes.errors import ConfigError
from fedbayes.inference.class_prior import estimate_prior
from fedbayes.metrics.predictive import Predictive, negative_log_likelihood, predictive
from fedbayes.seeding import Streams
from fedbayes.simulation.client import ClientSetup

LARGEST_PASS = 2048  # images times samples that go through the backbone at once in a prediction
PERSONAL = "personal."  # leads the names of personal parameters that stand beside shared ones


@final
@dataclass(frozen=True, eq=False)
class Scores:
    """Class scores of a cohort's images, and diagnostics of the samples."""

    logits: Tensor  # (S, C, B, classes)
    metrics: dict[str, Tensor]  # each (C, B)


@final
@dataclass(frozen=True, eq=False)
class LinearScores:
    """Scores of one client's images as `features @ weights + bias`; a bias of -inf rules a class out."""

    features: Tensor  # (B, d)
    weights: Tensor  # (d, classes)
    bias: Tensor  # (classes,)


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
        self.inputs = inputs or InputSource(setup.data, setup.model, setup.augment, setup.cache_mb, setup.priors)
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

    trains_blocks = False
    """Whether all that clients learn goes through `LocalTraining`, so that some blocks may be left as they are."""

    keeps_features = False
    """Whether clients predict from features that they keep of their images, so that another ViT cannot take over."""

    @abstractmethod
    def train(self, requests: Sequence[ClientRequest]) -> list[ClientUpdate]:
        """Train a cohort, all in the same round, each from its request."""

    @abstractmethod
    def score(self, inputs: Inputs, parameters: Sequence[Arrays], streams: Streams) -> Scores:
        """Return class scores with a cohort's parameters; `streams` serve this split alone, in image order."""

    def linear_scores(self, inputs: Inputs, parameters: Arrays) -> LinearScores:  # noqa: ARG002
        """Return what `score` multiplies for one client, if features depend on nothing learnt; for private prediction.

        Raises:
            ConfigError: if scores of this method are no such product.
        """
        raise ConfigError(
            f"private=True: {type(self).__name__} scores images by more than a linear head on frozen features; "
            "use a method that trains the head alone (fedavg_head, fedncm, fedcof, afl), or private=False."
        )

    def adapt(self, parameters: Sequence[Arrays], requests: Sequence[ClientRequest]) -> Sequence[Arrays]:  # noqa: ARG002
        """Return the parameters that each client is evaluated with, adapted to the client if the method does so."""
        return parameters

    def for_new_clients(self, parameters: Arrays) -> Arrays:
        """Return the parameters of a client that has neither images nor personal parameters: the shared ones."""
        return without_personal(parameters)

    def prepare(self) -> None:
        """Compute what depends on nothing learnt, before the first round's clock runs."""
        self.inputs.prepare()

    def initial(self) -> Arrays:
        """Return the shared part of the initial parameters."""
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
        """Return each client's predictions for its images, on the CPU, and the diagnostics of `score`, `(C, B)`."""
        with torch.no_grad():
            scores = self.score(inputs, parameters, streams)
            logits = scores.logits
            if self.inputs.priors.kind == "estimated":
                logits = logits + self._prior_change(inputs, logits)
            probabilities, expected_entropy = predictive(logits)
        predictions = [
            Predictive(probabilities[c, :count].cpu(), expected_entropy[c, :count].cpu())
            for c, count in enumerate(inputs.counts)
        ]
        return predictions, scores.metrics

    def _prior_change(self, inputs: Inputs, logits: Tensor) -> Tensor:
        """Return what is added to class scores for the priors that the images themselves suggest, `(C, 1, classes)`."""
        assert inputs.log_prior is not None, "it is where an estimate begins"
        probabilities, changes = predictive(logits)[0].cpu(), []
        for images, count, log_prior in zip(probabilities, inputs.counts, inputs.log_prior.cpu().double(), strict=True):
            prior = log_prior[0].exp()
            changes.append(estimate_prior(images[:count], prior).log() - log_prior)
        return torch.stack(changes).to(logits)

    def evaluate(self, requests: Sequence[ClientRequest]) -> list[ClientUpdate]:
        """Predict the requested split of each client with its adapted parameters; see `evaluate_with`."""
        return self.evaluate_with(self.adapt([parameters_of(request) for request in requests], requests), requests)

    def evaluate_with(self, parameters: Sequence[Arrays], requests: Sequence[ClientRequest]) -> list[ClientUpdate]:
        """Predict the requested split of each client with the given parameters.

        Returns:
            Arrays `probabilities`, `expected_entropy`, `labels` and `domains`, one row per image in the order of the
            split, and the metrics `accuracy`, `nll` (nats) and the diagnostics of `score`, averaged over images.
        """
        split = cast(Split, requests[0].split)
        partitions = [request.partition for request in requests]
        batch = self.data.batch(partitions, split)
        streams = Streams(self.seed, requests[0].server_round, partitions, f"evaluate {split}")
        predictions, diagnostics = self.predict(self.inputs.plain(batch), parameters, streams)
        updates = []
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
            updates.append(ClientUpdate(partition, arrays, count, metrics))
        return updates


def parameters_of(request: ClientRequest) -> Arrays:
    """Return the server's parameters together with the personal ones."""
    return {**request.arrays, **request.personal}


def with_prefix(state: Arrays) -> Arrays:
    """Return parameters under their names as personal ones."""
    return {PERSONAL + name: value for name, value in state.items()}


def personalised(state: Arrays) -> Arrays:
    """Return what a client uses: personal parameters where it has them, shared ones elsewhere."""
    return {**without_personal(state), **under(PERSONAL, state)}


def without_personal(state: Arrays) -> Arrays:
    """Return the shared parameters of a client."""
    return {name: value for name, value in state.items() if not name.startswith(PERSONAL)}


def personal_model(state: Arrays, request: ClientRequest) -> Arrays:
    """Return a client's personal parameters over the shared ones, or the latter alone if it never trained."""
    is_trained = any(name.startswith(PERSONAL) for name in request.personal)
    return personalised(state) if is_trained else without_personal(state)


def of_client(metrics: Mapping[str, Tensor], c: int) -> dict[str, float]:
    """Return the metrics of a cohort's c-th client."""
    return {name: float(values[c]) for name, values in metrics.items()}


def passes(mask: Tensor, samples: int) -> list[slice]:
    """Return slices of the images of a batch `(C, B)` that go through the backbone together in a prediction."""
    clients, images = mask.shape
    width = max(1, LARGEST_PASS // (samples * clients))
    return [slice(first, first + width) for first in range(0, images, width)]

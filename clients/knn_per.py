r"""kNN-Per on prompts: FedVPT, and in a prediction the nearest training images of the client.

Marfoq et al., ICML 2022, arXiv 2111.09360. With the feature h of an image, and its k nearest training images of the
client,

    p(y | x) = lambda p_knn(y | x) + (1 - lambda) p_shared(y | x)
    p_knn(y | x) ~ sum_i exp(-|h - h_i|^2 / (d s)) [y_i = y]

with d the width of a feature, so that the scale s does not depend on it. Nothing is trained but the shared model. A new
client without labelled images predicts with the shared model.
"""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F

from clients.base import Scores
from clients.inputs import Inputs
from clients.wrapping import AbstractWrappingClient, require_plain
from fedbayes.arrays import Arrays
from fedbayes.comm.messages import ClientRequest
from fedbayes.errors import require_number, require_whole
from fedbayes.inference.settings import InferenceSettings
from fedbayes.metrics.predictive import floored, predictive
from fedbayes.optim.local_training import LocalTraining
from fedbayes.seeding import Streams
from fedbayes.simulation.client import ClientSetup

FEATURES, LABELS = "neighbours.features", "neighbours.labels"


@final
class KNNPerClient(AbstractWrappingClient):
    """Trains as FedVPT does; predicts with its own training images beside the shared model.

    Args:
        setup: images, model and seed.
        personal: parts of the model that never leave the client.
        inference: of the prompts, which have no posterior.
        optim: the local training.
        neighbours: k; all training images where there are fewer.
        weight: lambda.
        scale: s.

    Raises:
        ConfigError: if a value is out of range, or prompts have a posterior.
    """

    keeps_features = True

    def __init__(
        self,
        *,
        setup: ClientSetup,
        personal: Sequence[str],
        inference: InferenceSettings,
        optim: LocalTraining,
        neighbours: int,
        weight: float,
        scale: float,
    ) -> None:
        super().__init__(setup=setup, personal=personal, inference=inference, optim=optim)
        self.neighbours = require_whole("method.client.neighbours", neighbours, 1)
        self.weight = require_number("method.client.weight", weight, 0, 1)
        self.scale = require_number("method.client.scale", scale, 0, open_low=True)
        require_plain(self.model.generator)

    @torch.no_grad()
    def adapt(self, parameters: Sequence[Arrays], requests: Sequence[ClientRequest]) -> Sequence[Arrays]:
        """Return the parameters, after the steps that are asked for, with the features of each client's images."""
        with torch.enable_grad():
            adapted = self.inner.adapt(parameters, requests)
        self.model.stack(adapted)
        partitions = [request.partition for request in requests]
        inputs = self.inputs.plain(self.data.batch(partitions, "train"))
        features, labels = self._features(inputs).cpu().numpy(), inputs.labels.cpu().numpy()
        return [
            {**state, FEATURES: features[c, :count], LABELS: labels[c, :count]}
            for c, (state, count) in enumerate(zip(adapted, inputs.counts, strict=True))
        ]

    def score(self, inputs: Inputs, parameters: Sequence[Arrays], streams: Streams) -> Scores:
        """Return the logarithm of the mixture."""
        shared, _ = predictive(self.inner.score(inputs, parameters, streams).logits)
        features = self._features(inputs)
        rows = []
        for probabilities, queries, state in zip(shared, features, parameters, strict=True):
            if FEATURES not in state:
                rows.append(probabilities)
                continue
            known = torch.from_numpy(state[FEATURES]).to(queries)
            labels = torch.from_numpy(state[LABELS]).to(queries.device)
            nearest = knn_probabilities(queries, known, labels, probabilities.shape[-1], self.neighbours, self.scale)
            rows.append(self.weight * nearest + (1 - self.weight) * probabilities)
        return Scores(floored(torch.stack(rows).flatten(0, 1)).log().view(1, *shared.shape), {})

    def for_new_clients(self, parameters: Arrays) -> Arrays:
        """Return the shared parameters."""
        return {n: array for n, array in super().for_new_clients(parameters).items() if n not in (FEATURES, LABELS)}


def knn_probabilities(
    queries: Tensor, known: Tensor, labels: Tensor, classes: int, neighbours: int, scale: float
) -> Tensor:
    """Return `p_knn` of each query, `(n, classes)`; see the module."""
    distances = torch.cdist(queries, known).square() / (queries.shape[1] * scale)
    nearest, places = distances.topk(min(neighbours, len(known)), dim=1, largest=False)
    weights = (-nearest).softmax(1)
    probabilities: Tensor = (F.one_hot(labels[places], classes) * weights.unsqueeze(-1)).sum(1)
    return probabilities

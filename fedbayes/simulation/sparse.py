"""Clients that train and send some blocks in a round, and measure what the suppression of others costs."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, final

import numpy as np

from fedbayes.arrays import Arrays, blocks_of, in_blocks
from fedbayes.comm.messages import ClientRequest, ClientUpdate
from fedbayes.data.federated import Batch
from fedbayes.errors import ConfigError
from fedbayes.metrics.predictive import negative_log_likelihood
from fedbayes.optim.sparse import IMPORTANCE, LOSS, BlockChoice, suppressed
from fedbayes.seeding import Streams

PROBE_IMAGES = 16  # first training images of a client on which losses under suppression are measured


@final
class SparseClient:
    """A client of any method whose parameters name their blocks; the head and what all blocks share always learn.

    Args:
        client: trains and evaluates.
        choice: of blocks.

    Raises:
        ConfigError: if the client trains in another way than `LocalTraining`, or nothing that it sends is of a block.
    """

    def __init__(self, client: Any, choice: BlockChoice) -> None:
        if not getattr(client, "trains_blocks", False):
            raise ConfigError(
                f"sparse: {type(client).__name__} trains in a way of its own; choose sparse=none, or a method of "
                "prompts or low-rank changes that are averaged."
            )
        self._client, self._choice = client, choice
        self._blocks = blocks_of(client.initial())
        if not self._blocks:
            raise ConfigError(
                "sparse: nothing that clients send belongs to one block; choose method=fedlora, prompts.depth=deep, or "
                "sparse=none."
            )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def train(self, requests: Sequence[ClientRequest]) -> list[ClientUpdate]:
        """Train a cohort on each client's blocks; replies carry those alone, and the losses under suppression."""
        server_round = requests[0].server_round
        importance = requests[0].arrays.get(IMPORTANCE, np.zeros(len(self._blocks)))
        chosen = [
            self._choice.selected(self._blocks, importance, server_round, request.partition) for request in requests
        ]
        losses = self._losses(requests, self._choice.suppressed_sets(self._blocks, importance, server_round))
        with self._client.model.restricted(chosen):
            updates = self._client.train(requests)
        return [
            replace(
                update,
                arrays={name: array for name, array in update.arrays.items() if in_blocks(name, blocks)},
                metrics=update.metrics | {f"{LOSS}{j}": float(loss) for j, loss in enumerate(row)},
            )
            for update, blocks, row in zip(updates, chosen, losses, strict=True)
        ]

    def _losses(self, requests: Sequence[ClientRequest], sets: Sequence[frozenset[int]]) -> np.ndarray:
        """Return the NLL of each client's first images with each set suppressed, nats, `(clients, sets)`."""
        losses = np.empty((len(requests), len(sets)))
        if not sets:
            return losses
        client, partitions = self._client, [request.partition for request in requests]
        every = client.training.batch(partitions, "train")
        first = slice(None), slice(PROBE_IMAGES)
        inputs = client.inputs.plain(
            Batch(every.index[first], every.mask[first], every.labels[first], every.class_counts)
        )
        for j, blocks in enumerate(sets):
            # The same samples of prompts for each set.
            streams = Streams(client.seed, requests[0].server_round, partitions, "suppress")
            states: list[Arrays] = [
                suppressed({**r.arrays, **r.personal}, client.model.initial, blocks, self._choice.suppression)
                for r in requests
            ]
            for c, prediction in enumerate(client.predict(inputs, states, streams)[0]):
                labels = every.labels[c, : len(prediction.probabilities)]
                losses[c, j] = negative_log_likelihood(prediction.probabilities, labels).double().mean()
        return losses

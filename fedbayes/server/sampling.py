"""Which clients train in a round, which are evaluated, and which are new: drawn by partition, keyed by the seed.

With privacy where clients know the seed, a secret is the key of who trains in a round (`fedbayes.server.privacy_key`).
"""

from collections.abc import Sequence
from typing import final

import numpy as np

from fedbayes.errors import ConfigError, require_number, require_whole
from fedbayes.seeding import numpy_generator

MOST_CLIENTS = 1_000_000
"""Each is drawn and asked by itself."""


@final
class Sampling:
    """Draws of clients, the same on every engine.

    Args:
        clients: partitions of the federation.
        participation: share of the clients that train in a round; at least one does.
        seed: of the draws.
        evaluate_fraction: fraction of the clients that are evaluated, always the same ones; at least one is.
        new_clients: clients that never train; they are evaluated at the end alone.
        key: of the draws of who trains, in place of the seed; None for the seed.

    Attributes:
        key: of the draws of who trains, and of noise that hides who did.
        known: partitions that may train.
        new_clients: partitions that never do.
        evaluated: partitions that are evaluated in any round, among `known`.
        per_round: clients that train in a round.

    Raises:
        ConfigError: if a value is out of range.
    """

    def __init__(
        self,
        *,
        clients: int,
        participation: float,
        seed: int,
        evaluate_fraction: float = 1.0,
        new_clients: int = 0,
        key: str | None = None,
    ) -> None:
        self.clients = require_whole("clients", clients, 1, MOST_CLIENTS)
        require_whole("seed", seed, 0)
        self.key = seed if key is None else key
        share = require_number("participation", participation, 0, 1, open_low=True)
        evaluated = require_number("evaluate.participation", evaluate_fraction, 0, 1, open_low=True)
        if require_whole("evaluate.new_clients", new_clients, 0) >= clients:
            raise ConfigError(
                f"evaluate.new_clients={new_clients} leaves none of clients={clients} to train; lower it."
            )
        self.new_clients = _some(numpy_generator(seed, "sample new clients"), range(clients), new_clients)
        strangers = set(self.new_clients)
        self.known = [one for one in range(clients) if one not in strangers]
        self.per_round = max(1, round(share * len(self.known)))
        rng = numpy_generator(seed, "sample evaluated clients")
        self.evaluated = _some(rng, self.known, max(1, round(evaluated * len(self.known))))

    def train(self, server_round: int) -> list[int]:
        """The partitions that train in a round, ascending; depends on the key and the round alone."""
        return _some(numpy_generator(self.key, server_round, "sample clients"), self.known, self.per_round)


def _some(rng: np.random.Generator, clients: Sequence[int], size: int) -> list[int]:
    """Partitions drawn without replacement, ascending."""
    return sorted(clients[int(place)] for place in rng.choice(len(clients), size=size, replace=False))

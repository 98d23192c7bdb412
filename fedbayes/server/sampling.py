"""Which clients train in a round, which are evaluated, and which are new: sampled by partition, keyed by the seed.

Every process of a Flower App has the run's configuration, and the seed with it. So with privacy a key that stands in no
configuration, checkpoint or log decides there who trains in a round, and the noise. A key of one's own makes such a run
repeatable, and is as good as its length.
"""

import math
import os
import secrets
from collections.abc import Mapping, Sequence
from typing import final

import numpy as np

from fedbayes.errors import ConfigError, require_number, require_whole
from fedbayes.seeding import numpy_generator

MOST_CLIENTS = 1_000_000  # each is drawn and asked by itself
VARIABLE, SHORTEST = "FEDBAYES_PRIVACY_SECRET", 32  # characters of a privacy key: 128 bits of hexadecimal digits


@final
class Sampling:
    """Samples of clients, the same on every engine; with `single` each client has all images, and one trains a round.

    Attributes:
        key: decides who trains, and the noise that hides who did; the seed, unless it is given.
        known: partitions that may train.
        new_clients: partitions that never do; they are evaluated at the end alone.
        evaluated: partitions that are evaluated in any round, among `known`.
        per_round: clients that train in a round.
    """

    def __init__(
        self,
        *,
        clients: int,
        participation: float,
        seed: int,
        evaluate_fraction: float = 1.0,
        new_clients: int = 0,
        single: bool = False,
        key: str | None = None,
    ) -> None:
        self.clients = require_whole("clients", clients, 1, MOST_CLIENTS)
        require_whole("seed", seed, 0)
        self.key = seed if key is None else key
        require_number("participation", participation, 0, 1, open_low=True)
        require_number("evaluate.participation", evaluate_fraction, 0, 1, open_low=True)
        if require_whole("evaluate.new_clients", new_clients, 0) >= clients:
            raise ConfigError(
                f"evaluate.new_clients={new_clients} leaves none of clients={clients} to train; lower it."
            )
        self.new_clients = _sample(numpy_generator(seed, "sample new clients"), range(clients), new_clients)
        self.known = sorted(set(range(clients)) - set(self.new_clients))
        self.per_round = 1 if single else count_of(participation, len(self.known))
        rng = numpy_generator(seed, "sample evaluated clients")
        self.evaluated = _sample(rng, self.known, count_of(evaluate_fraction, len(self.known)))

    def train(self, server_round: int, invitations: Mapping[int, float] | None = None) -> list[int]:
        """Return the partitions that train in a round, ascending; depends on the arguments and the key alone.

        `invitations` is how often each client is invited, as a multiple of uniform invitations; None for uniform ones.
        """
        rng = numpy_generator(self.key, server_round, "sample clients")
        if invitations is None:
            return _sample(rng, self.known, self.per_round)
        weights = np.array([invitations[partition] for partition in self.known])
        size = max(1, min(int(self.per_round * weights.mean() + 0.5), int(np.count_nonzero(weights))))
        places = rng.choice(len(self.known), size=size, replace=False, p=weights / weights.sum())
        return sorted(self.known[int(place)] for place in places)


def count_of(fraction: float, clients: int) -> int:
    """Return how many clients a fraction of them is: rounded, a half up, and at least 1."""
    return max(1, math.floor(fraction * clients + 0.5))


def _sample(rng: np.random.Generator, clients: Sequence[int], size: int) -> list[int]:
    """Sample clients without replacement; return them ascending."""
    return sorted(clients[int(place)] for place in rng.choice(len(clients), size=size, replace=False))


def privacy_key() -> str:
    """Return the privacy key in the environment, or without one a new one from the operating system."""
    key = os.environ.get(VARIABLE)
    if key is None:
        return secrets.token_hex(32)
    if len(key) < SHORTEST:
        raise ConfigError(
            f"the environment variable {VARIABLE} has {len(key)} characters, which can be guessed; set it to "
            f"{SHORTEST} random ones or more, e.g. by `openssl rand -hex 32`, or leave it out."
        )
    return key

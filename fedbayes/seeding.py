"""Random streams keyed by place and purpose; nothing here or elsewhere touches a global generator.

A stream is named by `(seed, server_round, partition, purpose)`. Equal names give equal draws in every process, whoever
trains beside a client, in whatever order, on whatever engine. That is what makes runs repeatable and resumable.
"""

import hashlib
import operator
from collections.abc import Sequence
from typing import final

import numpy as np
import torch
from torch import Tensor


def key(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part and on their order.

    Raises:
        TypeError: if a part is neither text nor a whole number; NumPy's whole numbers count as Python's.
    """
    plain = tuple(part if isinstance(part, str) else operator.index(part) for part in parts)
    digest = hashlib.blake2b(repr(plain).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """A CPU generator seeded by `key(*parts)`.

    torch keeps the low 32 bits of a seed: of a million streams, about a hundred pairs coincide.
    """
    return torch.Generator().manual_seed(key(*parts))


def numpy_generator(*parts: int | str) -> np.random.Generator:
    """A NumPy generator seeded by `key(*parts)`."""
    return np.random.default_rng(key(*parts))


@final
class Streams:
    """One generator per client of a cohort, drawn from side by side.

    Args:
        seed: the run's seed.
        server_round: the round the draws belong to.
        partitions: the clients of the cohort, in order.
        purpose: what the draws are for; two purposes never share draws.
    """

    def __init__(self, seed: int, server_round: int, partitions: Sequence[int], purpose: str) -> None:
        self._generators = [generator(seed, server_round, partition, purpose) for partition in partitions]

    def normal(
        self, lead: Sequence[int], counts: Sequence[int], size: int, device: torch.device | str = "cpu"
    ) -> Tensor:
        """Standard normal draws of shape `(*lead, C, B, size)`, B the largest of `counts`, at least 1.

        Client c draws `(*lead, counts[c], size)` from its own generator, zeros fill the rest: neither its neighbours
        nor their numbers of images reach its draws. Drawn on the CPU, so that they are the same on every device.

        Args:
            lead: leading dimensions, e.g. number of draws.
            counts: images of each client.
            size: the last dimension.
            device: where the result goes.
        """
        noise = torch.zeros(*lead, len(counts), max(1, *counts), size)
        for c, (count, one) in enumerate(zip(counts, self._generators, strict=True)):
            noise[..., c, :count, :] = torch.randn(*lead, count, size, generator=one)
        return noise.to(device)

    def permutation(self, client: int, count: int) -> Tensor:
        """A permutation of `range(count)` from the generator of the cohort's `client`-th member."""
        return torch.randperm(count, generator=self._generators[client])

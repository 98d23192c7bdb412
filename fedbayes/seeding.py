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
    """Return a 63-bit seed that depends on every part, each a text or a whole number, and on their order."""
    plain = tuple(part if isinstance(part, str) else operator.index(part) for part in parts)
    digest = hashlib.blake2b(repr(plain).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """Return a CPU generator seeded by `key(*parts)`.

    torch keeps the low 32 bits of a seed: of a million streams, about a hundred pairs coincide.
    """
    return torch.Generator().manual_seed(key(*parts))


def numpy_generator(*parts: int | str) -> np.random.Generator:
    """Return a NumPy generator seeded by `key(*parts)`."""
    return np.random.default_rng(key(*parts))


@final
class Streams:
    """One generator per client of a cohort, for one round and one purpose; two purposes never share samples."""

    def __init__(self, seed: int, server_round: int, partitions: Sequence[int], purpose: str) -> None:
        self._generators = [generator(seed, server_round, partition, purpose) for partition in partitions]

    def normal(
        self, lead: Sequence[int], counts: Sequence[int], size: int, device: torch.device | str = "cpu"
    ) -> Tensor:
        """Return standard normal samples of shape `(*lead, C, B, size)`, B the largest of `counts`, at least 1.

        Client c has `(*lead, counts[c], size)` from its own generator, and zeros beyond: neither its neighbours nor
        their numbers of images matter to it. Sampled on the CPU, so that they are the same on every device.
        """
        noise = torch.zeros(*lead, len(counts), max(1, *counts), size)
        for c, (count, rng) in enumerate(zip(counts, self._generators, strict=True)):
            noise[..., c, :count, :] = torch.randn(*lead, count, size, generator=rng)
        return noise.to(device)

    def permutation(self, client: int, count: int) -> Tensor:
        """Return a permutation of `range(count)` from the generator of the cohort's `client`-th member."""
        return torch.randperm(count, generator=self._generators[client])

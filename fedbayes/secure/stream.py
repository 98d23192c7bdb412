"""Uniform elements from a seed of 32 bytes by a stream cipher (AES-256 in counter mode), and shares made of them.

PCG64 and Mersenne twisters are linear: whoever sees some of their output predicts the rest. AES is not.
"""

import os
from dataclasses import dataclass
from typing import final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

from fedbayes.secure.rings import AbstractIntegers, Elements, Shape

SEED = 32
"""Bytes of a seed."""


def fresh_seed() -> bytes:
    """Return a seed from the operating system's randomness."""
    return os.urandom(SEED)


@final
class Stream:
    """The uniform bytes of a seed under a number; streams of two numbers below 2^64 never overlap.

    Args:
        seed: 32 secret bytes.
        number: which of the seed's streams. Each has 2^68 bytes.
    """

    def __init__(self, seed: bytes, number: int = 0) -> None:
        if len(seed) != SEED:
            raise ValueError(f"a seed has {SEED} bytes, got {len(seed)}.")
        self._cipher = Cipher(AES(seed), CTR(number.to_bytes(8, "big") + bytes(8))).encryptor()

    def sample(self, module: AbstractIntegers, shape: Shape) -> Elements:
        """Return the next uniform elements."""
        return module.sample(lambda count: self._cipher.update(bytes(count)), shape)


@final
@dataclass(frozen=True)
class Shares:
    """Two additive shares of an array: the vector of one party and the seed of the other party's vector."""

    vector: Elements
    seed: bytes

    @classmethod
    def split(cls, module: AbstractIntegers, values: Elements, seed: bytes | None = None) -> "Shares":
        """Split elements; without a seed it comes from the operating system. A seed must not serve twice."""
        seed = seed or fresh_seed()
        return cls(module.subtract(values, expanded(module, values.shape, seed)), seed)


def expanded(module: AbstractIntegers, shape: Shape, seed: bytes) -> Elements:
    """Return the share that a seed stands for."""
    return Stream(seed).sample(module, shape)


def total(module: AbstractIntegers, shares: list[Elements]) -> Elements:
    """Return the sum of shares of one party, or of all shares of a secret; it does not depend on the order."""
    result = np.zeros_like(shares[0])
    for share in shares:
        result = module.add(result, share)
    return result

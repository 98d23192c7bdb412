"""Secrets in two shares, a protocol run by both parties in threads, and its result put together."""

import numpy as np

from fedbayes.secure.dealer import Dealer
from fedbayes.secure.party import in_threads
from fedbayes.secure.stream import Stream


def uniform(ring, shape, number=0):
    """Uniform elements, the same for the same number."""
    return Stream(b"u" * 32, number).sample(ring, shape)


def split(module, secret, seed=b"s" * 32):
    """Two uniform shares of a secret."""
    first = Stream(seed).sample(module, secret.shape)
    return [first, module.subtract(secret, first)]


def run(protocol, result_in, *secrets):
    """Run `protocol(party, *shares)` on secrets `(module, elements)`; return the sum of results, and the transcript.

    `result_in` is the module of the result, or one for each result of a tuple.
    """
    shares = [split(module, secret, bytes([i]) * 32) for i, (module, secret) in enumerate(secrets)]

    def program(party):
        return protocol(party, *(pair[party.index] for pair in shares)), party.transcript

    pairs = in_threads(program, Dealer((b"0" * 32, b"1" * 32)))
    (first, transcript), (second, _) = pairs
    if not isinstance(result_in, tuple):
        return result_in.add(first, second), transcript
    sums = (module.add(a, b) for module, a, b in zip(result_in, first, second, strict=True))
    return (*sums, transcript)


def counts(transcript, elements=1):
    """Bits online, rounds and bits offline for each element."""
    online, offline = transcript.total("online"), transcript.total("offline")
    return online.bits / elements, online.rounds, offline.bits / elements


def edges(ring, count=40):
    """0, 1, the largest and the smallest signed number, -1, and uniform ones."""
    half = ring.modulus // 2
    ends = np.array([0, 1, half - 1, half, ring.modulus - 1], np.uint64)
    return np.concatenate([ring.reduce(ends), uniform(ring, (count,))])

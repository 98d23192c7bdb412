"""Three parties, each with two of three shares: products for one message of each party.

x = x_0 + x_1 + x_2, and party i holds x_i and x_{i+1}. A bilinear map of two such secrets is local up to a mask and
one resharing, so a layer costs three elements for each *output*, and none for its weights: it is what layers with 1-bit
weights are built of in [1], which had to be reconstructed (see `lookup`). The product itself is of [2].

[1] Lu et al., Privacy-preserving inference for quantized BERT models, 2025.
[2] Araki et al., High-throughput semi-honest secure three-party computation with an honest majority, CCS 2016.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar, final

import numpy as np

from fedbayes.secure.bilinear import MAPS
from fedbayes.secure.channel import AbstractChannel, Paired
from fedbayes.secure.rings import Elements, Ring, pack, size_in_bits, unpack
from fedbayes.secure.stream import Stream, expanded, fresh_seed
from fedbayes.secure.transcript import Transcript

Replicated = tuple[Elements, Elements]
"""Party i's shares x_i and x_{i+1}."""
Result = TypeVar("Result")


@final
@dataclass
class Member:
    """One of three parties.

    Attributes:
        index: 0, 1 or 2.
        previous: line to party index - 1, which gets what this party sends.
        next: line to party index + 1.
        seeds: common with the previous party, and with the next one.
    """

    index: int
    previous: AbstractChannel
    next: AbstractChannel
    seeds: tuple[bytes, bytes]
    transcript: Transcript = field(default_factory=Transcript)
    _number: int = 0

    def zero(self, ring: Ring, like: Elements) -> Elements:
        """Return a share of 0, uniform to each of the other parties: what two neighbours expand, subtracted."""
        self._number += 1
        a, b = (Stream(seed, self._number).sample(ring, like.shape) for seed in self.seeds)
        return ring.subtract(a, b)

    def reshare(self, ring: Ring, z: Elements) -> Replicated:
        """Return replicated shares of the sum of three parties' z; one round, an element each way around."""
        masked = ring.add(z, self.zero(ring, z))
        form = [(ring, z.shape)]
        bits = size_in_bits(form)
        if self.index == 0:  # three parties that all write first would wait for each other once buffers are full
            incoming = self.next.exchange(b"", -(-bits // 8))
        self.previous.exchange(pack([(ring, masked)]), 0)
        if self.index != 0:
            incoming = self.next.exchange(b"", -(-bits // 8))
        (following,) = unpack(incoming, form)
        self.transcript.count("online", 3 * [bits], rounds=1)
        return masked, following


def bilinear(member: Member, ring: Ring, name: str, x: Replicated, w: Replicated) -> Replicated:
    """Return replicated shares of `f(x, w)`; one round, three elements for each entry of the image.

    Args:
        member: who runs it.
        ring: where the numbers lie.
        name: a key of `bilinear.MAPS`.
        x: shares of the first operand.
        w: shares of the second operand, say of 1-bit weights: +1 and -1.
    """
    f = MAPS[name]
    with member.transcript.protocol(name):
        return member.reshare(ring, ring.reduce(f(x[0], ring.add(w[0], w[1])) + f(x[1], w[0])))


def from_pair(member: Member, ring: Ring, share: Elements) -> Replicated:
    """Return replicated shares of a secret that parties 1 and 2 share; party 0 gives zeros. One round."""
    with member.transcript.protocol("from_pair"):
        return member.reshare(ring, share)


def to_pair(member: Member, ring: Ring, x: Replicated) -> Elements:
    """Return a share of x for parties 1 and 2, and zeros for party 0, without a message."""
    if member.index == 1:
        return ring.add(*x)  # x_1 + x_2
    return x[1] if member.index == 2 else np.zeros_like(x[0])  # x_0 is party 2's second share


def split(ring: Ring, values: Elements) -> list[Replicated]:
    """Split elements for three parties, two shares of which are uniform."""
    x0, x1 = (expanded(ring, values.shape, fresh_seed()) for _ in range(2))
    parts = [x0, x1, ring.subtract(values, ring.add(x0, x1))]
    return [(parts[i], parts[(i + 1) % 3]) for i in range(3)]


def in_threads(program: Callable[[Member], Result]) -> list[Result]:
    """Run a program as all three parties, each in a thread of its own, and return their results.

    Raises:
        BaseException: the first error of a party; the others stop too.
    """
    lines, seeds = [Paired.line() for _ in range(3)], [fresh_seed() for _ in range(3)]
    members = [
        Member(i, previous=lines[i][0], next=lines[(i + 1) % 3][1], seeds=(seeds[i], seeds[(i + 1) % 3]))
        for i in range(3)
    ]
    errors: list[BaseException] = []

    def run(member: Member) -> Result:
        try:
            return program(member)
        except BaseException as error:
            errors.append(error)
            member.previous.close()
            member.next.close()
            raise

    with ThreadPoolExecutor(3) as threads:
        futures = [threads.submit(run, member) for member in members]
    if errors:
        raise errors[0]
    return [future.result() for future in futures]

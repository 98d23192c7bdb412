"""A party: its index, its line to the other party, its end of the dealer and its transcript.

Protocols are functions of a party and of *its* shares. Both parties call the same function; neither can touch what the
other holds.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TypeVar, final

from fedbayes.secure.channel import AbstractChannel, Paired
from fedbayes.secure.dealer import AbstractCorrelation, AbstractSource, Arrays, Dealer
from fedbayes.secure.rings import AbstractIntegers, Elements, Form, pack, size_in_bits, unpack
from fedbayes.secure.transcript import Transcript

Result = TypeVar("Result")
Part = tuple[AbstractIntegers, Elements]


@final
@dataclass
class Party:
    """One of two parties, index 0 or 1."""

    index: int
    channel: AbstractChannel
    source: AbstractSource
    transcript: Transcript = field(default_factory=Transcript)

    def protocol(self, name: str) -> AbstractContextManager[None]:
        """Name what is transmitted meanwhile in the transcript."""
        return self.transcript.protocol(name)

    def exchange(self, outgoing: Sequence[Part], incoming: Sequence[Form]) -> Arrays:
        """Send arrays and return the other party's arrays, which have the forms `incoming`; one round."""
        bits = [size_in_bits([(module, array.shape) for module, array in outgoing]), size_in_bits(incoming)]
        data = self.channel.exchange(pack(outgoing) if bits[0] else b"", -(-bits[1] // 8))
        self.transcript.count("online", bits, rounds=1)
        return unpack(data, incoming)

    def swap(self, *parts: Part) -> Arrays:
        """Exchange arrays of the same forms; one round."""
        return self.exchange(parts, [(module, array.shape) for module, array in parts])

    def open(self, *parts: Part) -> Arrays:
        """Reveal shared values to both parties; one round."""
        pairs = zip(parts, self.swap(*parts), strict=True)
        return [module.add(share, other) for (module, share), other in pairs]

    def deal(self, correlation: AbstractCorrelation) -> Arrays:
        """Return the party's part of correlated randomness."""
        self.transcript.count("offline", [size_in_bits(correlation.corrections())])
        return self.source.deal(correlation)


def in_threads(program: Callable[[Party], Result], dealer: Dealer | None = None) -> tuple[Result, Result]:
    """Run a program as both parties, each in a thread of its own, and return both results.

    Raises:
        BaseException: the first error of a party; the other party stops too.
    """
    dealer = dealer or Dealer()
    return with_sources(program, [dealer.source(0), dealer.source(1)])


def with_sources(program: Callable[[Party], Result], sources: Sequence[AbstractSource]) -> tuple[Result, Result]:
    """Run a program as `in_threads` does, with these two ends of a dealer."""
    parties = [Party(*each) for each in zip((0, 1), Paired.line(), sources, strict=True)]
    errors: list[BaseException] = []

    def run(party: Party) -> Result:
        try:
            return program(party)
        except BaseException as error:
            errors.append(error)
            party.channel.close()
            raise

    with ThreadPoolExecutor(2) as threads:
        futures = [threads.submit(run, party) for party in parties]
    if errors:
        raise errors[0]
    return futures[0].result(), futures[1].result()

"""A dealer that is awake only beforehand: what a program will ask for is recorded, dealt, and taken along as bytes.

What protocols ask the dealer for depends on shapes alone, so a rehearsal on zeros asks for the same.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, final

import numpy as np

from fedbayes.errors import RunError
from fedbayes.secure.dealer import AbstractCorrelation, AbstractSource, Arrays, Dealer, Seeded
from fedbayes.secure.party import Party, with_sources
from fedbayes.secure.rings import pack, size_in_bits, unpack


@final
class Recorder(AbstractSource):
    """Records requests and deals zeros.

    Attributes:
        requests: what was asked for, in turn.
    """

    def __init__(self, index: int) -> None:
        self._index = index
        self.requests: list[AbstractCorrelation] = []

    def deal(self, correlation: AbstractCorrelation) -> Arrays:
        """Record a request and return zeros in its forms."""
        self.requests.append(correlation)
        forms = [*correlation.samples()[self._index], *(correlation.corrections() if self._index else ())]
        return [np.zeros(shape, module.dtype) for module, shape in forms]


def rehearse(program: Callable[[Party], Any]) -> list[AbstractCorrelation]:
    """Return what a program will ask the dealer for; give it zeros as inputs, for nothing is masked here."""
    recorders = [Recorder(0), Recorder(1)]
    with_sources(program, recorders)
    return recorders[0].requests


def prepare(dealer: Dealer, requests: Sequence[AbstractCorrelation]) -> bytes:
    """Return party 1's corrections of all requests, each filled up to a whole byte; party 0 needs its seed alone."""
    data = []
    for number, correlation in enumerate(requests):
        dealer.answer(0, number, correlation)
        modules = [module for module, _ in correlation.corrections()]
        data.append(pack(list(zip(modules, dealer.answer(1, number, correlation), strict=True))))
    return b"".join(data)


def prepared(index: int, seed: bytes, requests: Sequence[AbstractCorrelation], corrections: bytes = b"") -> Seeded:
    """Return a party's end of a dealer that has gone. Use it for one program: a retry needs a seed of its own.

    Args:
        index: 0 or 1.
        seed: what the party shares with the dealer.
        requests: what the dealer prepared.
        corrections: for party 1, what `prepare` returned.
    """
    turns: Iterator[AbstractCorrelation] = iter(requests)
    start = 0

    def ask(number: int, correlation: AbstractCorrelation) -> Arrays:
        nonlocal start
        if next(turns, None) != correlation:
            raise RunError(f"request {number} is not what the dealer prepared; rehearse the program with these shapes.")
        if index == 0:
            return []
        forms = correlation.corrections()
        stop = start + -(-size_in_bits(forms) // 8)
        arrays, start = unpack(corrections[start:stop], forms), stop
        return arrays

    return Seeded(index, seed, ask)

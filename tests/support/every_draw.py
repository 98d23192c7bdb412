"""A dealer that counts through all of its randomness, and the views that the two parties have of a protocol.

A view is everything that a party gets: its part of the dealer's randomness and the other party's messages. Where the
distribution of a party's view is the same whatever the other party's input, the party learns nothing. Enumerated, that
is a proof for the size at hand.
"""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from math import prod
from threading import Lock

import numpy as np

from fedbayes.secure.channel import Paired
from fedbayes.secure.dealer import AbstractSource
from fedbayes.secure.party import Party


class EveryDraw:
    """Deals the draws `start` to `start + count` of all, one for each row of the first axis.

    `slip(correlation, first, second)` may spoil the samples of a request before anybody uses them.
    """

    def __init__(self, start, count, slip=None):
        self.radix, self.dealt, self.lock = 1, [], Lock()
        self.rows, self.slip = np.arange(start, start + count), slip

    def samples(self, forms):
        arrays = []
        for module, shape in forms:
            digits = np.empty((len(self.rows), prod(shape[1:])), np.int64)
            for column in digits.T:
                column[:] = self.rows // self.radix % module.modulus
                self.radix *= module.modulus
            arrays.append(module.reduce(digits).reshape(len(self.rows), *shape[1:]))
        return arrays

    def deal(self, index, number, correlation):
        with self.lock:
            if number == len(self.dealt):
                first, second = map(self.samples, correlation.samples())
                if self.slip:
                    self.slip(correlation, first, second)
                self.dealt.append((first, second + correlation.correct(first, second)))
            return [array.copy() for array in self.dealt[number][index]]


class Watched(AbstractSource):
    """A party's end of `EveryDraw`; what it returns is part of the view."""

    def __init__(self, index, dealer, view):
        self.index, self.dealer, self.view, self.number = index, dealer, view, 0

    def deal(self, correlation):
        arrays = self.dealer.deal(self.index, self.number, correlation)
        self.number += 1
        modules = [module for module, _ in correlation.samples()[self.index]]
        if self.index == 1:
            modules += [module for module, _ in correlation.corrections()]
        self.view.extend(zip(modules, arrays, strict=True))
        return arrays


def observe(program, inputs, dealer):
    """Run `program(party, *arrays)` on an input of each party; return both results and both views as keys."""

    def party_and_view(index, channel):
        view = []
        party = Party(index, channel, Watched(index, dealer, view))
        exchange = party.exchange

        def watched(outgoing, incoming):
            arrays = exchange(outgoing, incoming)
            view.extend((module, array) for (module, _), array in zip(incoming, arrays, strict=True))
            return arrays

        party.exchange = watched
        return party, view

    pairs = [party_and_view(index, channel) for index, channel in enumerate(Paired.line())]
    rows = len(dealer.rows)

    def run(party):
        arrays = [np.broadcast_to(value, (rows, *value.shape)).copy() for value in inputs[party.index]]
        try:
            return program(party, *arrays)
        except BaseException:
            party.channel.close()
            raise

    with ThreadPoolExecutor(2) as threads:
        futures = [threads.submit(run, party) for party, _ in pairs]
    return [future.result() for future in futures], [keys(view, rows) for _, view in pairs]


def keys(view, rows):
    """A whole number for each row, equal for equal views alone."""
    key, span = np.zeros(rows, np.int64), 1
    for module, array in view:
        for column in array.reshape(rows, -1).T:
            key, span = key * module.modulus + column.astype(np.int64), span * module.modulus
    assert span < 2**63, "too large a view for one number"
    return key


def number_of_draws(program, inputs):
    """How many values the dealer's randomness has."""
    dealer = EveryDraw(0, 1)
    observe(program, inputs, dealer)
    return dealer.radix


def check(program, pairs, expected, combine, slip=None, classes=(None, None), chunk=1 << 20):
    """Go through pairs of inputs and all draws; return the faults: `wrong results`, `view of 0`, `view of 1`.

    An input is a tuple of small arrays. `expected(input0, input1)` is the result that `combine` makes of both parties'
    results. `classes[i](input0, input1)` names what party i may learn.
    """
    faults, seen = set(), {}
    draws = number_of_draws(program, pairs[0])
    for inputs in pairs:
        views = [[], []]
        for start in range(0, draws, chunk):
            dealer = EveryDraw(start, min(chunk, draws - start), slip)
            results, both = observe(program, inputs, dealer)
            if not (combine(*results) == expected(*inputs)).all():
                faults.add("wrong results")
            for parts, view in zip(views, both, strict=True):
                parts.append(view)
        for index, parts in enumerate(views):
            knowledge = [value.tobytes() for value in inputs[index]], classes[index] and classes[index](*inputs)
            distribution = hashlib.blake2b(np.sort(np.concatenate(parts))).digest()
            if seen.setdefault((index, str(knowledge)), distribution) != distribution:
                faults.add(f"view of {index}")
    return faults

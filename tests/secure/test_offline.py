"""A dealer that has gone before the inputs are there, and messages that are uniform whatever the inputs."""

import numpy as np
import pytest
from scipy.stats import chisquare, kstest

from fedbayes.errors import RunError
from fedbayes.secure.arithmetic import COMPARISONS, argmax
from fedbayes.secure.dealer import Dealer
from fedbayes.secure.offline import prepare, prepared, rehearse
from fedbayes.secure.party import in_threads, with_sources
from fedbayes.secure.rings import Ring
from fedbayes.secure.stream import Stream

RING, SEEDS = Ring(32), (b"0" * 32, b"1" * 32)
BOTH = pytest.mark.parametrize("less", COMPARISONS.values(), ids=COMPARISONS.keys())


@BOTH
def test_prepared_randomness_gives_what_a_dealer_at_hand_gives(less):
    shares = [Stream(SEEDS[0], number).sample(RING, (20, 6)) for number in (7, 8)]

    def program(party):
        return argmax(party, RING, shares[party.index], less)

    def on_zeros(party):
        return argmax(party, RING, shares[0] * 0, less)

    requests = rehearse(on_zeros)
    corrections = prepare(Dealer(SEEDS), requests)
    sources = [prepared(0, SEEDS[0], requests), prepared(1, SEEDS[1], requests, corrections)]
    for result, expected in zip(with_sources(program, sources), in_threads(program, Dealer(SEEDS)), strict=True):
        assert all((a == b).all() for a, b in zip(result, expected, strict=True))
    with pytest.raises(RunError, match="rehearse"):
        with_sources(program, sources)


@BOTH
@pytest.mark.parametrize("secret", [0, 2**31 - 1])
def test_messages_are_uniform_whatever_the_secret(less, secret):
    """Elements of every message, of 4000 equal numbers with equal shares side by side."""
    x = [np.full((4000, 2), secret, np.uint32), np.zeros((4000, 2), np.uint32)]
    samples = []

    def program(party):
        exchange = party.exchange

        def watched(outgoing, incoming):
            samples.extend((min(module.modulus, 256), array) for module, array in outgoing)
            return exchange(outgoing, incoming)

        party.exchange = watched
        return argmax(party, RING, x[party.index], less)

    in_threads(program, Dealer(SEEDS))
    counts = [np.bincount(np.ravel(array % array.dtype.type(span)), minlength=span) for span, array in samples]
    p = [chisquare(count).pvalue for count in counts]
    assert len(p) == (10 if less is COMPARISONS["g_module"] else 26)
    assert min(p) > 1e-3 / len(p), "Bonferroni"
    assert kstest(p, "uniform").pvalue > 1e-3

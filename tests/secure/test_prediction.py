"""Private prediction from features: the whole numbers of the clear, ties and ruled-out classes, costs, refusals."""

import numpy as np
import pytest
from two_parties import counts, run

from fedbayes.errors import ConfigError
from fedbayes.secure.prediction import FRACTION, RING, QuantisedLinear, predict, quantised, scores

rng = np.random.default_rng(0)
FEATURES, WEIGHTS, BIAS = rng.normal(size=(40, 7)), rng.normal(size=(7, 5)), rng.normal(size=5)


def test_scores_on_shares_are_the_clear_ones():
    classifier = QuantisedLinear.of(WEIGHTS, BIAS)
    secrets = [(RING, RING.reduce(a)) for a in (quantised(FEATURES), classifier.weights, classifier.bias)]
    result, transcript = run(scores, RING, *secrets)
    np.testing.assert_array_equal(RING.signed(result), classifier.scores(FEATURES))
    assert counts(transcript) == (2 * (40 * 7 + 7 * 5) * RING.bits, 1, 40 * 5 * RING.bits)
    error = np.abs(classifier.scores(FEATURES) / 4.0**FRACTION - (FEATURES @ WEIGHTS + BIAS))
    rounding = 2.0 ** -(FRACTION + 1) * (np.abs(FEATURES).sum(1)[:, None] + np.abs(WEIGHTS).sum(0) + 1)
    assert (error <= rounding).all()


@pytest.mark.parametrize("compare", ["tree", "g_module"])
def test_classes_are_the_largest_scores(compare):
    classifier = QuantisedLinear.of(WEIGHTS, BIAS)
    result = predict(FEATURES, classifier, compare)
    np.testing.assert_array_equal(result.classes, classifier.scores(FEATURES).argmax(1))
    assert result.input_bits == (40 * 7 + 7 * 5 + 5) * RING.bits + 3 * 256
    assert result.output_bits == 40 * 2 * 3
    comparison = {"tree": 8 * 47 - 6 - 2 * 4, "g_module": 2 * 47 + 2 * 48 * 6 + 48 + 6}[compare]
    selection = 2 * 2 * (RING.bits + 1) + 2  # of a score and its place
    product = 2 * (40 * 7 + 7 * 5) * RING.bits
    assert result.transcript.total("online").bits == product + 40 * 4 * (comparison + selection)
    assert result.transcript.total("online").rounds == 1 + 3 * {"tree": 8, "g_module": 5}[compare]


def test_ties_go_to_the_first_and_ruled_out_classes_never_win():
    weights, bias = np.zeros((7, 4)), np.array([-np.inf, -900.0, -900.0, -np.inf])
    assert (predict(FEATURES, QuantisedLinear.of(weights, bias)).classes == 1).all()


def test_what_does_not_fit_the_ring_is_refused():
    with pytest.raises(ConfigError, match="a feature is 128"):
        quantised(np.full((1, 7), -128.0))
    with pytest.raises(ConfigError, match="scores of this head"):
        QuantisedLinear.of(np.full((7, 4), 1200.0), BIAS[:4])
    classifier = QuantisedLinear.of(np.full((7, 4), 1100.0), BIAS[:4])
    assert (np.abs(classifier.scores(np.full((1, 7), 127.9))) < 2 ** (RING.bits - 3)).all()

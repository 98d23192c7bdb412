"""Steps of clients by hand."""

import numpy as np
import pytest

from fedbayes.arrays import base, clipped, length, moved

SENT = {"a": np.array([1.0, 1.0], np.float32), "b": np.array([[0.0]]), "n": np.array([7])}
LEARNT = {"a": np.array([1.0, 4.0], np.float32), "b": np.array([[4.0]]), "n": np.array([9]), "new": np.zeros(3)}


def test_the_length_is_of_all_numbers_together():
    assert length(SENT, LEARNT) == pytest.approx(5.0)  # (0, 3) and 4
    assert length(SENT, SENT) == 0.0


def test_a_multiple_of_a_step_leaves_counts_alone():
    twice = moved(SENT, LEARNT, 2.0)
    assert twice["a"].tolist() == [1.0, 7.0]
    assert twice["a"].dtype == np.float32
    assert twice["b"].tolist() == [[8.0]]
    assert twice["n"].tolist() == [9]
    back = moved(SENT, LEARNT, -1.0)
    assert back["a"].tolist() == [1.0, -2.0]


def test_clipping_keeps_the_direction_and_leaves_short_steps_as_they_are():
    short = clipped(SENT, LEARNT, 2.5)
    assert length(SENT, short) == pytest.approx(2.5)
    assert short["a"].tolist() == pytest.approx([1.0, 2.5])
    assert clipped(SENT, LEARNT, 5.0) is LEARNT


def test_what_was_not_sent_starts_from_zero():
    assert base(SENT, "new", LEARNT["new"]).tolist() == [0, 0, 0]
    assert base(SENT, "a", np.zeros(3)).tolist() == [0, 0, 0]

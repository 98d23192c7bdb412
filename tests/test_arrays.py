"""Named arrays: their first that is not finite, their mean, their flat names, and steps of clients by hand."""

import numpy as np
import pytest

from fedbayes.arrays import base, by_name, by_partition, clipped, length, mean_arrays, moved, non_finite, under


def test_the_first_array_that_is_not_finite_is_named():
    assert non_finite({"n": np.array([1]), "a": np.ones(2), "b": np.array([1, np.inf]), "c": np.array([np.nan])}) == "b"
    assert non_finite({"n": np.array([1]), "a": np.ones(2, np.float16), "empty": np.zeros(0)}) is None


def test_the_mean_is_summed_in_double_precision_and_keeps_the_type():
    states = [{"w": np.full(2, value, np.float32), "n": np.array([value])} for value in (1, 2, 6)]
    mean = mean_arrays(states)
    assert mean["w"].dtype == np.float32
    assert mean["n"].dtype == states[0]["n"].dtype
    np.testing.assert_array_equal(mean["w"], [3, 3])
    large = [{"w": np.array(2**24, np.float32)}, {"w": np.array(1, np.float32)}, {"w": np.array(1, np.float32)}]
    assert mean_arrays(large)["w"] == np.float32((2**24 + 2) / 3), "in float32 the ones would be lost"
    assert mean_arrays([]) == {}


def test_flat_names_are_undone():
    clients = {3: {"head.bias": np.zeros(2)}, 12: {"head.bias": np.ones(2), "z": np.ones(1)}}
    flat = by_name(clients)
    assert list(flat) == ["3/head.bias", "12/head.bias", "12/z"]
    assert by_partition(flat).keys() == clients.keys()
    assert under("12/", flat).keys() == clients[12].keys()
    with pytest.raises(ValueError, match="head"):
        by_partition({"head/bias": np.zeros(1)})


START = {"a": np.array([1.0, 1.0], np.float32), "b": np.array([[0.0]]), "n": np.array([7])}
LEARNT = {"a": np.array([1.0, 4.0], np.float32), "b": np.array([[4.0]]), "n": np.array([9]), "new": np.zeros(3)}


def test_the_length_is_of_all_numbers_together():
    assert length(START, LEARNT) == pytest.approx(5.0)  # (0, 3) and 4
    assert length(START, START) == 0.0


def test_a_multiple_of_a_step_leaves_counts_alone():
    twice = moved(START, LEARNT, 2.0)
    assert twice["a"].tolist() == [1.0, 7.0]
    assert twice["a"].dtype == np.float32
    assert twice["b"].tolist() == [[8.0]]
    assert twice["n"].tolist() == [9]
    assert twice["new"].tolist() == [0, 0, 0]
    assert base(START, "a", np.zeros(3)).tolist() == [0, 0, 0], "what was not sent in this shape starts from 0"


def test_clipping_keeps_the_direction_and_leaves_short_steps_as_they_are():
    short = clipped(START, LEARNT, 2.5)
    assert length(START, short) == pytest.approx(2.5)
    assert short["a"].tolist() == pytest.approx([1.0, 2.5])
    assert clipped(START, LEARNT, 5.0) is LEARNT

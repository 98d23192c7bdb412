"""Named arrays: their first that is not finite, their mean, and their flat names."""

import numpy as np
import pytest

from fedbayes.arrays import by_name, by_partition, mean_arrays, non_finite, under


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
    seen = {3: {"head.bias": np.zeros(2)}, 12: {"head.bias": np.ones(2), "z": np.ones(1)}}
    flat = by_name(seen)
    assert list(flat) == ["3/head.bias", "12/head.bias", "12/z"]
    assert by_partition(flat).keys() == seen.keys()
    assert under("12/", flat).keys() == seen[12].keys()
    with pytest.raises(ValueError, match="head"):
        by_partition({"head/bias": np.zeros(1)})

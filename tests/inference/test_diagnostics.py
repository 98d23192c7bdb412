"""Diagnostics by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from fedbayes.inference.diagnostics import (
    bound_saturation,
    effective_components,
    has_collapsed,
    log_mixture,
    mixing_ratio,
    mixing_variances,
)
from fedbayes.inference.thresholds import COLLAPSED

WEIGHTS = st.lists(st.floats(-80, 80), min_size=1, max_size=12)


def test_shapes_are_checked_in_tests():
    with pytest.raises(TypeCheckError):
        mixing_variances(torch.randn(4, 3, 2), torch.ones(5, 2))


def test_log_mixture_by_hand():
    components = torch.tensor([[0.5, 1e-30], [0.1, 0.3]]).log()
    torch.testing.assert_close(log_mixture(components).exp(), torch.tensor([0.3, 0.15]))


def test_effective_components_by_hand():
    assert effective_components(torch.zeros(11, 3)).tolist() == pytest.approx([11.0] * 3)
    assert effective_components(torch.tensor([0.0, -200.0, -300.0])).item() == pytest.approx(1.0)
    weights = torch.tensor([0.5, 0.25, 0.25])
    assert effective_components(weights.log() + 7).item() == pytest.approx(1 / 0.375)


def test_bound_saturation_by_hand():
    # log 0.6 - log (0.6 + 0.2) / 2 = log 1.5, of log 2 that can be had
    found = bound_saturation(torch.tensor([0.6, 0.2]).log())
    assert found.item() == pytest.approx(math.log(1.5) / math.log(2))
    assert bound_saturation(torch.zeros(4, 2)).tolist() == [0.0, 0.0]
    assert bound_saturation(torch.tensor([0.0, -500.0, -500.0])).item() == pytest.approx(1.0)
    with pytest.raises(ValueError, match="needs K of at least 1, got 0"):
        bound_saturation(torch.zeros(1, 3))


@given(WEIGHTS)
def test_effective_components_lie_between_one_and_all_and_saturation_below_one(weights):
    found = torch.tensor(weights, dtype=torch.float64)
    assert 1 - 1e-12 <= effective_components(found) <= len(found) + 1e-12
    torch.testing.assert_close(effective_components(found), effective_components(found.flip(0) + 3.0))
    if len(found) > 1:
        assert bound_saturation(found) <= 1 + 1e-12


def test_mixing_ratio_by_hand():
    psi = torch.tensor([[[1.0, 1.0], [3.0, 4.0]], [[-1.0, 1.0], [3.0, 4.0]]])
    mixing, conditional = mixing_variances(psi, torch.full((1, 1), 0.5))
    assert mixing.tolist() == pytest.approx([2.0, 0.0])
    assert conditional.tolist() == pytest.approx([0.5, 0.5])
    assert mixing_ratio(1.0, 0.5) == pytest.approx(2 / 3), "means first; the mean of the images' ratios is 0.4"
    _, each = mixing_variances(psi, torch.tensor([[1.0, 2.0], [1.0, 1.0]]))
    assert each.tolist() == pytest.approx([5.0, 2.0])


def test_a_mixing_of_no_width_has_collapsed():
    assert has_collapsed(mixing_ratio(0.0, 1.0))
    assert has_collapsed(math.nextafter(COLLAPSED, 0))
    assert not has_collapsed(COLLAPSED)
    assert not has_collapsed(mixing_ratio(1.0, 1.0))

"""Diagnostics by hand."""

import math

import pytest
import torch
from jaxtyping import TypeCheckError

from fedbayes.inference.diagnostics import has_collapsed, mixing_ratio, mixing_variances
from fedbayes.inference.thresholds import COLLAPSED


def test_shapes_are_checked_in_tests():
    with pytest.raises(TypeCheckError):
        mixing_variances(torch.randn(4, 3, 2), torch.ones(5, 2))


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

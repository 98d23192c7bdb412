"""Detection scores against closed forms, counting by hand, and torchmetrics."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch.distributions import Normal

from fedbayes.metrics.detection import aurc, auroc, fpr95

SCORES = st.lists(st.integers(-3, 3), min_size=1, max_size=30)


def pairs(inside, outside):
    """P(outside > inside) + P(equal) / 2, counted."""
    gap = outside[:, None] - inside
    return (gap > 0).double().mean().item() + (gap == 0).double().mean().item() / 2


def rate(inside, outside):
    """The false positive rate of the strictest threshold that detects 95 %, counted."""
    allowed = [t for t in outside.tolist() if (outside >= t).double().mean() >= 0.95]
    return (inside >= max(allowed)).double().mean().item()


def test_two_normals_one_standard_deviation_apart():
    inside, outside = torch.randn(100_000), torch.randn(100_000) + 1
    unit = Normal(0.0, 1.0)
    assert auroc(inside, outside) == pytest.approx(unit.cdf(torch.tensor(1 / math.sqrt(2))).item(), abs=4e-3)
    # 95 % of N(1, 1) lie above 1 - 1.645, and so do 74 % of N(0, 1).
    assert fpr95(inside, outside) == pytest.approx(unit.cdf(torch.tensor(0.6449)).item(), abs=8e-3)


def test_separate_scores_equal_scores_and_scores_the_wrong_way_round():
    low, high = torch.arange(5.0), torch.arange(5.0) + 10
    assert (auroc(low, high), fpr95(low, high)) == (1.0, 0.0)
    assert (auroc(high, low), fpr95(high, low)) == (0.0, 1.0)
    same = torch.full((4,), 0.3)
    assert (auroc(same, same), fpr95(same, same)) == (0.5, 1.0)


def test_nineteen_of_twenty_are_ninety_five_per_cent():
    outside = torch.tensor([0.0] + [2.0] * 19)
    assert fpr95(torch.tensor([1.0, 3.0]), outside) == pytest.approx(0.5)


def test_large_and_close_scores_are_told_apart():
    # A sigmoid, which torchmetrics puts on scores outside [0, 1], would make these tie.
    inside, outside = torch.tensor([50.0, 51.0]), torch.tensor([60.0, 61.0])
    assert auroc(inside, outside) == 1.0
    assert auroc(torch.tensor([1e-9, 2e-9]).double(), torch.tensor([3e-9]).double()) == 1.0


@given(inside=SCORES, outside=SCORES, seed=st.integers(0, 99))
@settings(max_examples=60)
def test_both_are_what_counting_gives_in_any_order_and_on_any_scale(inside, outside, seed):
    inside, outside = torch.tensor(inside).double(), torch.tensor(outside).double()
    found = auroc(inside, outside), fpr95(inside, outside)
    assert found == pytest.approx((pairs(inside, outside), rate(inside, outside)), abs=1e-6)
    assert auroc(outside, inside) == pytest.approx(1 - found[0], abs=1e-6)
    order = torch.randperm(len(inside), generator=torch.Generator().manual_seed(seed))
    assert (auroc(inside[order].exp(), outside.exp()), fpr95(inside[order].exp(), outside.exp())) == found


def test_the_area_under_risk_and_coverage_by_hand():
    confidence = torch.tensor([0.9, 0.6, 0.8, 0.7])
    right = torch.tensor([True, False, False, True])
    # From the most confident on: right, wrong, right, wrong.
    assert aurc(confidence, right) == pytest.approx((0 + 1 / 2 + 1 / 3 + 2 / 4) / 4)
    assert aurc(torch.tensor([0.5]), torch.tensor([False])) == 1.0


def test_ties_count_as_the_mean_over_their_orders():
    right = torch.tensor([True, False, False])
    tied = aurc(torch.tensor([0.5, 0.5, 0.5]), right)
    assert tied == pytest.approx(2 / 3), "the error rate at every coverage"
    orders = [torch.tensor(order) for order in ([0, 1, 2], [1, 0, 2], [1, 2, 0])]
    each = [aurc(torch.tensor([0.3, 0.2, 0.1]), right[order]) for order in orders]
    assert tied == pytest.approx(sum(each) / 3)


def test_the_best_order_has_the_closed_form():
    error, count = 0.3, 20_000
    right = torch.arange(count) >= error * count  # the errors are the least confident
    assert aurc(torch.arange(count).double(), right) == pytest.approx(
        error + (1 - error) * math.log(1 - error), abs=1e-3
    )


@given(few=st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=30), seed=st.integers(0, 99))
@settings(max_examples=60)
def test_the_area_ignores_order_and_scale_and_stays_in_range(few, seed):
    confidence = torch.tensor([level for level, _ in few]).double()
    right = torch.tensor([one for _, one in few])
    order = torch.randperm(len(right), generator=torch.Generator().manual_seed(seed))
    found = aurc(confidence, right)
    assert 0 <= found <= 1
    assert aurc(confidence[order].exp(), right[order]) == found


def test_scores_of_no_image_are_refused():
    nothing, some = torch.zeros(0), torch.ones(3)
    with pytest.raises(ValueError, match="0 inside and 3 outside"):
        auroc(nothing, some)
    with pytest.raises(ValueError, match="3 inside and 0 outside"):
        fpr95(some, nothing)
    with pytest.raises(ValueError, match="0 images"):
        aurc(nothing, nothing.bool())

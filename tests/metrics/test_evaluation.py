"""The numbers of `metrics.jsonl` and `summary.json`, worked out by hand."""

import math

import numpy as np
import pytest

from fedbayes.comm.messages import ClientUpdate
from fedbayes.metrics.evaluation import Evaluation, detection


def answer(partition, probabilities, labels, domains=None, expected=None, **metrics):
    count = len(labels)
    arrays = {
        "probabilities": np.array(probabilities, np.float32),
        "expected_entropy": np.zeros(count, np.float32) if expected is None else np.array(expected, np.float32),
        "labels": np.array(labels),
        "domains": np.array(domains or [0] * count),
    }
    return ClientUpdate(partition, arrays, count, {"accuracy": -1.0, "nll": -1.0, **metrics})


@pytest.fixture
def evaluation():
    return Evaluation.of(
        7,
        "test",
        [
            answer(2, [[0.9, 0.1], [0.6, 0.4]], [0, 0], domains=[1, 0], mixing_variance=2.0, conditional_variance=0.5),
            answer(
                5,
                [[0.2, 0.8], [0.7, 0.3], [0.7, 0.3], [0.5, 0.5]],
                [1, 1, 1, 0],
                domains=[1, 1, 1, 3],
                mixing_variance=0.5,
                conditional_variance=0.5,
            ),
        ],
    )


def test_accuracy_over_clients_and_over_images(evaluation):
    assert evaluation.accuracy == pytest.approx({"mean": 0.75, "weighted": 4 / 6, "std": 0.25, "worst_decile": 0.5})


def test_the_worst_decile_is_the_mean_of_the_worst_tenth():
    right, wrong = answer(0, [[1, 0]], [0]), answer(0, [[1, 0]], [1])
    updates = [ClientUpdate(p, (wrong if p in (3, 9, 12) else right).arrays, 1, {}) for p in range(20)]
    assert Evaluation.of(1, "test", updates).accuracy["worst_decile"] == 0.0
    updates = [ClientUpdate(p, (wrong if p == 3 else right).arrays, 1, {}) for p in range(20)]
    assert Evaluation.of(1, "test", updates).accuracy["worst_decile"] == 0.5


def test_nll_and_brier_are_means_over_all_images(evaluation):
    row = evaluation.row()
    likelihood = [0.9, 0.6, 0.8, 0.3, 0.3, 0.5]
    assert row["nll"] == pytest.approx(-np.mean(np.log(likelihood)), rel=1e-6)
    assert row["brier"] == pytest.approx(np.mean([2 * (1 - p) ** 2 for p in likelihood]), rel=1e-6)


def test_calibration_is_that_of_the_pooled_predictions():
    # Each client alone is off by 0.5; together they are right half of the time at confidence 0.5.
    half = [[0.5, 0.25, 0.25]] * 4
    both = Evaluation.of(1, "test", [answer(0, half, [0] * 4), answer(1, half, [1] * 4)])
    assert both.row()["ece"] == pytest.approx(0.0, abs=1e-7)
    assert Evaluation.of(1, "test", [answer(0, half, [0] * 4)]).row()["ece"] == pytest.approx(0.5)


def test_what_clients_report_is_averaged_over_images_and_never_replaces_what_is_computed(evaluation):
    assert evaluation.row()["mixing_variance"] == pytest.approx((2 * 2.0 + 4 * 0.5) / 6)
    assert evaluation.row()["accuracy"] == 0.75
    assert evaluation.row()["mixing_ratio"] == pytest.approx(1.0 / (1.0 + 0.5))
    assert evaluation.summary()["mixing_ratio"] == evaluation.row()["mixing_ratio"]


def test_groups_that_occur_and_a_row_for_each_client(evaluation):
    domains, accuracy, nll, count = evaluation.per_group(evaluation.domains)
    assert (domains.tolist(), count.tolist()) == ([0, 1, 3], [1, 4, 1])
    assert accuracy.tolist() == [1.0, 0.5, 1.0]
    assert nll[2].item() == pytest.approx(math.log(2))
    rows = evaluation.client_rows()
    assert [(row["partition"], row["images"], row["accuracy"]) for row in rows] == [(2, 2, 1.0), (5, 4, 0.5)]
    assert all((row["round"], row["phase"]) == (7, "test") for row in rows)


def test_what_does_not_exist_is_none():
    evaluation = Evaluation.of(1, "test", [answer(0, [[0.5, 0.5]], [0])])
    assert (evaluation.summary()["mixing_ratio"], evaluation.summary()["effective_components"]) == (None, None)
    assert "mixing_ratio" not in evaluation.row()


def test_entropy_is_expected_entropy_and_prompt_uncertainty(evaluation):
    for row in (evaluation.row(), evaluation.summary()):
        assert row["entropy"] == pytest.approx(row["expected_entropy"] + row["prompt_uncertainty"], rel=1e-6)
    half = Evaluation.of(1, "test", [answer(0, [[0.5, 0.5], [1.0, 0.0]], [0, 0], expected=[0.2, 0.0])]).row()
    assert (half["entropy"], half["expected_entropy"]) == pytest.approx((math.log(2) / 2, 0.1))
    assert half["prompt_uncertainty"] == pytest.approx((math.log(2) - 0.2) / 2, rel=1e-6)


def test_each_client_has_its_calibration_error_and_what_chance_makes_of_one(evaluation):
    first, second = evaluation.client_rows()
    assert first["ece"] == pytest.approx((0.1 + 0.4) / 2)
    # E|X - p| = 2 p (1 - p) on one image.
    assert first["ece_floor"] == pytest.approx((2 * 0.9 * 0.1 + 2 * 0.6 * 0.4) / 2)
    # Right at 0.8 and at 0.5, wrong twice at 0.7. X ~ Binomial(2, 0.7): E|X/2 - 0.7| over X = 2, 1, 0.
    pair = 0.49 * 0.3 + 2 * 0.21 * 0.2 + 0.09 * 0.7
    assert second["ece"] == pytest.approx((0.2 + 0.5 + 2 * 0.7) / 4)
    assert second["ece_floor"] == pytest.approx((2 * 0.16 + 2 * 0.25 + 2 * pair) / 4)


def test_selective_risk_and_equal_bins_are_in_the_row(evaluation):
    # From the most confident on: right, right, two wrong ones tied, right, right (a tie at 0.5 is the first class).
    row = evaluation.row()
    assert row["aurc"] == pytest.approx((0 + 0 + 1 / 3 + 2 / 4 + 2 / 5 + 2 / 6) / 6)
    assert row["adaptive_ece"] == pytest.approx((0.1 + 0.4 + 0.2 + 2 * 0.7 + 0.5) / 6)


def test_scores_that_tell_held_out_images():
    inside = Evaluation.of(1, "test", [answer(0, [[0.9, 0.1], [0.8, 0.2]], [0, 0], expected=[0.3, 0.5])]).pooled
    outside = Evaluation.of(1, "held_out", [answer(0, [[0.6, 0.4], [0.85, 0.15]], [0, 1], expected=[0.1, 0.4])]).pooled
    measures = detection(inside, outside)
    # Confidence: 0.6 is below both, 0.85 below one of two.
    assert measures["auroc"]["confidence"] == measures["auroc"]["entropy"] == 0.75
    assert measures["fpr95"] == {"prompt_uncertainty": 0.5, "entropy": 0.5, "confidence": 0.5}
    certain = [answer(0, [[0.9, 0.1], [0.8, 0.2]], [0, 0], expected=[0.325083, 0.500402])]
    without = Evaluation.of(1, "test", certain).pooled  # a single draw: the entropies agree up to rounding
    measures = detection(without, without)
    assert (measures["auroc"]["prompt_uncertainty"], measures["fpr95"]["prompt_uncertainty"]) == (None, None)
    assert measures["auroc"]["entropy"] == 0.5


def test_a_probability_of_zero_for_the_truth_costs_much_but_not_for_ever():
    row = Evaluation.of(1, "test", [answer(0, [[1.0, 0.0]], [1])]).row()
    assert 80 < row["nll"] < math.inf

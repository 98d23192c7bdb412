"""FedCOF's estimate is unbiased, and its classifier is the formula's, by hand and against pooled features."""

import numpy as np

from fedbayes.comm.messages import ClientUpdate
from strategies.fedcof import FedCOF, class_covariance, gram_matrix

COUNTS = np.array([1.0, 2.0, 5.0, 9.0])


def test_the_estimate_is_the_true_covariance_on_average():
    rng = np.random.default_rng(0)
    root = np.array([[1.0, 0.0, 0.0], [0.7, 0.5, 0.0], [-0.3, 0.2, 0.9]])
    truth, trials = root @ root.T, 20_000
    means = 2.0 + (rng.normal(size=(trials, 4, 3)) / np.sqrt(COUNTS)[:, None]) @ root.T
    estimates = np.array([class_covariance(sample, COUNTS) for sample in means])
    error = estimates.std(0) / np.sqrt(trials)
    assert (np.abs(estimates.mean(0) - truth) < 4 * error).all()
    divided_by_all = estimates.mean(0) * 3 / 4  # what K_c instead of K_c - 1 would give
    assert (np.abs(divided_by_all - truth) > 4 * error).any()


def test_from_one_image_per_client_it_is_the_sample_covariance_and_a_single_client_shows_no_spread():
    images = np.random.default_rng(1).normal(size=(7, 4))
    np.testing.assert_allclose(class_covariance(images, np.ones(7)), np.cov(images.T), rtol=1e-12)
    np.testing.assert_array_equal(class_covariance(np.array([[3.0, -1.0]]), np.array([8.0])), np.zeros((2, 2)))


def two_clients():
    """Class 0: means (0, 0) of 1 and (3, 0) of 2 images. Class 1: (0, 4) of 3 images of the second client."""
    first = {"sums": np.array([[0.0, 0.0], [0.0, 0.0]]), "counts": np.array([1.0, 0.0])}
    second = {"sums": np.array([[6.0, 0.0], [0.0, 12.0]]), "counts": np.array([2.0, 3.0])}
    return [first, second]


def test_the_classifier_by_hand():
    # Class 0: mu = (2, 0), S = [1 * 4 + 2 * 1, 0; 0, 0] / 1 = diag(6, 0). All: n mu = (6, 12), n = 6.
    # G = 2 (diag(6, 0) + I) + 2 (0 + I) + [36, 72; 72, 144] / 6 = [22, 12; 12, 28], det 472.
    np.testing.assert_allclose(gram_matrix(two_clients(), 1.0), [[22.0, 12.0], [12.0, 28.0]])
    # G^-1 (6, 0) ~ (28, -12), G^-1 (0, 12) ~ (-12, 22).
    strategy = FedCOF(shrinkage=1.0, temperature=0.5)
    strategy.aggregate([ClientUpdate(p, sums, 1, {}) for p, sums in enumerate(two_clients())])
    expected = np.array([[28.0, -12.0], [-12.0, 22.0]])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(strategy.shared["weights"], expected / 0.5, rtol=1e-12)
    assert strategy.shared["counts"].tolist() == [3.0, 3.0]
    assert strategy.shared["bias"].tolist() == [0.0, 0.0]


def test_with_one_image_per_client_the_gram_matrix_is_that_of_the_images_without_the_between_class_part():
    rng = np.random.default_rng(2)
    labels = np.arange(12) % 3
    images = rng.normal(size=(12, 4)) + labels[:, None]
    clients = [{"sums": np.eye(3)[c][:, None] * z, "counts": np.eye(3)[c]} for c, z in zip(labels, images, strict=True)]
    means = np.stack([images[labels == c].mean(0) for c in range(3)])
    between = sum(4 * np.outer(mean, mean) for mean in means) - 12 * np.outer(images.mean(0), images.mean(0))
    np.testing.assert_allclose(gram_matrix(clients, 0.0), images.T @ images - between, rtol=1e-10)


def test_shrinkage_counts_once_for_each_image_beyond_a_classs_first():
    plain, shrunk = (gram_matrix(two_clients(), gamma) for gamma in (0.0, 0.25))
    np.testing.assert_allclose(shrunk - plain, 0.25 * (2 + 2) * np.eye(2), atol=1e-12)


def test_without_shrinkage_a_singular_matrix_still_gives_a_classifier():
    strategy = FedCOF(shrinkage=0.0)
    strategy.aggregate([ClientUpdate(0, {"sums": np.array([[1.0, 2.0, 3.0]]), "counts": np.array([1.0])}, 1, {})])
    np.testing.assert_allclose(strategy.shared["weights"], [np.array([1.0, 2.0, 3.0]) / np.sqrt(14)], rtol=1e-9)

"""A run's predictions of its test images, image by image, read back from `predictions.safetensors`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from fedbayes.errors import RunError
from fedbayes.storage import files
from fedbayes.storage.checkpoint import write_arrays
from fedbayes.storage.run_dir import PREDICTIONS


@final
@dataclass(frozen=True, eq=False)
class Predictions:
    """Predictions of N test images by the last round's parameters, clients in the order of their partitions.

    `probabilities` are `(N, classes)`; the others have one entry an image. `expected_entropy` is that of a single
    sample of prompts, in nats; older runs did not write it.
    """

    probabilities: np.ndarray
    labels: np.ndarray
    domains: np.ndarray
    partitions: np.ndarray
    expected_entropy: np.ndarray | None = None

    @property
    def predicted(self) -> np.ndarray:
        """The most probable class of each image."""
        return np.asarray(self.probabilities.argmax(1))

    @property
    def confidence(self) -> np.ndarray:
        """The largest probability of each image."""
        return np.asarray(self.probabilities.max(1))

    @property
    def right(self) -> np.ndarray:
        """Whether each image was classified right."""
        return np.asarray(self.predicted == self.labels)

    @property
    def nll(self) -> np.ndarray:
        """`-log p(label)` of each image, nats; see `fedbayes.metrics.predictive.negative_log_likelihood`."""
        p = self.probabilities[np.arange(len(self.labels)), self.labels].astype(np.float64)
        return np.asarray(-np.log(np.maximum(p, np.finfo(np.float32).tiny)))

    @property
    def prompt_uncertainty(self) -> np.ndarray | None:
        """Mutual information between prompts and label, nats, `(N,)`; None without `expected_entropy`."""
        if self.expected_entropy is None:
            return None
        p = self.probabilities.astype(np.float64)
        entropy = -(p * np.log(np.maximum(p, np.finfo(np.float64).tiny))).sum(1)
        return np.asarray(np.maximum(entropy - self.expected_entropy, 0.0))

    def cells(self) -> dict[tuple[int, int], tuple[float, int]]:
        """Return accuracy and images of each client in each domain that it has test images of."""
        pairs = np.stack([self.partitions, self.domains], axis=1)
        groups, place, count = np.unique(pairs, axis=0, return_inverse=True, return_counts=True)
        right = np.bincount(place.ravel(), weights=self.right) / count
        keys = ((int(client), int(domain)) for client, domain in groups)
        return dict(zip(keys, zip(right.tolist(), count.tolist(), strict=True), strict=True))

    def risk_coverage(self) -> tuple[np.ndarray, np.ndarray]:
        """Return fractions of the images, most confident first, and the error rate in each; ties share their errors."""
        levels, place, count = np.unique(self.confidence, return_inverse=True, return_counts=True)
        wrong = 1 - np.bincount(place, weights=self.right, minlength=len(levels)) / count
        each = np.repeat(wrong, count)[::-1]
        covered = np.arange(1, len(each) + 1)
        return covered / len(each), np.cumsum(each) / covered


def write_predictions(run_dir: Path, evaluation: Any) -> None:
    """Write the predictions of a run's final `fedbayes.metrics.evaluation.Evaluation`; nothing for None."""
    if evaluation is not None:
        write_arrays(run_dir / PREDICTIONS, evaluation.arrays())


def read_predictions(run_dir: Path) -> Predictions | None:
    """Return the predictions of a run; None where it has none.

    Raises:
        RunError: if the file is damaged or lacks something.
    """
    path = run_dir / PREDICTIONS
    if not files.require_size(path).exists():
        return None
    try:
        arrays = load_file(path)
        required = {name: arrays[name] for name in ("probabilities", "labels", "domains", "partitions")}
    except (OSError, SafetensorError, KeyError) as error:
        raise RunError(f"{path} cannot be read ({error}); remove the file or that run.") from error
    predictions = Predictions(**required, expected_entropy=arrays.get("expected_entropy"))
    if not _is_consistent(predictions):
        raise RunError(f"{path} holds arrays that do not fit each other; remove the file or that run.")
    return predictions if len(predictions.labels) else None


def _is_consistent(predictions: Predictions) -> bool:
    """Whether shapes, types and ranges are those of predictions."""
    p, entropy = predictions.probabilities, predictions.expected_entropy
    if p.ndim != 2 or p.dtype.kind != "f" or (entropy is not None and entropy.shape != p.shape[:1]):
        return False
    for ids in (predictions.labels, predictions.domains, predictions.partitions):
        if ids.shape != p.shape[:1] or ids.dtype.kind not in "iu" or (ids < 0).any():
            return False
    is_finite = np.isfinite(p).all() and (entropy is None or np.isfinite(entropy).all())
    return bool(is_finite and (predictions.labels < p.shape[1]).all())

"""A run's predictions of its test images, image by image, read back from `predictions.safetensors`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from fedbayes.errors import RunError
from fedbayes.storage import files
from fedbayes.storage.checkpoint import write_arrays
from fedbayes.storage.run_dir import PREDICTIONS

if TYPE_CHECKING:
    import numpy as np


@final
@dataclass(frozen=True, eq=False)
class Predictions:
    """What the last round's parameters said of N test images, clients in the order of their partitions.

    Attributes:
        probabilities: `(N, classes)`.
        labels: `(N,)`.
        domains: `(N,)`.
        partitions: `(N,)`.
        expected_entropy: of a single draw of prompts, nats, `(N,)`; older runs kept none.
    """

    probabilities: "np.ndarray"
    labels: "np.ndarray"
    domains: "np.ndarray"
    partitions: "np.ndarray"
    expected_entropy: "np.ndarray | None" = None

    @property
    def predicted(self) -> "np.ndarray":
        """The most probable class of each image."""
        predicted: np.ndarray = self.probabilities.argmax(1)
        return predicted

    @property
    def confidence(self) -> "np.ndarray":
        """The largest probability of each image."""
        highest: np.ndarray = self.probabilities.max(1)
        return highest

    @property
    def right(self) -> "np.ndarray":
        """Whether each image was classified right."""
        right: np.ndarray = self.predicted == self.labels
        return right

    @property
    def nll(self) -> "np.ndarray":
        """`-log p(label)` of each image, nats; see `fedbayes.metrics.predictive.negative_log_likelihood`."""
        import numpy as np

        p = self.probabilities[np.arange(len(self.labels)), self.labels].astype(np.float64)
        return np.asarray(-np.log(np.maximum(p, np.finfo(np.float32).tiny)))

    @property
    def prompt_uncertainty(self) -> "np.ndarray | None":
        """Mutual information between prompts and label, nats, `(N,)`; None where it was not kept."""
        if self.expected_entropy is None:
            return None
        import numpy as np

        p = self.probabilities.astype(np.float64)
        entropy = -(p * np.log(np.maximum(p, np.finfo(np.float64).tiny))).sum(1)
        return np.asarray(np.maximum(entropy - self.expected_entropy, 0.0))

    def cells(self) -> dict[tuple[int, int], tuple[float, int]]:
        """Accuracy and images of each client in each domain that it has test images of."""
        import numpy as np

        pairs = np.stack([self.partitions, self.domains], axis=1)
        groups, place, count = np.unique(pairs, axis=0, return_inverse=True, return_counts=True)
        right = np.bincount(place.ravel(), weights=self.right) / count
        keys = ((int(client), int(domain)) for client, domain in groups)
        return dict(zip(keys, zip(right.tolist(), count.tolist(), strict=True), strict=True))

    def risk_coverage(self) -> "tuple[np.ndarray, np.ndarray]":
        """Shares of the images, most confident first, and the error rate in each; ties count as in any order."""
        import numpy as np

        levels, place, count = np.unique(self.confidence, return_inverse=True, return_counts=True)
        wrong = 1 - np.bincount(place, weights=self.right, minlength=len(levels)) / count
        each = np.repeat(wrong, count)[::-1]
        covered = np.arange(1, len(each) + 1)
        return covered / len(each), np.cumsum(each) / covered


def write_predictions(run_dir: Path, evaluation: Any) -> None:
    """Write the predictions of a run's final evaluation; nothing where there was none.

    Args:
        run_dir: of the run.
        evaluation: a `fedbayes.metrics.evaluation.Evaluation`.
    """
    if evaluation is not None:
        write_arrays(run_dir / PREDICTIONS, evaluation.arrays())


def read_predictions(run_dir: Path) -> Predictions | None:
    """The predictions of a run; None where it kept none.

    Raises:
        RunError: if the file is damaged or lacks something.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = run_dir / PREDICTIONS
    if not files.require_size(path).exists():
        return None
    try:
        arrays = load_file(path)
        predictions = Predictions(
            probabilities=arrays["probabilities"],
            labels=arrays["labels"],
            domains=arrays["domains"],
            partitions=arrays["partitions"],
            expected_entropy=arrays.get("expected_entropy"),
        )
    except (OSError, SafetensorError, KeyError) as error:
        raise RunError(f"{path} cannot be read ({error}); remove the file or that run.") from error
    if not _fit(predictions):
        raise RunError(f"{path} holds arrays that do not fit each other; remove the file or that run.")
    return predictions if len(predictions.labels) else None


def _fit(found: Predictions) -> bool:
    """Whether shapes, types and ranges are those of predictions."""
    import numpy as np

    p, ids = found.probabilities, (found.labels, found.domains, found.partitions)
    entropy = p.sum(1) if found.expected_entropy is None and p.ndim == 2 else found.expected_entropy
    if p.ndim != 2 or p.dtype.kind != "f" or entropy is None or entropy.shape != p.shape[:1]:
        return False
    if any(index.shape != p.shape[:1] or index.dtype.kind not in "iu" or (index < 0).any() for index in ids):
        return False
    return bool(np.isfinite(p).all() and np.isfinite(entropy).all() and (found.labels < p.shape[1]).all())

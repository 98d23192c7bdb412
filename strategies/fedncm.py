r"""FedNCM's server: nearest class mean of the pooled features (Legate et al., NeurIPS 2023, arXiv 2306.03937).

The paper classifies by the nearest mean. For probabilities, classes are taken as Gaussians with those means and one
common variance v, estimated from the same sums; that choice is ours:

    log p(y = c | z) = -|z - mu_c|^2 / (2 v T) + const = mu_c . z / (v T) - |mu_c|^2 / (2 v T) + const

The temperature T makes up for what the model leaves out: a feature's entries are not independent of one another.
"""

from collections.abc import Sequence
from typing import final

import numpy as np

from fedbayes.arrays import Arrays
from fedbayes.errors import require_number
from strategies.class_sums import AbstractClassSums, class_means, total


@final
class FedNCM(AbstractClassSums):
    """Classifies by the nearest class mean of all clients heard so far, as if their images were pooled.

    The accuracy is the same for any temperature T.
    """

    summed = ("sums", "counts", "squares")

    def __init__(self, *, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = require_number("method.strategy.temperature", temperature, 0, open_low=True)

    def classifier(self, clients: Sequence[Arrays]) -> tuple[np.ndarray, np.ndarray]:
        """Set `w_c = mu_c / (v T)`, `b_c = -|mu_c|^2 / (2 v T)` for `v = (sum |z|^2 - sum_c n_c |mu_c|^2) / (n d)`."""
        counts, means = total(clients, "counts"), class_means(clients)
        lengths = np.square(means).sum(1)  # (classes,)
        within = total(clients, "squares").item() - float(counts @ lengths)
        variance = max(within / (counts.sum() * means.shape[1]), 1e-12)
        scale = variance * self.temperature
        return means / scale, -lengths / (2 * scale)

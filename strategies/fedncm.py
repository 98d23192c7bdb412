r"""FedNCM's server: nearest class mean of the pooled features (Legate et al., NeurIPS 2023, arXiv 2402.01862).

The paper classifies by the nearest mean. For probabilities, classes are taken as Gaussians with those means and one
common variance v, estimated from the same sums; that choice is ours:

    log p(y = c | z) = -|z - mu_c|^2 / (2 v) + const = mu_c . z / v - |mu_c|^2 / (2 v) + const
"""

from collections.abc import Sequence
from typing import final

import numpy as np

from fedbayes.messages import Arrays
from strategies.class_sums import AbstractClassSums, class_means, total


@final
class FedNCM(AbstractClassSums):
    """The nearest of the class means of all clients heard so far, as if their images were pooled."""

    summed = ("sums", "counts", "squares")

    def classifier(self, clients: Sequence[Arrays]) -> tuple[np.ndarray, np.ndarray]:
        """`w_c = mu_c / v`, `b_c = -|mu_c|^2 / (2 v)`, with `v = (sum |z|^2 - sum_c n_c |mu_c|^2) / (n d)`."""
        counts, means = total(clients, "counts"), class_means(clients)
        lengths = np.square(means).sum(1)  # (classes,)
        within = total(clients, "squares").item() - float(counts @ lengths)
        variance = max(within / (counts.sum() * means.shape[1]), 1e-12)
        return means / variance, -lengths / (2 * variance)

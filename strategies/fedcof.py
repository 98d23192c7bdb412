r"""FedCOF's server: covariances from the spread of class means (Goswami et al., NeurIPS 2025, arXiv 2412.14326).

Client i of the K_c that have class c sends its mean `mu_ic` of `n_ic` images; `n_c` and `mu_c` are those of all of
them, `n` and `mu` those of all classes. Where a class is distributed alike on all clients, `mu_ic` has covariance
`Sigma_c / n_ic`, hence the unbiased estimate, and from it the classifier without a between-class part:

    S_c = 1 / (K_c - 1) sum_i n_ic (mu_ic - mu_c)(mu_ic - mu_c)^T + gamma I
    G   = sum_c (n_c - 1) S_c + n mu mu^T
    w_c = G^-1 (n_c mu_c), scaled to length 1;   p(y = c | z) = softmax_c(w_c . z / temperature)

A class of a single client has no spread: its S_c is `gamma I`, as in the authors' code. Where clients differ in domain,
S_c holds that difference too, n_ic times; the assumption is the paper's. Ours are the temperature, which accuracy does
not depend on, and that `z` is normalised by a LayerNorm.
"""

from collections.abc import Sequence
from typing import final

import numpy as np

from fedbayes.arrays import Arrays
from fedbayes.errors import require_number
from strategies.class_sums import AbstractClassSums, class_means, total


@final
class FedCOF(AbstractClassSums):
    """Computes a ridge-like classifier from class covariances that nobody has sent.

    `shrinkage` is gamma, in squared feature units; `temperature` divides the scores, in feature units.
    """

    def __init__(self, *, shrinkage: float = 1.0, temperature: float = 1.0) -> None:
        super().__init__()
        self.shrinkage = require_number("method.strategy.shrinkage", shrinkage, 0)
        self.temperature = require_number("method.strategy.temperature", temperature, 0, open_low=True)

    def classifier(self, clients: Sequence[Arrays]) -> tuple[np.ndarray, np.ndarray]:
        """Return `w_c / temperature`, without a bias."""
        means, counts = class_means(clients), total(clients, "counts")
        inverse = np.linalg.pinv(gram_matrix(clients, self.shrinkage), rcond=1e-12, hermitian=True)  # singular at 0
        weights = (counts[:, None] * means) @ inverse
        lengths = np.linalg.norm(weights, axis=1, keepdims=True)
        return weights / np.maximum(lengths, 1e-12) / self.temperature, np.zeros(len(weights))


def gram_matrix(clients: Sequence[Arrays], shrinkage: float) -> np.ndarray:
    """Return G of the module docstring, `(d, d)`, which stands for the sum of `z z^T` over all images."""
    sums, counts = (np.stack([arrays[name] for arrays in clients]) for name in ("sums", "counts"))
    total_sum = sums.sum((0, 1))  # n mu
    gram: np.ndarray = np.outer(total_sum, total_sum) / counts.sum()
    for c, images in enumerate(counts.sum(0)):
        if images > 1:
            has = counts[:, c] > 0
            covariance = class_covariance(sums[has, c] / counts[has, c, None], counts[has, c])
            gram += (images - 1) * (covariance + shrinkage * np.eye(len(gram)))
    return gram


def class_covariance(means: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the unbiased estimate of a class's covariance, `(d, d)`, from its `(K_c, d)` means; 0 for one client."""
    centred = means - counts @ means / counts.sum()
    covariance: np.ndarray = (centred.T * counts) @ centred / max(len(means) - 1, 1)
    return covariance

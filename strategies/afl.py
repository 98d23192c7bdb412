r"""AFL's server: ridge regression of one-hot labels in closed form (He et al., CVPR 2025, arXiv 2405.16240).

Client i sends `G_i = sum z z^T` and, per class, `sum z` over its images. The paper's clients solve a ridge regression
each and the server combines their solutions and takes the clients' gamma back out, which gives the regression on all
images, whatever the partition; sums add up to the same without that step:

    W = Y^T Z (Z^T Z + gamma I)^-1,   p(y = c | z) = softmax_c(w_c . z / temperature)

The temperature, which accuracy does not depend on, is ours.
"""

from collections.abc import Sequence
from typing import final

import numpy as np

from fedbayes.arrays import Arrays
from fedbayes.errors import require_number
from strategies.class_sums import AbstractClassSums, total


@final
class AFL(AbstractClassSums):
    """Computes the classifier that a ridge regression on the images of all clients has.

    `ridge` is gamma, in squared feature units; `temperature` divides the scores.
    """

    summed = ("sums", "counts", "gram")

    def __init__(self, *, ridge: float = 1.0, temperature: float = 0.1) -> None:
        super().__init__()
        self.ridge = require_number("method.strategy.ridge", ridge, 0, open_low=True)
        self.temperature = require_number("method.strategy.temperature", temperature, 0, open_low=True)

    def classifier(self, clients: Sequence[Arrays]) -> tuple[np.ndarray, np.ndarray]:
        """Return `w_c / temperature`, without a bias."""
        gram, sums = total(clients, "gram"), total(clients, "sums")
        weights = np.linalg.solve(gram + self.ridge * np.eye(len(gram)), sums.T).T
        return weights / self.temperature, np.zeros(len(weights))

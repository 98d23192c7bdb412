r"""SGPT's server: groups and keys are averaged among those who chose them (Deng et al., CVPR 2024, arXiv 2310.18285).

With n_ig the images of client i that chose group g and m the momentum,

    k_g <- m k_g + (1 - m) sum_i (n_ig / sum_j n_jg) k_ig

and the same for the group's prompts P_g; everything else is averaged by images. The authors' code has m = 0.5 for both;
it weighs keys so and prompts, in its default, by images, and it takes the plain mean for a group with hardly a choice,
where a group that nobody chose stays as it is here.
"""

from collections.abc import Sequence
from typing import final

import numpy as np

from fedbayes.comm.messages import ClientUpdate
from fedbayes.errors import require_number
from strategies.base import AbstractStrategy, miscounted, weighted_mean

CHOICES = "generator.choices"
BY_GROUP = ("generator.keys", "generator.groups")  # parameters with one row for each group


@final
class SGPT(AbstractStrategy):
    """Counts choices over all rounds and averages by them.

    `momentum`, in [0, 1], is m: the weight of a group's old prompts and key.
    """

    counted = (CHOICES,)

    def __init__(self, momentum: float) -> None:
        super().__init__()
        self.momentum = require_number("method.strategy.momentum", momentum, 0, 1)

    def rejection_reason(self, update: ClientUpdate) -> str | None:
        """Reject choices that no images can have made."""
        return miscounted(update, CHOICES)

    def aggregate(self, updates: Sequence[ClientUpdate]) -> None:
        """Apply the formula above to groups and keys, average the rest by images, and sum the choices."""
        mean = weighted_mean(updates)
        if CHOICES not in mean:  # the clients' generators are personal
            self.shared = mean
            return
        counts = np.stack([update.arrays[CHOICES] for update in updates]).astype(np.float64)  # (I, G)
        total = counts.sum(0)
        weights = counts / np.maximum(total, 1)
        for name in BY_GROUP:
            rows = np.stack([update.arrays[name] for update in updates]).astype(np.float64)
            old = self.shared[name]
            new = self.momentum * old + (1 - self.momentum) * np.einsum("ig,ig...->g...", weights, rows)
            is_chosen = (total > 0).reshape(-1, *[1] * (old.ndim - 1))
            mean[name] = np.where(is_chosen, new, old).astype(old.dtype)
        mean[CHOICES] = (self.shared.get(CHOICES, np.zeros_like(total)) + total).astype(np.float32)
        self.shared = mean

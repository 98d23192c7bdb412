"""How wide the generators of a cohort mix, measured on a noise bank that all clients of a run share."""

from typing import final

import torch
from torch import Tensor

from fedbayes.inference.diagnostics import mixing_variances
from fedbayes.models.anchoring import noise_bank
from fedbayes.models.prompted import PromptedViT
from fedbayes.models.prompts import PromptGenerator


@final
class MixingProbe:
    """Looks at the generators that a model holds at the time of the call, always with the same images and noise.

    Args:
        model: its generator is probed.
        z: class features of each client's images, `(C, B, d)`.
        weights: of those images, `(C, B)`, summing to 1 for each client.
        seed: of the run; all its clients and rounds share one bank.
    """

    def __init__(self, model: PromptedViT, z: Tensor, weights: Tensor, seed: int) -> None:
        self._generator, self._z, self._weights, self._seed = model.generator, z, weights, seed

    @torch.no_grad()
    def __call__(self) -> dict[str, Tensor]:
        """`mixing_variance` and `conditional_variance`, means over images, `(C,)`; nothing for kinds without noise."""
        if not isinstance(self._generator, PromptGenerator) or not self._generator.noise_dim:
            return {}
        bank = noise_bank(self._generator.noise_dim, self._seed).to(self._z)
        psi = self._generator.mixing(self._z, bank[:, None, None].expand(-1, *self._z.shape[:2], -1))
        both = mixing_variances(psi, self._generator.scale(self._z))
        names = ("mixing_variance", "conditional_variance")
        return {name: (each * self._weights).sum(1) for name, each in zip(names, both, strict=True)}

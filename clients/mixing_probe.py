"""How wide the generators of a cohort mix, measured on a noise bank that all clients of a run share."""

from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from clients.inputs import Inputs
from fedbayes.inference.diagnostics import mixing_variances
from fedbayes.models.anchoring import noise_bank, response
from fedbayes.models.prompted import PromptedViT


@final
@dataclass(frozen=True, eq=False)
class Mixing:
    """What a probe saw; empty for a generator without noise.

    Attributes:
        variances: `mixing_variance` and `conditional_variance`, means over the images, each `(C,)`.
        response: to the noise bank, `(C, m, r)`; see `fedbayes.models.anchoring`.
    """

    variances: dict[str, Tensor] = field(default_factory=dict)
    response: Tensor | None = None


@final
class MixingProbe:
    """Looks at the generators that a model holds at the time of the call, always with the same images and noise.

    Args:
        model: its generator is probed.
        inputs: images of each client of the cohort.
        seed: of the run; all its clients and rounds share one bank.
    """

    def __init__(self, model: PromptedViT, inputs: Inputs, seed: int) -> None:
        self._model, self._inputs, self._seed = model, inputs, seed

    @torch.no_grad()
    def __call__(self) -> Mixing:
        """Variances and response of each client's generator."""
        generator, z = self._model.generator, self._inputs.z
        if not generator.noise_dim:
            return Mixing()
        bank = noise_bank(generator.noise_dim, self._seed).to(z)
        psi = generator.mixing(z, bank[:, None, None].expand(-1, *z.shape[:2], -1))
        weights = self._inputs.weights.to(z)
        pairs = zip(("mixing_variance", "conditional_variance"), mixing_variances(psi, generator.scale(z)), strict=True)
        return Mixing({name: (each * weights).sum(1) for name, each in pairs}, response(psi, bank, weights))

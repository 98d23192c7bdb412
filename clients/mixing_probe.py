"""How wide the generators of a cohort mix, measured on a noise bank that all clients of a run share."""

import torch
from torch import Tensor

from fedbayes.inference.diagnostics import mixing_variances
from fedbayes.models.anchoring import noise_bank
from fedbayes.models.prompts.base import AbstractPrompts
from fedbayes.models.prompts.coded import AbstractPosteriorPrompts


@torch.no_grad()
def probe_mixing(generator: AbstractPrompts, z: Tensor, weights: Tensor, seed: int) -> dict[str, Tensor]:
    """`mixing_variance` and `conditional_variance` of each client, `(C,)`; nothing for kinds without noise.

    Args:
        generator: of the cohort.
        z: class features of each client's images, `(C, B, d)`.
        weights: of those images, `(C, B)`, summing to 1 for each client.
        seed: of the run; all its clients and rounds share one noise bank.
    """
    if not isinstance(generator, AbstractPosteriorPrompts) or not generator.noise_dim:
        return {}
    bank = noise_bank(generator.noise_dim, seed).to(z)
    psi = generator.mixing(z, bank[:, None, None].expand(-1, *z.shape[:2], -1))
    variances = mixing_variances(psi, generator.scale(z))
    names = ("mixing_variance", "conditional_variance")
    return {name: (variance * weights).sum(1) for name, variance in zip(names, variances, strict=True)}

r"""Prompt generators, from one prompt for all images to a semi-implicit posterior over the prompts of each.

Letters of the paper, words at the door: `z` is the image's frozen class feature, `eps` the noise of dimension m
(`noise_dim`), `psi` the mixing variable of dimension r (`code_dim`), `c` the prompt code, `P` the prompts.

    psi = A eps + f_phi(z, eps),   c ~ N(psi, sigma^2 I_r),   P = P_base + reshape(U c),   prior c ~ N(0, I_r)

The ladder of ablations is `generator.kind`:

    fixed          P = P_base                                   (VPT, Jia et al. 2022, arXiv 2203.12119)
    deterministic  P = P_base + U f_phi(z)
    gaussian       c ~ N(f_phi(z), diag sigma_phi(z)^2)         (an explicit, amortised posterior)
    low_rank       c ~ N(f_phi(z), diag sigma_phi(z)^2 + F F^T), F = A + F_phi(z), r x m   (explicit, m directions)
    semi_implicit  as above                                     (pFedBayesPT, Ye et al. 2025, arXiv 2508.19621)

That prompts are instance-wise and their posterior semi-implicit is the paper's; this architecture is ours.
"""

import torch

from fedbayes.models.prompts.base import AbstractPrompts, FixedPrompts, Sizes
from fedbayes.models.prompts.coded import (
    DeterministicPrompts,
    GaussianPrompts,
    GeneratorSettings,
    LowRankPrompts,
    SemiImplicitPrompts,
)


def make_prompts(
    settings: GeneratorSettings, *, sizes: Sizes, rng: torch.Generator, reverse_outputs: int = 0
) -> AbstractPrompts:
    """Make the generator of a kind; a reverse model is made for the semi-implicit one alone."""
    if settings.kind == "fixed":
        return FixedPrompts(sizes, rng)
    if settings.kind == "semi_implicit":
        return SemiImplicitPrompts(sizes, rng, settings, reverse_outputs)
    classes = {"deterministic": DeterministicPrompts, "gaussian": GaussianPrompts, "low_rank": LowRankPrompts}
    return classes[settings.kind](sizes, rng, settings)

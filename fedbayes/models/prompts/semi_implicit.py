"""Prompts with a semi-implicit posterior over their code (pFedBayesPT, Ye et al. 2025, arXiv 2508.19621)."""

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from fedbayes.models.prompts.base import ClientLinear, Sizes
from fedbayes.models.prompts.coded import AbstractPosteriorPrompts, GeneratorSettings


@final
class SemiImplicitPrompts(AbstractPosteriorPrompts):
    """`psi = A eps + f_phi(z, eps)`, `c ~ N(psi, sigma^2 I_r)`, and a reverse model `tau(eps | c, z)` if asked for."""

    kind = "semi_implicit"

    def __init__(
        self, sizes: Sizes, rng: torch.Generator, settings: GeneratorSettings, reverse_outputs: int = 0
    ) -> None:
        super().__init__(sizes, rng, settings)
        self.noise_dim, hidden = settings.noise_dim, settings.hidden
        self.noise = ClientLinear(self.noise_dim, hidden, bias=False, std=self.noise_dim**-0.5, rng=rng)
        self.skip = self.mixing_layer(rng, settings)
        self.has_reverse = reverse_outputs > 0
        if self.has_reverse:
            self.reverse_code = ClientLinear(self.code_dim, hidden, std=self.code_dim**-0.5, rng=rng)
            self.reverse_image = ClientLinear(sizes.dim, hidden, std=sizes.dim**-0.5, rng=rng)
            # Zero outputs are tau = N(0, I): training starts from plain semi-implicit inference.
            self.reverse_out = ClientLinear(hidden, reverse_outputs, std=0.0, rng=rng)

    def mixing(
        self, z: Float[Tensor, "clients images dim"], eps: Float[Tensor, "*samples clients images m"] | None
    ) -> Float[Tensor, "*samples clients images code"]:
        """`A eps + f_phi(z, eps)`."""
        assert eps is not None, "psi has noise"
        psi: Tensor = self.location(F.gelu(self.hidden(z) + self.noise(eps))) + self.skip(eps)
        return psi

    def scale(self, z: Float[Tensor, "clients images dim"]) -> Float[Tensor, "clients_or_1 1 1"]:  # noqa: ARG002
        """Sigma, one number for each client."""
        return self.log_scale.exp()

    def reverse(
        self, code: Float[Tensor, "*samples clients images code"], z: Float[Tensor, "clients images dim"]
    ) -> Float[Tensor, "*samples clients images outputs"]:
        """What `tau(eps | c, z)` is made of; see `fedbayes.inference.reverse.GaussianReverse`."""
        outputs: Tensor = self.reverse_out(F.gelu(self.reverse_code(code) + self.reverse_image(z)))
        return outputs

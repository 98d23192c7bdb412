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

A semi-implicit generator may have a reverse model beside it, `tau(eps | c, z)`; see `fedbayes.inference.reverse`.

That prompts are instance-wise and their posterior semi-implicit is the paper's; this architecture is ours.

Every parameter has a leading client axis: a client is a cohort of one, and nothing is mixed between clients.
"""

import math
from abc import ABC, abstractmethod
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from fedbayes.errors import ConfigError, require_choice, require_number, require_whole

KINDS = ("fixed", "deterministic", "gaussian", "low_rank", "semi_implicit")
EXPLICIT = ("gaussian", "low_rank")
"""Kinds whose posterior has a density."""

BASE = "generator.base"
"""The name of `P_base` in a client's state, `(blocks, length, dim)`."""

# How the parameters below meet the noise, by their names in a client's state: a row for each direction of eps, an
# innermost column for each, or outputs of which the first m are means of eps. `fedbayes.models.anchoring` turns them.
NOISE_ROWS = ("generator.skip.weight", "generator.noise.weight")
NOISE_COLUMNS = ("generator.directions.weight", "generator.directions.bias")
REVERSE_MEANS = ("generator.reverse_out.weight", "generator.reverse_out.bias")


@final
class ClientLinear(nn.Module):
    """A linear layer for each client: `x (..., C, B, in) -> (..., C, B, out)` with weights `(C, in, out)`."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool = True, std: float, rng: torch.Generator) -> None:
        super().__init__()
        self.weight = nn.Parameter(std * torch.randn(1, inputs, outputs, generator=rng))
        self.bias = nn.Parameter(torch.zeros(1, 1, outputs)) if bias else None

    def forward(self, x: Float[Tensor, "*draws clients images i"]) -> Float[Tensor, "*draws clients images o"]:
        """Apply each client's own layer to its own images."""
        y = x @ self.weight
        return y if self.bias is None else y + self.bias


def xavier(*shape: int, rng: torch.Generator) -> Tensor:
    """Prompts before training, uniform with Xavier's bound for their width, as VPT starts them."""
    return (2 * torch.rand(*shape, generator=rng) - 1) * math.sqrt(6 / (shape[-1] + shape[-1]))


class AbstractPrompts(nn.Module, ABC):
    """Where prompts come from. A method with prompts of its own kind names its class in `method.generator`.

    A parameter with `requires_grad=False` is sent, kept and stacked like any other, and never trained.

    Attributes:
        kind: which it is, for errors and logs.
        noise_dim: noisy directions of a posterior over prompts; 0 without.
        code_dim: dimension of the prompt code; 0 without.
    """

    kind: str
    noise_dim: int = 0
    code_dim: int = 0

    @abstractmethod
    def plain(self, z: Float[Tensor, "clients images dim"]) -> Float[Tensor, "clients images_or_1 blocks length dim"]:
        """Prompts without a posterior.

        Args:
            z: class features of the images.
        """

    def penalty(
        self,
        z: Float[Tensor, "clients images dim"],  # noqa: ARG002  (a hook: methods may use both)
        weights: Float[Tensor, "clients images"],  # noqa: ARG002
    ) -> Float[Tensor, " clients"] | None:
        """What a method adds to each client's training loss, nats per image; None for nothing.

        Args:
            z: class features of the images.
            weights: of the images, 0 for padding; each client's sum to 1, or to 0 if it sits the batch out.
        """
        return None


@final
class PromptGenerator(AbstractPrompts):
    """Prompts of an image from its class feature and noise.

    Args:
        kind: how much of the ladder above to use, one of `KINDS`.
        blocks: prompt sets per image, one for VPT-shallow, one for each prompted block for VPT-deep.
        length: prompts in a set; 0 makes a generator of nothing, which leaves the backbone as it is.
        dim: width of a token.
        hidden: width of f_phi's hidden layer.
        code_dim: r, or `full` to put the code on the prompts themselves (U is the identity).
        noise_dim: m, the number of noisy directions; few, since K components cannot cover many.
        init_scale: sigma before training, in units of the prior's standard deviation.
        init_mixing: length of each column of A before training, in units of sigma.
        decoder_scale: standard deviation of an entry of U c per unit of c, before training.
        rng: draws the initial values; equal generators start equal, which averaging needs.
        classes: unused: prompts of these kinds know no class.
        clients: unused: nor a client.
        reverse_outputs: numbers that the reverse model gives for a code and an image; 0: there is none.

    Raises:
        ConfigError: if a value is out of range.
    """

    def __init__(
        self,
        *,
        kind: str,
        blocks: int,
        length: int,
        dim: int,
        hidden: int,
        code_dim: int | str,
        noise_dim: int,
        init_scale: float,
        init_mixing: float,
        decoder_scale: float,
        rng: torch.Generator,
        classes: int = 1,  # noqa: ARG002
        clients: int = 1,  # noqa: ARG002
        reverse_outputs: int = 0,
    ) -> None:
        super().__init__()
        require_choice("generator.kind", kind, KINDS)
        require_whole("prompts.length", length, 0)
        require_whole("generator.hidden", hidden, 1)
        require_number("generator.init_scale", init_scale, 0, open_low=True)
        require_number("generator.init_mixing", init_mixing, 0)
        require_number("generator.decoder_scale", decoder_scale, 0, open_low=True)
        if length == 0 and kind != "fixed":
            raise ConfigError(f"prompts.length=0 leaves generator.kind={kind} nothing to generate; use kind=fixed.")
        size = blocks * length * dim
        if code_dim == "full":
            code = size
        else:
            code = require_whole("generator.code_dim", code_dim, 1)
        self.kind, self.shape, self.code_dim = kind, (blocks, length, dim), 0 if kind == "fixed" else code
        self.has_posterior = kind in (*EXPLICIT, "semi_implicit")
        noisy = kind in ("low_rank", "semi_implicit")
        self.noise_dim = require_whole("generator.noise_dim", noise_dim, 1) if noisy else 0
        self.has_reverse = kind == "semi_implicit" and reverse_outputs > 0

        self.base = nn.Parameter(xavier(1, blocks, length, dim, rng=rng))
        if kind == "fixed":
            return
        self.hidden = ClientLinear(dim, hidden, std=dim**-0.5, rng=rng)
        # f_phi starts at zero, so every kind starts as VPT and averaging starts from one common point.
        self.location = ClientLinear(hidden, code, std=0.0, rng=rng)
        if code_dim != "full":
            self.decoder = ClientLinear(code, size, bias=False, std=decoder_scale * code**-0.5, rng=rng)
        if kind in EXPLICIT:
            self.spread = ClientLinear(hidden, code, std=0.0, rng=rng)
        if kind == "semi_implicit":
            self.noise = ClientLinear(noise_dim, hidden, bias=False, std=noise_dim**-0.5, rng=rng)
        if noisy:
            self.skip = ClientLinear(noise_dim, code, bias=False, std=init_mixing * init_scale * code**-0.5, rng=rng)
        if kind == "low_rank":
            self.directions = ClientLinear(hidden, code * noise_dim, std=0.0, rng=rng)
        if kind != "deterministic":
            self.log_scale = nn.Parameter(torch.full((1, 1, 1), math.log(init_scale)))
        if self.has_reverse:
            self.reverse_code = ClientLinear(code, hidden, std=code**-0.5, rng=rng)
            self.reverse_image = ClientLinear(dim, hidden, std=dim**-0.5, rng=rng)
            # Zero outputs are tau = N(0, I): training starts from plain semi-implicit inference.
            self.reverse_out = ClientLinear(hidden, reverse_outputs, std=0.0, rng=rng)

    def plain(self, z: Float[Tensor, "clients images dim"]) -> Float[Tensor, "clients images_or_1 blocks length dim"]:
        """`P_base`, or `P_base + U f_phi(z)` where prompts depend on the image."""
        return self.decode(None if self.kind == "fixed" else self.mixing(z, None))

    def mixing(
        self, z: Float[Tensor, "clients images dim"], eps: Float[Tensor, "*draws clients images m"] | None
    ) -> Float[Tensor, "*draws clients images code"]:
        """`psi = A eps + f_phi(z, eps)`, `f_phi(z) + F eps` for `low_rank`, or `f_phi(z)` without noise."""
        hidden = self.hidden(z)
        if eps is None:
            psi: Tensor = self.location(F.gelu(hidden))
            return psi
        if self.kind == "low_rank":
            psi = self.location(F.gelu(hidden)) + (self._factor(hidden) @ eps.unsqueeze(-1)).squeeze(-1)
        else:
            psi = self.location(F.gelu(hidden + self.noise(eps))) + self.skip(eps)
        return psi

    def scale(self, z: Float[Tensor, "clients images dim"]) -> Float[Tensor, "clients images_or_1 code_or_1"]:
        """Standard deviation of `c` given `psi`, in units of the prior's: one number, or one per image and entry."""
        if self.kind in EXPLICIT:
            log_scale: Tensor = self.log_scale + self.spread(F.gelu(self.hidden(z)))
            return log_scale.exp()
        return self.log_scale.exp()

    def factor(self, z: Float[Tensor, "clients images dim"]) -> Float[Tensor, "clients images code m"] | None:
        """`F = A + F_phi(z)`, the noisy directions of a Gaussian; None where its covariance is diagonal."""
        return self._factor(self.hidden(z)) if self.kind == "low_rank" else None

    def _factor(self, hidden: Tensor) -> Tensor:
        own: Tensor = self.directions(F.gelu(hidden)).unflatten(-1, (self.code_dim, self.noise_dim))
        return own + self.skip.weight.mT.unsqueeze(1)

    def reverse(
        self, code: Float[Tensor, "*draws clients images code"], z: Float[Tensor, "clients images dim"]
    ) -> Float[Tensor, "*draws clients images outputs"]:
        """What `tau(eps | c, z)` is made of; see `fedbayes.inference.reverse.GaussianReverse`."""
        found: Tensor = self.reverse_out(F.gelu(self.reverse_code(code) + self.reverse_image(z)))
        return found

    def decode(
        self, code: Float[Tensor, "*draws clients images code"] | None
    ) -> Float[Tensor, "*draws clients images_or_1 blocks length dim"]:
        """`P = P_base + reshape(U c)`; without a code the same prompts for every image."""
        base = self.base.unsqueeze(1)  # (C, 1, blocks, length, dim)
        if code is None:
            return base
        offset: Tensor = self.decoder(code) if hasattr(self, "decoder") else code
        prompts: Tensor = base + offset.unflatten(-1, self.shape)
        return prompts

"""Prompts of an image by a code: `P = P_base + reshape(U c)`, with `c = f_phi(z)` or a posterior over `c`.

The formulas of each kind are in the docstring of `fedbayes.models.prompts`.
"""

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from fedbayes.errors import ConfigError, require_choice, require_number, require_whole
from fedbayes.models.prompts.base import AbstractPrompts, ByBlock, ClientLinear, Sizes, cut_by_block, whole, xavier

Features = Float[Tensor, "clients images dim"]
Noise = Float[Tensor, "*samples clients images m"]
Code = Float[Tensor, "*samples clients images code"]
Prompts = Float[Tensor, "*samples clients images blocks length dim"]

KINDS = ("fixed", "deterministic", "gaussian", "low_rank", "semi_implicit")


@final
@dataclass(frozen=True)
class GeneratorSettings:
    """The keys of `generator`.

    Attributes:
        kind: one of `KINDS`; the fixed one uses none of the others.
        hidden: width of f_phi's hidden layer.
        code_dim: r, or `full` to put the code on the prompts themselves (U is the identity).
        noise_dim: m, the number of noisy directions; few, since K components cannot cover many.
        init_scale: sigma before training, in units of the prior's standard deviation.
        init_mixing: length of each column of A before training, in units of sigma.
        decoder_scale: standard deviation of an entry of U c per unit of c, before training.

    Raises:
        ConfigError: if a value is out of range.
    """

    kind: str
    hidden: int
    code_dim: int | str
    noise_dim: int
    init_scale: float
    init_mixing: float
    decoder_scale: float

    def __post_init__(self) -> None:
        require_choice("generator.kind", self.kind, KINDS)
        require_whole("generator.hidden", self.hidden, 1)
        if self.code_dim != "full":
            require_whole("generator.code_dim", self.code_dim, 1)
        require_whole("generator.noise_dim", self.noise_dim, 1)
        require_number("generator.init_scale", self.init_scale, 0, open_low=True)
        require_number("generator.init_mixing", self.init_mixing, 0)
        require_number("generator.decoder_scale", self.decoder_scale, 0, open_low=True)


class AbstractCodedPrompts(AbstractPrompts):
    """Prompts of an image by a code of `code_dim` entries around a network of its class feature.

    Raises:
        ConfigError: if there are no prompts to generate.
    """

    def __init__(self, sizes: Sizes, rng: torch.Generator, settings: GeneratorSettings) -> None:
        super().__init__()
        if sizes.length == 0:
            raise ConfigError(
                f"prompts.length=0 leaves generator.kind={self.kind} nothing to generate; use generator.kind=fixed."
            )
        self.shape, size = sizes.shape, math.prod(sizes.shape)
        self.code_dim = size if settings.code_dim == "full" else int(settings.code_dim)
        self.base: nn.Parameter | ByBlock = nn.Parameter(xavier(1, *sizes.shape, rng=rng))
        self.hidden = ClientLinear(sizes.dim, settings.hidden, std=sizes.dim**-0.5, rng=rng)
        # f_phi starts at zero, so every kind starts as VPT and averaging starts from one common point.
        self.location = ClientLinear(settings.hidden, self.code_dim, std=0.0, rng=rng)
        self.decoder = None
        if settings.code_dim != "full":
            std = settings.decoder_scale * self.code_dim**-0.5
            self.decoder = ClientLinear(self.code_dim, size, bias=False, std=std, rng=rng)

    def cut(self, blocks: Sequence[int]) -> None:
        """Cut `P_base` and the columns of U."""
        if self.decoder is None:
            raise ConfigError("sparse: generator.code_dim=full has no decoder for each block; choose a number.")
        cut_by_block(self, "base", 1, blocks)
        cut_by_block(self.decoder, "weight", -1, blocks)

    def plain(self, z: Features) -> Float[Tensor, "clients images blocks length dim"]:
        """`P_base + U f_phi(z)`."""
        return self.decode(self.mean(z))

    def mean(self, z: Features) -> Float[Tensor, "clients images code"]:
        """`f_phi(z)`."""
        mean: Tensor = self.location(F.gelu(self.hidden(z)))
        return mean

    def decode(self, code: Code) -> Prompts:
        """`P_base + reshape(U c)`."""
        offset: Tensor = code if self.decoder is None else self.decoder(code)
        prompts: Tensor = whole(self.base).unsqueeze(1) + offset.unflatten(-1, self.shape)
        return prompts


@final
class DeterministicPrompts(AbstractCodedPrompts):
    """`P = P_base + U f_phi(z)`."""

    kind = "deterministic"


class AbstractPosteriorPrompts(AbstractCodedPrompts):
    """Prompts with a posterior over their code, `c ~ N(psi, diag scale^2)`; `psi` has noise of `noise_dim` entries."""

    noise_dim: int = 0

    def __init__(self, sizes: Sizes, rng: torch.Generator, settings: GeneratorSettings) -> None:
        super().__init__(sizes, rng, settings)
        self.log_scale = nn.Parameter(torch.full((1, 1, 1), math.log(settings.init_scale)))

    def mixing_layer(self, rng: torch.Generator, settings: GeneratorSettings) -> ClientLinear:
        """Make A, which takes noise to the code."""
        std = settings.init_mixing * settings.init_scale * self.code_dim**-0.5
        return ClientLinear(settings.noise_dim, self.code_dim, bias=False, std=std, rng=rng)

    @abstractmethod
    def mixing(self, z: Features, eps: Noise | None) -> Code:
        """`psi` of the noise, which is None where `psi` has none."""

    @abstractmethod
    def scale(self, z: Features) -> Float[Tensor, "clients_or_1 images_or_1 code_or_1"]:
        """Standard deviation of `c` given `psi`, in units of the prior's: one number, or one per image and entry."""


class AbstractGaussianPrompts(AbstractPosteriorPrompts):
    """`c ~ N(f_phi(z), diag sigma_phi(z)^2 + F F^T)`: an explicit, amortised posterior."""

    def __init__(self, sizes: Sizes, rng: torch.Generator, settings: GeneratorSettings) -> None:
        super().__init__(sizes, rng, settings)
        self.spread = ClientLinear(settings.hidden, self.code_dim, std=0.0, rng=rng)

    def scale(self, z: Features) -> Float[Tensor, "clients images code"]:
        """`sigma_phi(z)`."""
        log_scale: Tensor = self.log_scale + self.spread(F.gelu(self.hidden(z)))
        return log_scale.exp()

    def mixing(self, z: Features, eps: Noise | None) -> Code:
        """`f_phi(z) + F eps`."""
        factor = self.factor(z)
        return self.mean(z) if factor is None or eps is None else self.mean(z) + (factor @ eps[..., None]).squeeze(-1)

    @abstractmethod
    def factor(self, z: Features) -> Float[Tensor, "clients images code m"] | None:
        """F; None where the covariance is diagonal."""


@final
class GaussianPrompts(AbstractGaussianPrompts):
    """The diagonal kind."""

    kind = "gaussian"

    def factor(self, z: Features) -> None:
        """None."""


@final
class LowRankPrompts(AbstractGaussianPrompts):
    """The kind with `F = A + F_phi(z)`, r x m."""

    kind = "low_rank"

    def __init__(self, sizes: Sizes, rng: torch.Generator, settings: GeneratorSettings) -> None:
        super().__init__(sizes, rng, settings)
        self.noise_dim = settings.noise_dim
        self.skip = self.mixing_layer(rng, settings)
        self.directions = ClientLinear(settings.hidden, self.code_dim * self.noise_dim, std=0.0, rng=rng)

    def factor(self, z: Features) -> Float[Tensor, "clients images code m"]:
        """`A + F_phi(z)`."""
        change: Tensor = self.directions(F.gelu(self.hidden(z))).unflatten(-1, (self.code_dim, self.noise_dim))
        return change + whole(self.skip.weight).mT.unsqueeze(1)


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

    def mixing(self, z: Features, eps: Noise | None) -> Code:
        """`A eps + f_phi(z, eps)`."""
        assert eps is not None, "psi has noise"
        psi: Tensor = self.location(F.gelu(self.hidden(z) + self.noise(eps))) + self.skip(eps)
        return psi

    def scale(self, z: Features) -> Float[Tensor, "clients_or_1 1 1"]:  # noqa: ARG002
        """Sigma, one number for each client."""
        return self.log_scale.exp()

    def reverse(self, code: Code, z: Features) -> Float[Tensor, "*samples clients images outputs"]:
        """Outputs for `tau(eps | c, z)`; see `fedbayes.inference.reverse.GaussianReverse`."""
        outputs: Tensor = self.reverse_out(F.gelu(self.reverse_code(code) + self.reverse_image(z)))
        return outputs

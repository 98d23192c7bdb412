"""Prompts of an image by a code: `P = P_base + reshape(U c)`, with `c = f_phi(z)` or a posterior over `c`."""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from fedbayes.errors import ConfigError, require_choice, require_number, require_whole
from fedbayes.models.prompts.base import AbstractPrompts, ClientLinear, Sizes, xavier

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
        self.base = nn.Parameter(xavier(1, *sizes.shape, rng=rng))
        self.hidden = ClientLinear(sizes.dim, settings.hidden, std=sizes.dim**-0.5, rng=rng)
        # f_phi starts at zero, so every kind starts as VPT and averaging starts from one common point.
        self.location = ClientLinear(settings.hidden, self.code_dim, std=0.0, rng=rng)
        self.decoder = None
        if settings.code_dim != "full":
            std = settings.decoder_scale * self.code_dim**-0.5
            self.decoder = ClientLinear(self.code_dim, size, bias=False, std=std, rng=rng)

    def plain(self, z: Float[Tensor, "clients images dim"]) -> Float[Tensor, "clients images blocks length dim"]:
        """`P_base + U f_phi(z)`."""
        return self.decode(self.mean(z))

    def mean(self, z: Float[Tensor, "clients images dim"]) -> Float[Tensor, "clients images code"]:
        """`f_phi(z)`."""
        mean: Tensor = self.location(F.gelu(self.hidden(z)))
        return mean

    def decode(
        self, code: Float[Tensor, "*samples clients images code"]
    ) -> Float[Tensor, "*samples clients images blocks length dim"]:
        """`P_base + reshape(U c)`."""
        offset: Tensor = code if self.decoder is None else self.decoder(code)
        prompts: Tensor = self.base.unsqueeze(1) + offset.unflatten(-1, self.shape)
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
        """A, which takes noise to the code."""
        std = settings.init_mixing * settings.init_scale * self.code_dim**-0.5
        return ClientLinear(settings.noise_dim, self.code_dim, bias=False, std=std, rng=rng)

    @abstractmethod
    def mixing(
        self, z: Float[Tensor, "clients images dim"], eps: Float[Tensor, "*samples clients images m"] | None
    ) -> Float[Tensor, "*samples clients images code"]:
        """`psi` for given noise; None where `psi` has none."""

    @abstractmethod
    def scale(self, z: Float[Tensor, "clients images dim"]) -> Float[Tensor, "clients images_or_1 code_or_1"]:
        """Standard deviation of `c` given `psi`, in units of the prior's: one number, or one per image and entry."""

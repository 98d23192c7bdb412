"""Two-dimensional densities with a known normaliser, on which variational methods are compared.

`banana`, `multimodal` and `x_shaped` are the targets of [1], table 1, whose `sin` and other improper ones are left out.

[1] Lim & Johansen, Particle Semi-Implicit Variational Inference, NeurIPS 2024 (arXiv 2407.00649).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, MixtureSameFamily, MultivariateNormal, Normal


@final
@dataclass(frozen=True)
class Target:
    """A normalised density on the plane, so that the evidence is one and an ELBO is minus a KL divergence.

    Attributes:
        log_density: nats, of points `(..., 2)`.
        sample: n exact draws, `(n, 2)`.
        published_sw2: of SIVI, K = 50, mean and sd over ten runs: the SIVI column of [1], table 1.
        window: left, right, bottom, top of the region drawn.
    """

    log_density: Callable[[Tensor], Tensor]
    sample: Callable[[int], Tensor]
    published_sw2: tuple[float, float]
    window: tuple[float, float, float, float]


def _banana() -> Target:
    """`z1 ~ N(0, 2^2)`, `z2 | z1 ~ N(z1^2 / 4, 1)`; the table of [1] prints N(0, 2), its code has the scale 2."""
    first = Normal(0.0, 2.0)

    def log_density(z: Tensor) -> Tensor:
        z1, z2 = z.unbind(-1)
        return first.log_prob(z1) + Normal(z1.square() / 4, 1.0, validate_args=False).log_prob(z2)

    def sample(n: int) -> Tensor:
        z1 = first.sample((n,))
        return torch.stack([z1, Normal(z1.square() / 4, 1.0).sample()], -1)

    return Target(log_density, sample, (0.31, 0.02), (-7, 7, -4, 11))


def _mixture(weights: list[float], components: Distribution, published: tuple[float, float], half: float) -> Target:
    law = MixtureSameFamily(Categorical(torch.tensor(weights)), components, validate_args=False)
    return Target(law.log_prob, lambda n: law.sample((n,)), published, (-half, half, -half, half))


def _x_shaped() -> Target:
    """`1/2 N(0, [[2, 1.8], [1.8, 2]]) + 1/2 N(0, [[2, -1.8], [-1.8, 2]])`."""
    covariances = torch.tensor([[[2.0, 1.8], [1.8, 2.0]], [[2.0, -1.8], [-1.8, 2.0]]])
    return _mixture([0.5, 0.5], MultivariateNormal(torch.zeros(2), covariances), (0.12, 0.01), 5)


def _multimodal() -> Target:
    """`1/8 N((2, 2), I) + 1/8 N((-2, -2), I) + 1/2 N((2, -2), I) + 1/4 N((-2, 2), I)`."""
    means = torch.tensor([[2.0, 2.0], [-2.0, -2.0], [2.0, -2.0], [-2.0, 2.0]])
    return _mixture([1 / 8, 1 / 8, 1 / 2, 1 / 4], MultivariateNormal(means, torch.eye(2)), (0.08, 0.02), 6)


TARGETS: dict[str, Target] = {"banana": _banana(), "multimodal": _multimodal(), "x_shaped": _x_shaped()}


def sliced_wasserstein(a: Tensor, b: Tensor, projections: int = 100) -> float:
    """Sliced 2-Wasserstein distance of two samples `(n, d)` of one size: root mean square over random directions."""
    directions = torch.nn.functional.normalize(torch.randn(a.shape[-1], projections), dim=0)
    return float(((a @ directions).sort(0).values - (b @ directions).sort(0).values).square().mean().sqrt())


def quasi_normal(seed: int) -> Callable[[torch.Size], Tensor]:
    """A source of standard normal noise from scrambled Sobol points, `(..., d)`: averages over it vary far less."""
    engines: dict[int, torch.quasirandom.SobolEngine] = {}

    def noise(shape: torch.Size) -> Tensor:
        engine = engines.setdefault(shape[-1], torch.quasirandom.SobolEngine(shape[-1], scramble=True, seed=seed))
        points = engine.draw(math.prod(shape[:-1]), dtype=torch.float64)
        return torch.special.ndtri(points.clamp(1e-9, 1 - 1e-9)).float().reshape(shape)

    return noise

"""Optimisers for parameters with a leading client axis: each client has its own step count, moments and clipping.

torch's own optimisers keep one step count per tensor, so a client that sits a batch out would still advance. Here an
inactive client's parameters and state stay as they are, chosen with `where`, so that a neighbour's NaN stays its own.
The update rules are torch's (SGD with momentum; AdamW, Loshchilov & Hutter 2019) and are tested against them.
"""

import math
from collections.abc import Mapping
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fedbayes.errors import require_choice, require_number

NAMES = ("sgd", "adam", "adamw")


@final
class CohortOptimiser:
    """One fresh optimiser for each client of a cohort.

    Args:
        parameters: by name, each `(C, ...)`; updated in place.
        learning_rates: by parameter name, per step.
        momentum: of `sgd`.
        weight_decay: decoupled for `adamw`, added to the gradient otherwise.
        clip: largest Euclidean norm of a client's whole gradient; None leaves it.
        learners: which clients train a parameter; of those that are not named, all do.

    Raises:
        ConfigError: if a value is out of range.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        *,
        name: str,
        learning_rates: Mapping[str, float],
        momentum: float,
        weight_decay: float,
        clip: float | None,
        learners: Mapping[str, Bool[Tensor, " clients"]] | None = None,
    ) -> None:
        self.learners = learners or {}
        self.name = require_choice("optim.name", name, NAMES)
        self.momentum = require_number("optim.momentum", momentum, 0, 1)
        self.weight_decay = require_number("optim.weight_decay", weight_decay, 0)
        self.clip = None if clip is None else require_number("optim.clip", clip, 0, open_low=True)
        self.parameters, self.learning_rates = parameters, learning_rates
        first = next(iter(parameters.values()))
        self.steps = torch.zeros(len(first), dtype=first.dtype, device=first.device)
        self.first = {key: torch.zeros_like(p) for key, p in parameters.items()}
        self.second = {key: torch.zeros_like(p) for key, p in parameters.items()} if name != "sgd" else {}

    @torch.no_grad()
    def step(
        self,
        gradients: Mapping[str, Tensor],
        active: Bool[Tensor, " clients"],
        factor: Float[Tensor, " clients"] | None = None,
    ) -> None:
        """Move the active clients one step, with their learning rates times `factor` (None for 1)."""
        self.steps = self.steps + active.to(self.steps.dtype)
        gradients = {
            key: torch.where(_rows(self.learners[key], g), g, torch.zeros_like(g)) if key in self.learners else g
            for key, g in gradients.items()
        }
        clipping = None if self.clip is None else _clip_factor(gradients, self.clip)
        for key, parameter in self.parameters.items():
            gradient = gradients[key]
            if clipping is not None:
                gradient = gradient * _rows(clipping, gradient)
            if self.weight_decay and self.name != "adamw":
                gradient = gradient + self.weight_decay * parameter
            is_active = _rows(active & self.learners[key] if key in self.learners else active, parameter)
            rate = self.learning_rates[key] if factor is None else self.learning_rates[key] * _rows(factor, parameter)
            moved = self._moved(key, parameter, gradient, is_active, rate)
            parameter.copy_(torch.where(is_active, moved, parameter))

    def _moved(self, key: str, parameter: Tensor, gradient: Tensor, is_active: Tensor, rate: float | Tensor) -> Tensor:
        """Return where the update rule takes the parameter; moments of inactive clients stay."""
        if self.name == "sgd":
            momentum = self.momentum * self.first[key] + gradient
            self.first[key] = torch.where(is_active, momentum, self.first[key])
            return parameter - rate * self.first[key]
        beta1, beta2, epsilon = 0.9, 0.999, 1e-8
        self.first[key] = torch.where(is_active, self.first[key].lerp(gradient, 1 - beta1), self.first[key])
        square = beta2 * self.second[key] + (1 - beta2) * gradient.square()
        self.second[key] = torch.where(is_active, square, self.second[key])
        steps = _rows(self.steps.clamp(min=1), parameter)
        # 1 - beta**steps; the plain formula loses four digits in float32 at the first steps.
        bias1, bias2 = (-torch.expm1(steps * math.log(beta)) for beta in (beta1, beta2))
        mean = self.first[key] / bias1
        root = (self.second[key] / bias2).sqrt() + epsilon
        decayed = parameter * (1 - rate * self.weight_decay) if self.name == "adamw" else parameter
        return decayed - rate * mean / root


def _rows(per_client: Tensor, like: Tensor) -> Tensor:
    """Give `(C,)` as many axes as `like`."""
    return per_client.view(-1, *[1] * (like.dim() - 1))


def _clip_factor(gradients: Mapping[str, Tensor], limit: float) -> Tensor:
    """Return the factor of each client's gradient that makes its norm over all parameters at most `limit`."""
    squares = torch.stack([g.flatten(1).square().sum(1) for g in gradients.values()])
    norm = squares.sum(0).sqrt()  # (C,)
    return (limit / (norm + 1e-6)).clamp(max=1.0)

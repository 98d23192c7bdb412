"""The one batch loop: every gradient-trained client of every method goes through `LocalTraining.fit`."""

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol, TypeVar, final, runtime_checkable

import torch
from jaxtyping import Bool
from torch import Tensor

from fedbayes.errors import ConfigError, require_choice, require_number, require_whole
from fedbayes.inference.elbo import Objective
from fedbayes.inference.optim import NAMES, CohortOptimiser


@runtime_checkable  # the tests check every argument's type
class ClientBatch(Protocol):
    """What the loop needs to know of a batch: which of its `(C, B)` places hold an image."""

    @property
    def mask(self) -> Bool[Tensor, "clients images"]:
        """True where there is an image."""
        ...


BatchT = TypeVar("BatchT", bound=ClientBatch)


@final
class LocalTraining:
    """How a client trains between two messages: epochs, batches, optimiser, learning rates.

    Args:
        name: `sgd`, `adam` or `adamw`.
        prompt_lr: learning rate of the prompt generator.
        head_lr: learning rate of the head.
        local_epochs: passes over the client's training images per round.
        batch_size: images per step; an epoch is cut into equal batches of at most this many.
        momentum: of `sgd`.
        weight_decay: see `CohortOptimiser`.
        clip: largest norm of a client's gradient; null leaves it.

    Raises:
        ConfigError: if a value is out of range.
    """

    def __init__(
        self,
        *,
        name: str,
        prompt_lr: float,
        head_lr: float,
        local_epochs: int,
        batch_size: int,
        momentum: float,
        weight_decay: float,
        clip: float | None,
    ) -> None:
        self.name = require_choice("optim.name", name, NAMES)
        self.prompt_lr = require_number("optim.prompt_lr", prompt_lr, 0)
        self.head_lr = require_number("optim.head_lr", head_lr, 0)
        if self.prompt_lr == self.head_lr == 0:
            raise ConfigError("optim.prompt_lr=0 and optim.head_lr=0 would train nothing; raise one of them.")
        self.local_epochs = require_whole("optim.local_epochs", local_epochs, 1)
        self.batch_size = require_whole("optim.batch_size", batch_size, 1)
        self.momentum = require_number("optim.momentum", momentum, 0, 1)
        self.weight_decay = require_number("optim.weight_decay", weight_decay, 0)
        self.clip = None if clip is None else require_number("optim.clip", clip, 0, open_low=True)

    def fit(
        self,
        parameters: Mapping[str, Tensor],
        batches: Iterable[BatchT],
        objective: Callable[[BatchT], Objective],
    ) -> dict[str, Tensor]:
        """Train the parameters of every client in place.

        Args:
            parameters: by name, each `(C, ...)`; names that begin with `head.` learn at `head_lr`.
            batches: in order; a client without images in one sits it out.
            objective: losses of a batch, one per client.

        Returns:
            Each term of the objective, `(C,)`, averaged over the client's images and epochs.
        """
        rates = {key: self.head_lr if key.startswith("head.") else self.prompt_lr for key in parameters}
        parameters = {key: p for key, p in parameters.items() if rates[key] > 0 and p.numel()}
        optimiser = CohortOptimiser(
            parameters,
            name=self.name,
            learning_rates=rates,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            clip=self.clip,
        )
        totals: dict[str, Tensor] = {}
        images = torch.zeros(())
        for batch in batches:
            terms = objective(batch)
            gradients = torch.autograd.grad(terms.loss.sum(), list(parameters.values()))
            optimiser.step(dict(zip(parameters, gradients, strict=True)), batch.mask.any(1))
            counts = batch.mask.sum(1)
            images = images + counts
            for key, value in terms.metrics().items():
                present = torch.where(counts > 0, value * counts, torch.zeros_like(value))
                totals[key] = totals.get(key, torch.zeros_like(value)) + present
        return {key: total / images for key, total in totals.items()}

"""The one batch loop: every gradient-trained client of every method goes through `LocalTraining.fit`."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar, final, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fedbayes.errors import ConfigError, require_choice, require_number, require_whole
from fedbayes.inference.elbo import Objective
from fedbayes.optim.cohort import NAMES, CohortOptimiser

SCHEDULES = ("constant", "linear", "cosine")


@runtime_checkable  # the tests check every argument's type
class ClientBatch(Protocol):
    """A batch, of whose `(C, B)` places `mask` tells which hold an image."""

    @property
    def mask(self) -> Bool[Tensor, "clients images"]:
        """True where there is an image."""


BatchT = TypeVar("BatchT", bound=ClientBatch)


@final
class LocalTraining:
    """How a client trains between two messages: epochs, batches, optimiser, learning rates.

    Args:
        name: `sgd`, `adam` or `adamw`, see `CohortOptimiser`.
        lr: learning rate of everything that is not the head.
        local_epochs: passes over the client's training images per round.
        batch_size: images per step; an epoch is cut into equal batches of at most this many.
        schedule: of the learning rates over a client's own T steps of a round, t = 0..T-1: `constant`; `linear`,
            `1 - t / T`; or `cosine`, `(1 + cos(pi t / T)) / 2` (Loshchilov & Hutter 2017, arXiv 1608.03983).
            Parts that are trained one after another have T steps of their own each.
        proximal: mu of `mu/2 |w - w_start|^2`, added to each client's loss (Li et al. 2020, arXiv 1812.06127); w_start
            is what training, or that of a block, begins with: what was received, where a part is trained once.
        blocks: parts of the parameters that are trained one block after another, each for `local_epochs`, as in
            `[[head], [generator]]`; what no block names stays as it is. Null trains everything together.
        finetune_steps: steps of training on a client's own images before it is evaluated; what they learn is thrown
            away afterwards. They train everything, whatever `blocks` says.

    Raises:
        ConfigError: if a value is out of range.
    """

    def __init__(
        self,
        *,
        name: str,
        lr: float,
        head_lr: float,
        local_epochs: int,
        batch_size: int,
        momentum: float,
        weight_decay: float,
        clip: float | None,
        schedule: str = "constant",
        proximal: float = 0.0,
        blocks: Any = None,
        finetune_steps: int = 0,
        weights_lr: float | None = None,
    ) -> None:
        self.name = require_choice("optim.name", name, NAMES)
        self.lr = require_number("optim.lr", lr, 0)
        self.head_lr = require_number("optim.head_lr", head_lr, 0)
        self.weights_lr = self.lr if weights_lr is None else require_number("optim.weights_lr", weights_lr, 0)
        if self.lr == self.head_lr == self.weights_lr == 0:
            raise ConfigError("optim.lr=0 and optim.head_lr=0 would train nothing; raise one of them.")
        self.local_epochs = require_whole("optim.local_epochs", local_epochs, 1)
        self.batch_size = require_whole("optim.batch_size", batch_size, 1)
        self.momentum = require_number("optim.momentum", momentum, 0, 1)
        self.weight_decay = require_number("optim.weight_decay", weight_decay, 0)
        self.clip = None if clip is None else require_number("optim.clip", clip, 0, open_low=True)
        self.schedule = require_choice("optim.schedule", schedule, SCHEDULES)
        self.proximal = require_number("optim.proximal", proximal, 0)
        self.blocks = _blocks(blocks)
        self.finetune_steps = require_whole("optim.finetune_steps", finetune_steps, 0)

    @property
    def passes(self) -> int:
        """Passes over a client's images in a round."""
        return self.local_epochs * len(self.blocks)

    def fit(
        self,
        parameters: Mapping[str, Tensor],
        batches: Iterable[BatchT],
        objective: Callable[[BatchT], Objective],
        steps: Sequence[int],
        learners: Mapping[str, Bool[Tensor, " clients"]] | None = None,
    ) -> dict[str, Tensor]:
        """Train the parameters of every client in place.

        Args:
            parameters: by name, each `(C, ...)`; names that begin with `head.` learn at `head_lr`, those that begin
                with `weights.` at `weights_lr`.
            batches: a client without images in one sits it out.
            objective: losses of a batch, one per client.
            steps: T of each client, over which a schedule falls.
            learners: which clients train a parameter; of those that are not named, all do.

        Returns:
            Each term of the objective, `(C,)`, averaged over the client's images and epochs; without the proximal term.
        """
        rates = {key: self._rate(key) for key in parameters}
        learners = learners or {}
        parameters = {
            key: p
            for key, p in parameters.items()
            if rates[key] > 0 and p.numel() and (key not in learners or learners[key].any())
        }
        if not parameters:
            parts = ", ".join(sorted({key.partition(".")[0] for key in rates})) or "any part"
            raise ConfigError(
                f"optim.lr={self.lr} and optim.head_lr={self.head_lr} leave nothing to train of {parts}; "
                "raise one of them, or choose other optim.blocks."
            )
        optimiser = CohortOptimiser(
            parameters,
            name=self.name,
            learning_rates=rates,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            clip=self.clip,
            learners=learners,
        )
        received = {key: p.detach().clone() for key, p in parameters.items()} if self.proximal else {}
        totals: dict[str, Tensor] = {}
        images = torch.zeros(())
        for batch in batches:
            terms = objective(batch)
            slopes = torch.autograd.grad(terms.loss.sum(), [*parameters.values()])
            gradients = dict(zip(parameters, slopes, strict=True))
            for key, start in received.items():
                gradients[key] = gradients[key] + self.proximal * (parameters[key].detach() - start)
            optimiser.step(gradients, batch.mask.any(1), self.factor(optimiser.steps, steps))
            counts = batch.mask.sum(1)
            images = images + counts
            for key, value in terms.metrics().items():
                present = torch.where(counts > 0, value * counts, torch.zeros_like(value))
                totals[key] = totals.get(key, torch.zeros_like(value)) + present
        return {key: total / images for key, total in totals.items()}

    def _rate(self, name: str) -> float:
        return {"head": self.head_lr, "weights": self.weights_lr}.get(name.partition(".")[0], self.lr)

    def block(self, parameters: Mapping[str, Tensor], parts: Sequence[str]) -> dict[str, Tensor]:
        """Return the parameters of some parts, which are leading parts of names, as `head`; none for all.

        Raises:
            ConfigError: if there is no such part.
        """
        if not parts:
            return dict(parameters)
        within = {part: [name for name in parameters if f"{name}.".startswith(f"{part}.")] for part in parts}
        for part, names in within.items():
            if not names:
                known = sorted({name.rpartition(".")[0] or name for name in parameters})
                raise ConfigError(
                    f"optim.blocks names {part}, but what is trained is {', '.join(known)}; choose of these."
                )
        return {name: p for name, p in parameters.items() if any(name in names for names in within.values())}

    def factor(self, done: Float[Tensor, " clients"], steps: Sequence[int]) -> Float[Tensor, " clients"] | None:
        """Return the schedule's factor of each client's learning rates after `done` of its steps; None for 1."""
        if self.schedule == "constant":
            return None
        share = (done / torch.tensor(steps, dtype=done.dtype, device=done.device).clamp(min=1)).clamp(max=1)
        return 1 - share if self.schedule == "linear" else (1 + torch.cos(math.pi * share)) / 2


def _blocks(blocks: Any) -> tuple[tuple[str, ...], ...]:
    """Check `optim.blocks`; null is one block of everything."""
    if blocks is None:
        return ((),)
    if _is_list(blocks) and all(_is_list(block) and all(isinstance(name, str) for name in block) for block in blocks):
        return tuple(tuple(block) for block in blocks)
    raise ConfigError(f"optim.blocks={blocks} is no list of lists of names; write e.g. [[head],[generator]].")


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0

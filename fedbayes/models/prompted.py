"""Backbone, prompt generator and head together: what a client trains, for a whole cohort of clients at once."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import final

import numpy as np
import torch
from jaxtyping import Bool, Float, Num
from torch import Tensor, nn
from torch.nn import functional as F

from fedbayes.arrays import Arrays, blocks_of, in_blocks
from fedbayes.errors import ConfigError, require_choice, require_number, require_whole
from fedbayes.models.backbone import FrozenViT
from fedbayes.models.prompts.base import AbstractPrompts, ClientLinear, Sizes
from fedbayes.models.weights import MakeWeights
from fedbayes.seeding import generator as seeded

MakePrompts = Callable[..., AbstractPrompts]
"""`make(sizes=..., rng=...)`: the prompt generator; the settings of its kind are in it already."""


@final
class PromptedViT(nn.Module):
    """A frozen ViT with prompts of a generator and a linear head, for C clients side by side.

    The parameters of `generator`, `head` and `weights` belong to the clients; each has a leading client axis.

    Args:
        backbone: shared by all clients.
        classes: number of classes.
        length: prompts per set.
        depth: `shallow` for one set, `deep` for one set for each block from `start_layer` on.
        start_layer: the first block that sees prompts.
        generator: makes the prompt generator.
        seed: of the initial values.
        head_std: standard deviation of the head's weights before training; 0 starts from equal class scores.
        clients: of the federation; generators may keep something for each.
        weights: makes the weights of the ViT that clients change; None leaves it as it is.
        by_block: deep prompts are parameters of each block, as in `generator.base.blocks.2`, and not one for all.

    Raises:
        ConfigError: if a value is out of range, or there are prompts beside changes of the ViT that take none.
    """

    def __init__(
        self,
        backbone: FrozenViT,
        classes: int,
        *,
        length: int,
        depth: str,
        start_layer: int,
        generator: MakePrompts,
        seed: int,
        head_std: float = 0.0,
        clients: int = 1,
        weights: MakeWeights | None = None,
        by_block: bool = False,
    ) -> None:
        super().__init__()
        require_whole("prompts.length", length, 0)
        require_choice("prompts.depth", depth, ("shallow", "deep"))
        require_whole("prompts.start_layer", start_layer, 0, backbone.depth - 1)
        require_number("head.init_std", head_std, 0)
        self.backbone, self.classes = backbone, classes
        # Without prompts nothing learnt enters the blocks: all of them lie "below" and are computed once per image.
        self.prompt_layer = start_layer if length else backbone.depth
        rng = seeded(seed, "initial parameters")
        blocks = backbone.depth - start_layer if depth == "deep" else 1
        self.generator = generator(sizes=Sizes(blocks, length, backbone.dim, classes, clients), rng=rng)
        self.cuts_prompts = by_block and bool(length) and depth == "deep"
        if self.cuts_prompts:
            self.generator.cut(range(start_layer, backbone.depth))
        self.learnt: Sequence[frozenset[int]] | None = None  # blocks that each client trains; None for all
        self.head = ClientLinear(backbone.dim, classes, std=head_std, rng=rng)
        self.weights = None if weights is None else weights(backbone=backbone, rng=rng)
        if length and self.weights is not None and not self.weights.takes_prompts:
            raise ConfigError(f"prompts.length={length}: method.weights takes no prompts beside; set prompts.length=0.")
        self.start_layer = (
            self.prompt_layer if self.weights is None else min(self.prompt_layer, self.weights.start_layer)
        )
        self.initial: Arrays = self.unstack()[0]

    def owned(self) -> dict[str, nn.Parameter]:
        """Return the clients' parameters by name, each of shape `(C, ...)`, also those that do not learn."""
        return {name: p for name, p in self.named_parameters() if not name.startswith("backbone.")}

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return the parameters that learn, likewise."""
        return {name: p for name, p in self.owned().items() if p.requires_grad}

    def stack(self, states: Sequence[Mapping[str, np.ndarray]]) -> None:
        """Take over the parameters of `len(states)` clients; a name that a state lacks keeps its initial value."""
        for name, parameter in self.owned().items():
            rows = torch.from_numpy(np.stack([state.get(name, self.initial[name]) for state in states]))
            owner, _, leaf = name.rpartition(".")
            # A new leaf, not new data in the old one: a graph still alive would go on expecting the old cohort's size.
            moved = rows.to(parameter.device, parameter.dtype)
            setattr(self.get_submodule(owner), leaf, nn.Parameter(moved, parameter.requires_grad))

    def unstack(self) -> list[Arrays]:
        """Return a copy of the parameters of each client of the cohort."""
        stacked = {name: parameter.detach().cpu().numpy() for name, parameter in self.owned().items()}
        clients = len(next(iter(stacked.values())))
        return [{name: rows[c].copy() for name, rows in stacked.items()} for c in range(clients)]

    @contextmanager
    def restricted(self, blocks: Sequence[frozenset[int]]) -> Iterator[None]:
        """Let each client of the cohort train some blocks, and what belongs to no block; the others are constants."""
        every = frozenset(blocks_of(self.owned()))
        self.learnt = None if all(every <= chosen for chosen in blocks) else blocks
        try:
            yield
        finally:
            self.learnt = None

    def learners(self, names: Iterable[str]) -> dict[str, Bool[Tensor, " clients"]]:
        """Return which clients of the cohort train each parameter; empty where all train everything."""
        if self.learnt is None:
            return {}
        learnt, device = self.learnt, next(self.parameters()).device
        return {name: torch.tensor([in_blocks(name, blocks) for blocks in learnt], device=device) for name in names}

    @torch.no_grad()
    def precompute(self, images: Num[Tensor, "n 3 h w"]) -> tuple[Tensor, Tensor]:
        """Return what does not depend on anything learnt: what `entering` returns, and z, `(n, d)`.

        z is the prompt-free class feature after a LayerNorm without parameters, so that it carries no statistics of
        anybody's data.
        """
        tokens = self.entering(images)
        frozen = self.backbone
        feature = frozen.features(images) if self.from_pixels else frozen(tokens, None, self.start_layer)
        return tokens, F.layer_norm(feature, feature.shape[-1:])

    @property
    def from_pixels(self) -> bool:
        """Whether clients change the ViT from its pixels on."""
        return self.weights is not None and self.weights.from_pixels

    @property
    def entering_bytes(self) -> int:
        """Bytes of what `entering` returns for an image of bytes."""
        if self.from_pixels:
            return 3 * self.backbone.image_size**2
        tokens = 1 if self._enters_one_token else self.backbone.num_tokens
        return tokens * self.backbone.dim * self.backbone.tokens_dtype.itemsize

    def entering(self, images: Num[Tensor, "n 3 h w"]) -> Num[Tensor, "n *entering"]:
        """Return what enters the first place that learns: tokens below `start_layer`, `(n, t, d)`, or the pixels."""
        if self.from_pixels:
            return images
        tokens = self.backbone.embed(images, self.start_layer)
        return tokens[:, :1] if self._enters_one_token else tokens

    @property
    def _enters_one_token(self) -> bool:
        """Whether only a class token is read again, after the last block."""
        return self.start_layer == self.backbone.depth and self.backbone.architecture.reads_class_token

    def logits(
        self,
        tokens: Num[Tensor, "clients images *entering"],
        prompts: Float[Tensor, "*samples clients images_or_1 blocks length d"],
        z: Float[Tensor, "clients images d"] | None = None,
    ) -> Float[Tensor, "*samples clients images classes"]:
        """Return class scores for every sample of prompts; see `features`."""
        return self.head(self.features(tokens, prompts, z))  # type: ignore[no-any-return]

    def features(
        self,
        tokens: Num[Tensor, "clients images *entering"],
        prompts: Float[Tensor, "*samples clients images_or_1 blocks length d"],
        z: Float[Tensor, "clients images d"] | None = None,
    ) -> Float[Tensor, "*samples clients images d"]:
        """Return class features for every sample of prompts; all go through the backbone in one batch.

        `z` are the prompt-free class features, for changes of the ViT that depend on the image.
        """
        blocks, length, dim = prompts.shape[-3:]
        lead = (*prompts.shape[:-5], *tokens.shape[:2])
        sets = prompts.expand(*lead, blocks, length, dim) if length else None
        if self.weights is not None:
            samples = None if sets is None else sets.reshape(-1, *sets.shape[-5:])
            feature = self.weights.features(self.backbone, tokens, samples, self.prompt_layer, self._reached(), z)
            return feature.expand(*lead, dim) if sets is None else feature.view(*lead, dim)
        if sets is not None and (reached := self._reached()) is not None:
            samples = sets.reshape(-1, *sets.shape[-5:])  # (S, C, B, blocks, l, d)
            clients = [
                self.backbone(
                    tokens[c].expand(len(samples), *tokens.shape[1:]).flatten(0, 1),
                    samples[:, c].flatten(0, 1),
                    self.start_layer,
                    learnt=reached[c],
                ).unflatten(0, (len(samples), -1))
                for c in range(len(tokens))
            ]  # one after another: what is below a client's lowest block needs no gradients
            return torch.stack(clients, 1).view(*lead, dim)
        flat = tokens.expand(*lead, *tokens.shape[2:]).reshape(-1, *tokens.shape[2:])  # (S*C*B, t, d)
        feature = self.backbone(flat, None if sets is None else sets.flatten(0, -4), self.start_layer)
        return feature.view(*lead, dim)  # type: ignore[no-any-return]

    def penalty(
        self, z: Float[Tensor, "clients images d"], weights: Float[Tensor, "clients images"]
    ) -> Float[Tensor, " clients"] | None:
        """Return what prompts and changes of the ViT add to each client's training loss; None for nothing."""
        parts = (self.generator,) if self.weights is None else (self.generator, self.weights)
        terms = [term for part in parts if (term := part.penalty(z, weights)) is not None]
        return torch.stack(terms).sum(0) if terms else None

    def _reached(self) -> Sequence[frozenset[int]] | None:
        """Return the blocks of each client that gradients reach: those that it trains, and that of shared prompts."""
        if self.learnt is None or self.cuts_prompts:
            return self.learnt
        return [blocks | {self.prompt_layer} for blocks in self.learnt]

"""Backbone, prompt generator and head together: what a client trains, for a whole cohort of clients at once."""

from collections.abc import Mapping, Sequence
from typing import final

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from fedbayes.errors import require_choice, require_whole
from fedbayes.models.backbone import FrozenViT
from fedbayes.models.prompts import ClientLinear, PromptGenerator
from fedbayes.seeding import generator as seeded

Arrays = dict[str, np.ndarray]
"""A client's or the server's parameters by name, without the client axis."""


@final
class PromptedViT(nn.Module):
    """A frozen ViT with prompts of a generator and a linear head, for C clients side by side.

    The trainable parameters are those of `generator` and `head`; each has a leading client axis.

    Args:
        backbone: the frozen ViT, shared by all clients.
        classes: number of classes.
        length: prompts per set.
        depth: `shallow` for one set, `deep` for one set for each block from `start_layer` on.
        start_layer: the first block that sees prompts.
        kind: see `fedbayes.models.prompts`; so are the remaining arguments.
        seed: of the initial values.
        reverse_outputs: see `PromptGenerator`.

    Raises:
        ConfigError: if a value is out of range.
    """

    def __init__(
        self,
        backbone: FrozenViT,
        classes: int,
        *,
        length: int,
        depth: str,
        start_layer: int,
        kind: str,
        hidden: int,
        code_dim: int | str,
        noise_dim: int,
        init_scale: float,
        init_mixing: float,
        decoder_scale: float,
        seed: int,
        reverse_outputs: int = 0,
    ) -> None:
        super().__init__()
        require_choice("prompts.depth", depth, ("shallow", "deep"))
        require_whole("prompts.start_layer", start_layer, 0)
        if start_layer >= backbone.depth:
            require_choice("prompts.start_layer", str(start_layer), [str(i) for i in range(backbone.depth)])
        self.backbone, self.classes = backbone, classes
        # Without prompts nothing learnt enters the blocks: all of them lie "below" and are computed once per image.
        self.start_layer = start_layer if length else backbone.depth
        rng = seeded(seed, "initial parameters")
        self.generator = PromptGenerator(
            kind=kind,
            blocks=backbone.depth - start_layer if depth == "deep" else 1,
            length=length,
            dim=backbone.dim,
            hidden=hidden,
            code_dim=code_dim,
            noise_dim=noise_dim,
            init_scale=init_scale,
            init_mixing=init_mixing,
            decoder_scale=decoder_scale,
            rng=rng,
            reverse_outputs=reverse_outputs,
        )
        self.head = ClientLinear(backbone.dim, classes, std=0.0, rng=rng)
        self.initial: Arrays = self.unstack()[0]

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that learn, by name; each of shape `(C, ...)`."""
        return {name: p for name, p in self.named_parameters() if not name.startswith("backbone.")}

    def stack(self, states: Sequence[Mapping[str, np.ndarray]]) -> None:
        """Take over the parameters of `len(states)` clients; a name that a state lacks keeps its initial value."""
        for name, parameter in self.trainable().items():
            rows = torch.from_numpy(np.stack([state.get(name, self.initial[name]) for state in states]))
            owner, _, leaf = name.rpartition(".")
            # A new leaf, not new data in the old one: a graph still alive would go on expecting the old cohort's size.
            setattr(self.get_submodule(owner), leaf, nn.Parameter(rows.to(parameter.device, parameter.dtype)))

    def unstack(self) -> list[Arrays]:
        """The parameters of each client of the cohort, as arrays of their own."""
        stacked = {name: parameter.detach().cpu().numpy() for name, parameter in self.trainable().items()}
        clients = len(next(iter(stacked.values())))
        return [{name: rows[c].copy() for name, rows in stacked.items()} for c in range(clients)]

    @torch.no_grad()
    def precompute(self, images: UInt8[Tensor, "n 3 h w"] | Float[Tensor, "n 3 h w"]) -> tuple[Tensor, Tensor]:
        """What does not depend on anything learnt.

        Returns:
            Tokens below `start_layer`, `(n, t, d)`, and z, `(n, d)`: the prompt-free class feature through a LayerNorm
            without parameters, so that it carries no statistics of anybody's data.
        """
        tokens = self.backbone.embed(images, self.start_layer)
        if self.start_layer == self.backbone.depth:
            tokens = tokens[:, :1]  # the class token alone is read again
        feature = self.backbone(tokens, None, self.start_layer)
        return tokens, F.layer_norm(feature, feature.shape[-1:])

    def logits(
        self,
        tokens: Float[Tensor, "clients images t d"],
        prompts: Float[Tensor, "*draws clients images_or_1 blocks length d"],
    ) -> Float[Tensor, "*draws clients images classes"]:
        """Class scores of every draw of prompts; cohort and draws go through the backbone in one batch."""
        clients, images = tokens.shape[:2]
        draws = prompts.shape[:-5]
        blocks, length, dim = prompts.shape[-3:]
        lead = (*draws, clients, images)
        flat = tokens.expand(*lead, *tokens.shape[2:]).reshape(-1, *tokens.shape[2:])  # (S*C*B, t, d)
        sets = prompts.expand(*lead, blocks, length, dim).reshape(-1, blocks, length, dim) if length else None
        feature = self.backbone(flat, sets, self.start_layer)
        return self.head(feature.view(*lead, dim))  # type: ignore[no-any-return]

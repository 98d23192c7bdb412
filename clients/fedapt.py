r"""FedAPT: a prompt that a query network makes for each image from the keys of clients (Su et al., AAAI 2024).

Federated Adaptive Prompt Tuning for Multi-Domain Collaborative Learning, arXiv 2211.07864. With P the meta prompt,
K_j the key of client j, as large as P, drawn once and never trained, and s(z) = Q z the scores that the adaptive
network, a linear map, gives the keys for an image:

    training on client i    P_i  = P + P * K_i,                  loss = CE(label) + CE(softmax s(z), i)
    prediction              P(z) = P + P * sum_j w_j(z) K_j,     w(z) = softmax(standardised s(z) / temperature)

so the network learns to tell whose images look like this one. P, Q and the head are averaged.

What is changed here: P are visual prompts and the class scores a linear head's, where the paper prompts CLIP's text
encoder, with a P of each class; z is normalised; replies are weighted by images; and all clients have a key of their
own unless `keys` says less, where the paper has one for each domain, which our clients do not know.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from clients.wrapping import AbstractWrappingClient
from fedbayes.arrays import Arrays
from fedbayes.comm.messages import ClientRequest, ClientUpdate
from fedbayes.errors import require_number, require_whole
from fedbayes.models.prompt_sets import mixture
from fedbayes.models.prompts import AbstractPrompts, ClientLinear, xavier

OWN_KEY = "generator.own"
"""The client's own key, one-hot; zeros where it is to be found from the image."""


@final
class KeyedPrompts(AbstractPrompts):
    """A meta prompt, modulated by the keys that an image belongs to.

    Args:
        keys: number of keys, of which client i has key `i mod keys`; None for one each.
        temperature: of the softmax over standardised scores; near 0 takes the highest alone.
        blocks: see `AbstractPrompts`, like the arguments below.
        length: prompts in a set.
        dim: width of a token.
        classes: unused: these prompts know no class.
        clients: of the federation.
        rng: draws keys and initial values.

    Raises:
        ConfigError: if a value is out of range.
    """

    kind = "keyed"

    def __init__(
        self,
        *,
        keys: int | None,
        temperature: float,
        blocks: int,
        length: int,
        dim: int,
        classes: int,  # noqa: ARG002
        clients: int,
        rng: torch.Generator,
    ) -> None:
        super().__init__()
        require_whole("prompts.length", length, 1)
        count = clients if keys is None else require_whole("method.generator.keys", keys, 1)
        self.temperature = require_number("method.generator.temperature", temperature, 0, open_low=True)
        self.base = nn.Parameter(xavier(1, blocks, length, dim, rng=rng))
        self.query = ClientLinear(dim, count, bias=False, std=dim**-0.5, rng=rng)
        self.own = nn.Parameter(torch.zeros(1, count), requires_grad=False)
        # No parameter: everybody draws the same from the run's seed, so keys need not be sent.
        self.keys: Tensor
        self.register_buffer("keys", torch.rand(1, count, blocks, length, dim, generator=rng), persistent=False)

    def weights(self, z: Float[Tensor, "clients images dim"]) -> Float[Tensor, "clients images keys"]:
        """`softmax((s - mean s) / (sd s) / temperature)` over the keys, sd with one degree of freedom less."""
        scores = self.query(z)
        centred = scores - scores.mean(-1, keepdim=True)
        variance = centred.square().sum(-1, keepdim=True) / max(1, scores.shape[-1] - 1)
        weights: Tensor = torch.softmax(centred / variance.sqrt().clamp(min=1e-12) / self.temperature, dim=-1)
        return weights

    def plain(self, z: Float[Tensor, "clients images dim"]) -> Float[Tensor, "clients images blocks length dim"]:
        """`P + P * sum_j w_j K_j` with the own key's weight 1 in training, else with the image's weights."""
        known = self.own.any(-1)[:, None, None]
        # Detached: the network learns from the penalty alone.
        weights = torch.where(known, self.own.unsqueeze(1), self.weights(z).detach())
        base = self.base.unsqueeze(1)
        return base + base * mixture(weights, self.keys)

    def penalty(
        self, z: Float[Tensor, "clients images dim"], weights: Float[Tensor, "clients images"]
    ) -> Float[Tensor, " clients"]:
        """Cross-entropy of the scores with the own key."""
        hit = (torch.log_softmax(self.query(z), dim=-1) * self.own.unsqueeze(1)).sum(-1)
        return -(hit * weights).sum(-1)


@final
class FedAPTClient(AbstractWrappingClient):
    """Trains with its own key, predicts without knowing it."""

    def train(self, requests: Sequence[ClientRequest]) -> list[ClientUpdate]:
        """Prompt tuning with each client's own key; whose key it was is not in the reply."""
        given = [replace(one, arrays={**one.arrays, OWN_KEY: self._own(one.partition)}) for one in requests]
        updates = self.inner.train(given)
        if OWN_KEY not in self.initial():  # the generator is personal
            return updates
        return [replace(update, arrays={**update.arrays, OWN_KEY: self.model.initial[OWN_KEY]}) for update in updates]

    def adapt(self, parameters: Sequence[Arrays], requests: Sequence[ClientRequest]) -> Sequence[Arrays]:
        """Steps are taken as in training, with the own key; the prediction after them finds keys from the image."""
        given = [{**one, OWN_KEY: self._own(r.partition)} for one, r in zip(parameters, requests, strict=True)]
        return [{**one, OWN_KEY: self.model.initial[OWN_KEY]} for one in self.inner.adapt(given, requests)]

    def for_strangers(self, parameters: Arrays) -> Arrays:
        """The global ones without anybody's key, which privacy's noise may have moved."""
        return {**super().for_strangers(parameters), OWN_KEY: self.model.initial[OWN_KEY]}

    def _own(self, partition: int) -> np.ndarray:
        """A client's key, one-hot; that of a stand-in is the one of whom it stands in for."""
        own = np.zeros_like(self.model.initial[OWN_KEY])
        own[max(partition, ~partition) % len(own)] = 1
        return own

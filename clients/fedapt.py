r"""FedAPT: a prompt that a query network makes for each image from the keys of clients (Su et al., AAAI 2024).

Federated Adaptive Prompt Tuning for Multi-Domain Collaborative Learning, arXiv 2211.07864. With P the meta prompt,
K_j the key of client j, as large as P, drawn once and never trained, and s(z) = Q z the scores that the adaptive
network, a linear map, gives the keys for an image:

    training on client i    P_i  = P + P * K_i,                  loss = CE(label) + CE(softmax s(z), i)
    prediction              P(z) = P + P * sum_j w_j(z) K_j,     w(z) = softmax(standardised s(z) / temperature)

so the network learns to tell whose images look like this one. P, Q and the head are averaged.

What is changed here: P are visual prompts and the class scores a linear head's, where the paper prompts CLIP's text
encoder, with a P of each class; z is normalised; replies are weighted by images; and each client has its key unless
`keys` is smaller, where the paper has one key for each domain, which our clients do not know.
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
from fedbayes.models.prompts.base import AbstractPrompts, ClientLinear, Sizes, xavier

CLIENT_KEY = "generator.client_key"  # one-hot; zeros where the keys are to be inferred from the image


@final
class KeyedPrompts(AbstractPrompts):
    """A meta prompt, modulated by the keys that an image belongs to.

    Args:
        sizes: of the prompts, and the number of clients.
        rng: samples keys and initial values.
        keys: number of keys, of which client i has key `i mod keys`; None for one each.
        temperature: of the softmax over standardised scores; near 0 takes the highest alone.

    Raises:
        ConfigError: if a value is out of range.
    """

    kind = "keyed"

    def __init__(self, sizes: Sizes, rng: torch.Generator, *, keys: int | None, temperature: float) -> None:
        super().__init__()
        require_whole("prompts.length", sizes.length, 1)
        count = sizes.clients if keys is None else require_whole("method.generator.keys", keys, 1)
        self.temperature = require_number("method.generator.temperature", temperature, 0, open_low=True)
        self.base = nn.Parameter(xavier(1, *sizes.shape, rng=rng))
        self.query = ClientLinear(sizes.dim, count, bias=False, std=sizes.dim**-0.5, rng=rng)
        self.client_key = nn.Parameter(torch.zeros(1, count), requires_grad=False)
        # No parameter: everybody draws the same from the run's seed, so keys need not be sent.
        self.keys: Tensor
        self.register_buffer("keys", torch.rand(1, count, *sizes.shape, generator=rng), persistent=False)

    def weights(self, z: Float[Tensor, "clients images dim"]) -> Float[Tensor, "clients images keys"]:
        """Return `softmax((s - mean s) / (sd s) / temperature)` over the keys, sd with one degree of freedom less."""
        scores = self.query(z)
        centred = scores - scores.mean(-1, keepdim=True)
        variance = centred.square().sum(-1, keepdim=True) / max(1, scores.shape[-1] - 1)
        weights: Tensor = torch.softmax(centred / variance.sqrt().clamp(min=1e-12) / self.temperature, dim=-1)
        return weights

    def plain(self, z: Float[Tensor, "clients images dim"]) -> Float[Tensor, "clients images blocks length dim"]:
        """Return `P + P * sum_j w_j K_j`, with weight 1 for the client's key in training, else the image's weights."""
        is_known = self.client_key.any(-1)[:, None, None]
        # Detached: the network learns from the penalty alone.
        weights = torch.where(is_known, self.client_key.unsqueeze(1), self.weights(z).detach())
        base = self.base.unsqueeze(1)
        return base + base * mixture(weights, self.keys)

    def penalty(
        self, z: Float[Tensor, "clients images dim"], weights: Float[Tensor, "clients images"]
    ) -> Float[Tensor, " clients"]:
        """Return the cross-entropy of the scores with the client's key."""
        hit = (torch.log_softmax(self.query(z), dim=-1) * self.client_key.unsqueeze(1)).sum(-1)
        return -(hit * weights).sum(-1)


@final
class FedAPTClient(AbstractWrappingClient):
    """Trains with the client's key, predicts without it."""

    def train(self, requests: Sequence[ClientRequest]) -> list[ClientUpdate]:
        """Tune prompts with each client's key, which is not in the reply."""
        updates = self.inner.train([replace(r, arrays=self._with_key(r.arrays, r)) for r in requests])
        if not self.is_shared(CLIENT_KEY):
            return updates
        return [replace(update, arrays=self._without_key(update.arrays)) for update in updates]

    def adapt(self, parameters: Sequence[Arrays], requests: Sequence[ClientRequest]) -> Sequence[Arrays]:
        """Take steps with the client's key, as in training; the prediction infers keys from the image."""
        keyed = [self._with_key(state, request) for state, request in zip(parameters, requests, strict=True)]
        return [self._without_key(state) for state in self.inner.adapt(keyed, requests)]

    def for_new_clients(self, parameters: Arrays) -> Arrays:
        """Return the shared parameters without a key, which the noise of privacy may have moved."""
        return self._without_key(super().for_new_clients(parameters))

    def _without_key(self, state: Arrays) -> Arrays:
        return {**state, CLIENT_KEY: self.model.initial[CLIENT_KEY]}

    def _with_key(self, state: Arrays, request: ClientRequest) -> Arrays:
        """Add the client's key, one-hot; a stand-in `~p` has that of client p."""
        key = np.zeros_like(self.model.initial[CLIENT_KEY])
        key[max(request.partition, ~request.partition) % len(key)] = 1
        return {**state, CLIENT_KEY: key}

r"""PEP-FedPT: class prompts, mixed for each image by class prototypes and the client's class prior (Yashwanth et al.).

Prompt Estimation from Prototypes for Federated Prompt Tuning of Vision Transformers, TMLR 2026, arXiv 2510.25372.
Beside shared prompts P_S stands the class-contextualised mixed prompt: with P_c the prompts of class c, mu_c the mean
feature of that class over all clients, and pi_i(c) the fraction of client i's training images in class c,

    P_mix(z) = sum_c w_c(z) P_c,     w_c(z) = pi_i(c) exp(cos(z, mu_c) / temperature) / sum of the same over classes

Nothing trained belongs to a client: P_S, P_c and the head are averaged. `strategies/pep_fedpt.py` makes the mu_c.

Of the paper we had the abstract and a summary. That weights come from prototypes and class priors is theirs;
ours are the form of the weights, their temperature, that features are the prompt-free ones (so prototypes never age),
that P_S and P_mix enter the same block, and that all class prompts start equal, so that training starts as VPT.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from clients.class_sums import class_sums
from clients.wrapping import AbstractWrappingClient
from fedbayes.arrays import Arrays
from fedbayes.comm.messages import ClientRequest, ClientUpdate
from fedbayes.errors import ConfigError, require_number, require_whole
from fedbayes.models.prompt_sets import cosine, mixture
from fedbayes.models.prompts.base import AbstractPrompts, Sizes, xavier

CLASS_PRIOR = "generator.prior"  # the client's fraction of images in each class; uniform where it is unknown


@final
class ClassMixedPrompts(AbstractPrompts):
    """Shared prompts and, after them, the mixture of class prompts.

    Args:
        sizes: of the prompts, and the number of classes.
        rng: samples the initial values.
        class_length: prompts of the mixture, out of `sizes.length`; the others are shared.
        temperature: of the weights, in units of a cosine.

    Raises:
        ConfigError: if a value is out of range.
    """

    kind = "class_mixed"

    def __init__(self, sizes: Sizes, rng: torch.Generator, *, class_length: int, temperature: float) -> None:
        super().__init__()
        blocks, length, dim = sizes.shape
        if require_whole("method.generator.class_length", class_length, 1) >= length:
            raise ConfigError(
                f"method.generator.class_length={class_length} leaves none of prompts.length={length} to share; "
                "lower it or raise the length."
            )
        self.temperature = require_number("method.generator.temperature", temperature, 0, open_low=True)
        self.shared = nn.Parameter(xavier(1, blocks, length - class_length, dim, rng=rng))
        start = xavier(1, 1, blocks, class_length, dim, rng=rng)
        self.classes = nn.Parameter(start.repeat(1, sizes.classes, 1, 1, 1))
        self.prototypes = nn.Parameter(torch.zeros(1, sizes.classes, dim), requires_grad=False)
        self.prior = nn.Parameter(torch.full((1, sizes.classes), 1 / sizes.classes), requires_grad=False)

    def weights(self, z: Float[Tensor, "clients images dim"]) -> Float[Tensor, "clients images classes"]:
        """Return `w_c(z)`; before there are prototypes, the prior."""
        scores = cosine(z, self.prototypes) / self.temperature
        return torch.softmax(scores + self.prior.log().unsqueeze(1), dim=-1)

    def plain(self, z: Float[Tensor, "clients images dim"]) -> Float[Tensor, "clients images blocks length dim"]:
        """Return `[P_S, P_mix(z)]`."""
        mixed = mixture(self.weights(z), self.classes)
        shared = self.shared.unsqueeze(1).expand(*mixed.shape[:3], -1, -1)
        return torch.cat([shared, mixed], dim=3)


@final
class PEPFedPTClient(AbstractWrappingClient):
    """Fills in its class prior, and sends class sums of its features for the prototypes."""

    def train(self, requests: Sequence[ClientRequest]) -> list[ClientUpdate]:
        """Tune prompts with each client's prior; replies have `sums` and `counts` per class in place of the prior."""
        updates = self.inner.train([replace(r, arrays=self._with_prior(r.arrays, r)) for r in requests])
        if not self.is_shared(CLASS_PRIOR):
            return updates
        uniform = {CLASS_PRIOR: self.model.initial[CLASS_PRIOR]}
        return [
            replace(update, arrays={**update.arrays, **uniform, **self._sums(update.partition)}) for update in updates
        ]

    def adapt(self, parameters: Sequence[Arrays], requests: Sequence[ClientRequest]) -> Sequence[Arrays]:
        """Return the parameters with each client's prior, after its steps, if there are any."""
        states = [self._with_prior(state, request) for state, request in zip(parameters, requests, strict=True)]
        return self.inner.adapt(states, requests)

    def _with_prior(self, state: Arrays, request: ClientRequest) -> Arrays:
        """Add the fraction of the client's training images in each class."""
        labels = self.data.batch([request.partition], "train").labels[0]
        prior = torch.bincount(labels, minlength=self.model.classes) / len(labels)
        return {**state, CLASS_PRIOR: prior.numpy()}

    def _sums(self, partition: int) -> Arrays:
        """Return the sums of a client's features per class, and their numbers, in float64."""
        batch = self.data.batch([partition], "train")
        return class_sums(self.inputs.features(batch)[0][0].double(), batch.labels[0], self.model.classes)

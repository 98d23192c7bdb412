r"""FedROD on prompts: a shared head for all classes alike, and a personal head on top of it (Chen & Chao, ICLR 2022).

arXiv 2107.00778. With the feature h of an image, the shared head G learns by the balanced softmax, so that it is a
client's only in what an image says of a class; the personal head P learns on top of it, without moving h or G:

    shared     min CE(G(h) + log pi_k, y)
    personal   min CE(stop(G(h)) + P_k(stop(h)), y)

A client predicts with `G(h) + P_k(h)`, a new client with `G(h)` alone. The paper steps both on each batch; here P
learns after the shared part, on the features of the client's trained prompts.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import final

import numpy as np
import torch
from torch import Tensor

from clients.base import PERSONAL, Scores, passes
from clients.inputs import Inputs
from clients.local import fit_cohort
from clients.wrapping import AbstractWrappingClient, require_plain
from fedbayes.arrays import Arrays
from fedbayes.comm.messages import ClientRequest, ClientUpdate
from fedbayes.errors import ConfigError
from fedbayes.inference.class_prior import ClassPriors
from fedbayes.inference.elbo import Objective
from fedbayes.inference.settings import InferenceSettings
from fedbayes.optim.local_training import LocalTraining
from fedbayes.seeding import Streams
from fedbayes.simulation.client import ClientSetup

WEIGHT, BIAS = PERSONAL + "weight", PERSONAL + "bias"


@final
class FedRODClient(AbstractWrappingClient):
    """Trains prompts and the shared head by the balanced softmax, then its personal head.

    Args:
        setup: images, model and seed; the class prior of the shared head is part of the method.
        personal: parts of the shared model that never leave the client.
        inference: of the prompts, which have no posterior.
        optim: of both.

    Raises:
        ConfigError: if prompts have a posterior, or the head is to have another class prior.
    """

    def __init__(
        self, *, setup: ClientSetup, personal: Sequence[str], inference: InferenceSettings, optim: LocalTraining
    ) -> None:
        if setup.priors.kind != "none":
            raise ConfigError(
                f"head.prior={setup.priors.kind}: method=fedrod balances its shared head itself; choose none."
            )
        setup = replace(setup, priors=ClassPriors("client"))
        super().__init__(setup=setup, personal=personal, inference=inference, optim=optim)
        require_plain(self.model.generator)

    def train(self, requests: Sequence[ClientRequest]) -> list[ClientUpdate]:
        """Train the shared part, then the personal head; replies carry the shared part."""
        updates = self.inner.train(requests)  # the model holds what it has learnt
        weight, bias = (rows.requires_grad_() for rows in self._personal([request.personal for request in requests]))

        def objective(inputs: Inputs, noise: Streams) -> Objective:  # noqa: ARG001
            with torch.no_grad():
                feature = self._features(inputs)
                shared = self.model.head(feature)
            log_p = (shared + feature @ weight + bias).log_softmax(-1)
            log_likelihood = (log_p.gather(-1, inputs.labels[..., None])[..., 0] * inputs.weights).sum(1)
            return Objective(loss=-log_likelihood, log_likelihood=log_likelihood)

        parameters = {"head.weight": weight, "head.bias": bias}
        fit_cohort(self, self.inner.optim, requests, parameters, objective, purpose="personal ")
        heads = zip(*(rows.detach().cpu().numpy() for rows in (weight, bias)), strict=True)
        return [
            replace(update, personal=update.personal | {WEIGHT: w.copy(), BIAS: b.copy()})
            for update, (w, b) in zip(updates, heads, strict=True)
        ]

    def adapt(self, parameters: Sequence[Arrays], requests: Sequence[ClientRequest]) -> Sequence[Arrays]:
        """Return the shared parameters after the steps that are asked for, and the personal head as it is."""
        adapted = self.inner.adapt(parameters, requests)
        return [state | after for state, after in zip(parameters, adapted, strict=True)]

    def score(self, inputs: Inputs, parameters: Sequence[Arrays], streams: Streams) -> Scores:  # noqa: ARG002
        """Return the scores of both heads together; a client that never trained has the shared one alone."""
        self.model.stack(parameters)
        weight, bias = self._personal(parameters)
        scores = []
        for part in passes(inputs.mask, 1):
            feature = self._features(inputs, part)
            scores.append(self.model.head(feature) + feature @ weight + bias)
        return Scores(torch.cat(scores, dim=1).unsqueeze(0), {})

    def _personal(self, states: Sequence[Arrays]) -> tuple[Tensor, Tensor]:
        """Return the cohort's personal heads, `(C, d, classes)` and `(C, 1, classes)`; 0 before the first training."""
        like, shape = self.model.backbone.mean, (self.model.backbone.dim, self.model.classes)
        empty = {WEIGHT: np.zeros(shape, np.float32), BIAS: np.zeros((1, shape[1]), np.float32)}
        weight, bias = (
            torch.from_numpy(np.stack([state.get(name, zeros) for state in states])).to(like)
            for name, zeros in empty.items()
        )
        return weight, bias

r"""Ditto on prompts: a global model by FedAvg and a personal model of each client (Li et al., ICML 2021).

arXiv 2012.04221. With the received prompts and head w, client k trains w as in FedAvg and, on the same images,

    v_k = argmin F_k(v) + lambda / 2 |v - w|^2

from where it left v_k; `strength` is lambda, and the names of v_k are led by `personal.`. It is evaluated with v_k. The
paper gives both solvers full epochs; here each has half of `optim.local_epochs`, so that a round costs as many passes
over the images as for every other method.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import final

from torch import Tensor

from clients.base import (
    Scores,
    of_client,
    parameters_of,
    personal_model,
    personalised,
    with_prefix,
    without_personal,
)
from clients.inputs import Inputs
from clients.local import fit_cohort, halved
from clients.wrapping import AbstractWrappingClient
from fedbayes.arrays import Arrays
from fedbayes.comm.messages import ClientRequest, ClientUpdate
from fedbayes.errors import require_number
from fedbayes.inference.elbo import Objective
from fedbayes.inference.settings import InferenceSettings
from fedbayes.optim.local_training import LocalTraining
from fedbayes.seeding import Streams
from fedbayes.simulation.client import ClientSetup


@final
class DittoClient(AbstractWrappingClient):
    """Trains the global model, then the personal one near the global one it received.

    Args:
        setup: images, model and seed.
        personal: parts of the global model that never leave the client.
        inference: of the prompts' posterior, if they have one.
        optim: of both models; each trains for half of its epochs.
        strength: lambda; at 0 the personal model learns nothing from other clients.

    Raises:
        ConfigError: if the epochs cannot be halved or the strength is out of range.
    """

    def __init__(
        self,
        *,
        setup: ClientSetup,
        personal: Sequence[str],
        inference: InferenceSettings,
        optim: LocalTraining,
        strength: float,
    ) -> None:
        super().__init__(setup=setup, personal=personal, inference=inference, optim=halved(optim))
        self.strength = require_number("method.client.strength", strength, 0)

    def train(self, requests: Sequence[ClientRequest]) -> list[ClientUpdate]:
        """Train the global model, then the personal one; replies carry the shared part of the former."""
        plain = [replace(request, personal=without_personal(request.personal)) for request in requests]
        updates = self.inner.train(plain)
        received = [parameters_of(request) for request in plain]
        starts = [personal_model(parameters_of(request), request) for request in requests]
        terms = self._fit(requests, starts, received)
        metrics = {f"personal_{name}": values for name, values in terms.items()}
        return [
            replace(
                update,
                metrics=update.metrics | of_client(metrics, c),
                personal=update.personal | with_prefix(state),
            )
            for c, (update, state) in enumerate(zip(updates, self.model.unstack(), strict=True))
        ]

    def adapt(self, parameters: Sequence[Arrays], requests: Sequence[ClientRequest]) -> Sequence[Arrays]:
        """Return the personal models, or the global one of a client without, after the steps that are asked for."""
        chosen = [personal_model(state, request) for state, request in zip(parameters, requests, strict=True)]
        return self.inner.adapt(chosen, requests)

    def score(self, inputs: Inputs, parameters: Sequence[Arrays], streams: Streams) -> Scores:
        """Score as prompt tuning does, with the personal models where there are any."""
        return self.inner.score(inputs, [personalised(state) for state in parameters], streams)

    def _fit(
        self, requests: Sequence[ClientRequest], starts: Sequence[Arrays], received: Sequence[Arrays]
    ) -> dict[str, Tensor]:
        """Train the personal models from `starts`, near w; the model holds them afterwards."""
        beta = self.inner.inference.beta_at(requests[0].server_round)
        self.model.stack(received)
        anchor = {name: parameter.detach() for name, parameter in self.model.trainable().items()}
        self.model.stack(starts)
        personal = self.model.trainable()

        def objective(inputs: Inputs, noise: Streams) -> Objective:
            bound = self.inner.objective(inputs, noise, beta)
            distance = sum((personal[name] - w).flatten(1).square().sum(1) for name, w in anchor.items())
            return replace(bound, loss=bound.loss + self.strength / 2 * distance)

        return fit_cohort(self, self.inner.optim, requests, personal, objective, purpose="own ")

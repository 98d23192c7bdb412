r"""Ditto on prompts: a global model by FedAvg and one of each client's own (Li et al., ICML 2021, arXiv 2012.04221).

With the received prompts and head w, client k trains w as in FedAvg and, on the same images, its own

    v_k = argmin F_k(v) + lambda / 2 |v - w|^2

from where it left v_k; `strength` is lambda, and v_k's names are led by `own.`. It is evaluated with v_k. The paper
gives both solvers full epochs; here each has half of `optim.local_epochs`, so that a round costs as many passes over
the images as for every other method.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from typing import final

from torch import Tensor

from clients.base import Draws
from clients.inputs import Inputs
from clients.local import fit_blocks, local_streams
from clients.own import OWN, own, without_own
from clients.wrapping import AbstractWrappingClient
from fedbayes.arrays import Arrays
from fedbayes.comm.messages import ClientRequest, ClientUpdate
from fedbayes.errors import ConfigError, require_number
from fedbayes.inference.elbo import Objective
from fedbayes.inference.settings import InferenceSettings
from fedbayes.optim.local_training import LocalTraining
from fedbayes.seeding import Streams
from fedbayes.simulation.client import ClientSetup


@final
class DittoClient(AbstractWrappingClient):
    """Trains the global model, then its own near the one it received.

    Args:
        setup: images, model and seed.
        personal: parts of the global model that never leave the client.
        inference: of the prompts' posterior, if they have one.
        optim: of both models; each trains for half of its epochs.
        strength: lambda; 0 leaves the own model alone, and it then learns nothing from others.

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
        """The global model's local epochs, then the own model's; replies carry the shared part of the former."""
        plain = [replace(request, personal=without_own(request.personal)) for request in requests]
        updates = self.inner.train(plain)
        received: list[Arrays] = [{**request.arrays, **request.personal} for request in plain]
        starts = [
            own(request.personal) if is_trained(request) else state
            for request, state in zip(requests, received, strict=True)
        ]
        metrics = self._fit_own(requests, starts, received)
        answers = []
        for c, (update, state) in enumerate(zip(updates, self.model.unstack(), strict=True)):
            kept = {**update.personal, **{OWN + name: value for name, value in state.items()}}
            said = {**update.metrics, **{f"own_{name}": float(values[c]) for name, values in metrics.items()}}
            answers.append(replace(update, metrics=said, personal=kept))
        return answers

    def adapt(self, parameters: Sequence[Arrays], requests: Sequence[ClientRequest]) -> Sequence[Arrays]:
        """The own models, or the global one of a client that was never trained, after the steps that are asked for."""
        chosen = [
            own(state) if is_trained(request) else without_own(state)
            for state, request in zip(parameters, requests, strict=True)
        ]
        return self.inner.adapt(chosen, requests)

    def draw(self, inputs: Inputs, parameters: Sequence[Arrays], streams: Streams) -> Draws:
        """As prompt tuning does, with the own models where there are any."""
        return self.inner.draw(inputs, [own(state) for state in parameters], streams)

    def _fit_own(
        self, requests: Sequence[ClientRequest], starts: Sequence[Arrays], received: Sequence[Arrays]
    ) -> dict[str, Tensor]:
        """Train every client's own model, which the prompted ViT holds afterwards.

        Args:
            requests: of the cohort.
            starts: v_k as it was.
            received: w, which draws it.

        Returns:
            Each term of the objective, `(C,)`, its mean over `optim.blocks`.
        """
        partitions, server_round = [request.partition for request in requests], requests[0].server_round
        order, noise, changes = local_streams(self.seed, server_round, partitions, "own ")
        beta, optim = self.inner.inference.beta_at(server_round), self.inner.optim
        self.model.stack(received)
        anchor = {name: parameter.detach() for name, parameter in self.model.trainable().items()}
        self.model.stack(starts)
        mine = self.model.trainable()

        def objective(inputs: Inputs) -> Objective:
            bound = self.inner.objective(inputs, noise, beta)
            distance = sum((mine[name] - w).flatten(1).square().sum(1) for name, w in anchor.items())
            return replace(bound, loss=bound.loss + self.strength / 2 * distance)

        return fit_blocks(optim, self.data, self.inputs, mine, objective, partitions, order, changes)


def is_trained(request: ClientRequest) -> bool:
    """Whether the client has a model of its own."""
    return any(name.startswith(OWN) for name in request.personal)


def halved(optim: LocalTraining) -> LocalTraining:
    """The same training for half as many epochs.

    Raises:
        ConfigError: if their number is odd.
    """
    if optim.local_epochs % 2:
        raise ConfigError(
            f"optim.local_epochs={optim.local_epochs} cannot be halved between the global and the own model; choose an "
            "even number."
        )
    half = copy(optim)
    half.local_epochs = optim.local_epochs // 2
    return half

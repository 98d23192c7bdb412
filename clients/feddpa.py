r"""FedDPA: a global and a local low-rank change of the ViT, mixed for each image (Yang et al., NeurIPS 2024).

arXiv 2403.19211. In a round a client first trains its local change beside the received global one, which stays as it
is, with the weight w = 1/2 for each; then the global change and the head alone, w = 0, which are averaged. In a
prediction the local change has the weight

    w(x) = lambda / n sum_i cos(z, z_i),   z_i of the client's n training images

The paper has features of the local model for z and some random images for z_i; here z is the prompt-free class feature,
which never ages, and all training images count. A client that never trained has the global change alone.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import final

import numpy as np
from torch.nn import functional as F

from clients.base import parameters_of
from clients.local import fit_cohort, halved
from clients.wrapping import AbstractWrappingClient
from fedbayes.arrays import Arrays
from fedbayes.comm.messages import ClientRequest, ClientUpdate
from fedbayes.errors import ConfigError, require_number
from fedbayes.inference.settings import InferenceSettings
from fedbayes.optim.local_training import LocalTraining
from fedbayes.simulation.client import ClientSetup

LOCAL = "weights.local."
CONSTANT, DIRECTION = LOCAL + "constant", LOCAL + "direction"


@final
class FedDPAClient(AbstractWrappingClient):
    """Trains the local change, then the global one; predicts with both.

    Args:
        setup: images, model and seed.
        personal: parts of the model that never leave the client, `weights.local` among them.
        inference: see `PromptTuningClient`.
        optim: of both changes; each trains for half of its epochs.
        weight: lambda.

    Raises:
        ConfigError: if the model has no local change or it is to be sent, or a value is out of range.
    """

    def __init__(
        self,
        *,
        setup: ClientSetup,
        personal: Sequence[str],
        inference: InferenceSettings,
        optim: LocalTraining,
        weight: float,
    ) -> None:
        super().__init__(setup=setup, personal=personal, inference=inference, optim=halved(optim))
        self.weight = require_number("method.client.weight", weight, 0, 1)
        if CONSTANT not in self.model.initial or self.is_shared(CONSTANT):
            raise ConfigError(
                f"method.client.personal={list(personal)} lacks weights.local, the client's low-rank change; add it."
            )

    def train(self, requests: Sequence[ClientRequest]) -> list[ClientUpdate]:
        """Train the local change, then the shared part; replies carry the latter."""
        halves = {CONSTANT: np.full_like(self.model.initial[CONSTANT], 0.5)}
        self.model.stack([parameters_of(request) | halves for request in requests])
        local = {name: p for name, p in self.model.trainable().items() if name.startswith(LOCAL)}
        beta = self.inner.inference.beta_at(requests[0].server_round)
        fit_cohort(
            self,
            self.inner.optim,
            requests,
            local,
            lambda inputs, noise: self.inner.objective(inputs, noise, beta),
            purpose="local ",
        )
        learnt = [{name: state[name] for name in local} for state in self.model.unstack()]
        updates = self.inner.train(
            [replace(r, personal=r.personal | state) for r, state in zip(requests, learnt, strict=True)]
        )
        # Without a gradient, too, weight decay would shrink what is local.
        return [replace(u, personal=u.personal | state) for u, state in zip(updates, learnt, strict=True)]

    def adapt(self, parameters: Sequence[Arrays], requests: Sequence[ClientRequest]) -> Sequence[Arrays]:
        """Return the parameters, after the steps that are asked for, with what weighs the local change of an image."""
        adapted = self.inner.adapt(parameters, requests)
        z, weights = self.inputs.features(self.data.batch([request.partition for request in requests], "train"))
        directions = self.weight * (F.normalize(z, dim=-1) * weights.unsqueeze(-1)).sum(1).cpu().numpy()
        return [
            state | {DIRECTION: direction} if any(name.startswith(LOCAL) for name in request.personal) else state
            for state, request, direction in zip(adapted, requests, directions, strict=True)
        ]

r"""pFedBayes on prompts: a Gaussian over prompts and head at each client (Zhang et al., ICML 2022, arXiv 2206.07977).

With the received global Gaussian w, the clients' prior, client m trains its posterior q_m over the weights theta,

    q_m = argmin E_q[-log p(D_m | theta)] + zeta KL(q | w),   q = N(mu, diag sigma^2),   sigma = softplus(rho),

predicts with it and keeps it. What it sends is a copy w_m of the global Gaussian, which takes steps on `KL(q_m | w_m)`
beside those of q_m (`aggregate=mean`). Or (`product`, see `strategies.pfedbayes`) it is q_m itself, which then starts
at w in every round and may be given another prior. Per image, the KL counts `zeta / n_m`, n_m the client's images; zeta
is `inference.beta`.

The paper alternates several steps of q_m with one of w_m on a batch; here both step once, from the same point. Its
models are whole networks, ours prompts and head on a frozen one. A mean has the name of its weight, rho that plus
`.rho`, and q_m's names are led by `personal.`.
"""

from collections.abc import Mapping, Sequence
from typing import final

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from clients.base import (
    AbstractClient,
    Scores,
    of_client,
    parameters_of,
    passes,
    personal_model,
    personalised,
    with_prefix,
    without_personal,
)
from clients.inputs import Inputs
from clients.local import adaptation_steps, fit_cohort
from clients.wrapping import require_plain
from fedbayes.arrays import Arrays, under
from fedbayes.comm.messages import ClientRequest, ClientUpdate
from fedbayes.errors import require_choice, require_number
from fedbayes.inference.elbo import Objective
from fedbayes.inference.mean_field import PRIOR, RHO, divergence, rho_of, std_of
from fedbayes.inference.settings import InferenceSettings
from fedbayes.models.prompted import PromptedViT
from fedbayes.optim.local_training import LocalTraining
from fedbayes.seeding import Streams
from fedbayes.simulation.client import ClientSetup


@final
class PFedBayesClient(AbstractClient):
    """Trains a posterior over its weights near the global one, and predicts with samples from it.

    Args:
        setup: images, model and seed.
        personal: parts of w that never leave the client.
        inference: J samples of the weights in a training step, S in a prediction, and zeta as `beta`.
        optim: the local training.
        init_std: sigma of every weight before training, so that of the first prior.
        aggregate: how the server combines replies, which decides what they hold: `mean` or `product`.

    Raises:
        ConfigError: if a value is out of range, or prompts have a posterior, too.
    """

    def __init__(
        self,
        *,
        setup: ClientSetup,
        personal: Sequence[str],
        inference: InferenceSettings,
        optim: LocalTraining,
        init_std: float,
        aggregate: str,
    ) -> None:
        super().__init__(setup=setup, personal=personal)
        require_plain(self.model.generator)
        self.inference, self.optim = inference, optim
        self.sends_copy = require_choice("method.strategy.aggregate", aggregate, ("mean", "product")) == "mean"
        rho = float(rho_of(torch.tensor(require_number("method.client.init_std", init_std, 0, open_low=True))))
        self.means = list(self.model.trainable())
        spread = {name + RHO: np.full_like(self.model.initial[name], rho) for name in self.means}
        self.start: Arrays = {**self.model.initial, **spread}
        self.logits = _Logits(self.model)

    def initial(self) -> Arrays:
        """Return the shared part of the first prior."""
        return self.split(self.start)[0]

    def train(self, requests: Sequence[ClientRequest]) -> list[ClientUpdate]:
        """Train q_m for the local epochs, and the copy of w beside it."""
        received = [without_personal(parameters_of(request)) for request in requests]
        starts = []
        for state, request in zip(received, requests, strict=True):
            personal = personalised(request.personal)
            starts.append({**state, **personal} if self.sends_copy else {**personal, **request.arrays})
        w, q = self._stack([prior(state) for state in received]), self._stack(starts)
        metrics = self._fit(requests, q, w, with_copy=self.sends_copy)
        updates = []
        for c, (request, state) in enumerate(zip(requests, self.model.unstack(), strict=True)):
            copy, posterior = _row(w, c), _row(q, c)
            shared, _ = self.split({**state, **(copy if self.sends_copy else posterior)})
            personal = self.split({**state, **copy})[1] | with_prefix(posterior)
            images = len(self.data.indices(request.partition, "train"))
            updates.append(ClientUpdate(request.partition, shared, images, of_client(metrics, c), personal))
        return updates

    def adapt(self, parameters: Sequence[Arrays], requests: Sequence[ClientRequest]) -> Sequence[Arrays]:
        """Return each client's q_m, or w if it never trained, after the steps that are asked for."""
        chosen = [personal_model(state, request) for state, request in zip(parameters, requests, strict=True)]
        steps = adaptation_steps(self.optim, requests)
        if not steps:
            return chosen
        w, q = self._stack([prior(state) for state in parameters]), self._stack(chosen)
        self._fit(requests, q, w, with_copy=False, steps=steps)
        return [{**state, **_row(q, c)} for c, state in enumerate(self.model.unstack())]

    def score(self, inputs: Inputs, parameters: Sequence[Arrays], streams: Streams) -> Scores:
        """Return class scores for S samples of the weights, each for all images of a client."""
        q = self._stack([personalised(state) for state in parameters])
        samples = self.inference.predict_samples
        weights = self._sample(q, streams, samples)
        parts = passes(inputs.mask, samples)
        scores = [self._class_scores(weights, inputs.tokens[:, part], inputs.z[:, part]) for part in parts]
        return Scores(inputs.with_prior(torch.cat(scores, dim=2)), {})

    def objective(
        self,
        inputs: Inputs,
        q: Mapping[str, Tensor],
        w: Mapping[str, Tensor],
        noise: Streams,
        images: Tensor,
        beta: float,
        with_copy: bool,
    ) -> Objective:
        """Return the bound of a batch, nats per image, one loss per client.

        Args:
            inputs: the batch.
            q: means and rho of the posteriors, each `(C, ...)`.
            w: those of the global Gaussian or its copies; the posteriors' loss does not move them.
            noise: random streams of the weights.
            images: n_m, `(C,)`.
            beta: zeta.
            with_copy: whether the loss has a second `KL(q | w)` that moves w and not q.
        """
        weights = self._sample(q, noise, self.inference.train_samples)
        logits = inputs.with_prior(self._class_scores(weights, inputs.tokens, inputs.z))
        labels = inputs.labels.expand(logits.shape[:-1]).unsqueeze(-1)
        terms = logits.log_softmax(-1).gather(-1, labels).squeeze(-1).mean(0)  # (C, B)
        log_likelihood = (terms.where(inputs.mask, 0.0) * inputs.weights).sum(1)
        kl = self._divergence(q, _detached(w)) / images
        loss = beta * kl - log_likelihood
        if with_copy:
            loss = loss + beta * self._divergence(_detached(q), w) / images
        return Objective(loss, log_likelihood, kl)

    def _fit(
        self,
        requests: Sequence[ClientRequest],
        q: dict[str, Tensor],
        w: dict[str, Tensor],
        *,
        with_copy: bool,
        steps: int | None = None,
    ) -> dict[str, Tensor]:
        """Train q, and w if it is a copy that goes back, in place; see `objective` and `fit_cohort`."""
        device = self.model.backbone.mean.device
        counts = [len(self.data.indices(request.partition, "train")) for request in requests]
        images = torch.tensor(counts, device=device).clamp(min=1)
        beta = self.inference.beta_at(requests[0].server_round)
        # The beginning of a name decides on the learning rate, so it stays in front.
        parameters = {f"{name}.personal": tensor for name, tensor in q.items()} | (w if with_copy else {})
        return fit_cohort(
            self,
            self.optim,
            requests,
            parameters,
            lambda inputs, noise: self.objective(inputs, q, w, noise, images, beta, with_copy),
            purpose="" if steps is None else "adapt ",
            steps=steps,
        )

    def _stack(self, states: Sequence[Arrays]) -> dict[str, Tensor]:
        """Return means and rho, leaves of shape `(C, ...)`; the model takes what is never trained."""
        full = [{**self.start, **state} for state in states]
        self.model.stack(full)
        device = self.model.backbone.mean.device
        stacked = {n: np.stack([state[n] for state in full]) for mean in self.means for n in (mean, mean + RHO)}
        return {name: torch.from_numpy(rows).to(device).requires_grad_() for name, rows in stacked.items()}

    def _divergence(self, q: Mapping[str, Tensor], p: Mapping[str, Tensor]) -> Tensor:
        """Return KL(q | p) of each client, nats, `(C,)`."""
        terms = [divergence(q[n], std_of(q[n + RHO]), p[n], std_of(p[n + RHO])) for n in self.means]
        return torch.stack(terms).sum(0)

    def _sample(self, q: Mapping[str, Tensor], noise: Streams, samples: int) -> dict[str, Tensor]:
        """Sample all weights, `mu + sigma eps`, each `(S * C, ...)`: a sample stands where a client would."""
        first = q[self.means[0]]
        sizes = [q[name][0].numel() for name in self.means]
        eps = noise.normal((samples,), [1] * len(first), sum(sizes), first.device).squeeze(2)  # (S, C, weights)
        sampled = {
            name: (q[name] + std_of(q[name + RHO]) * part.unflatten(-1, q[name].shape[1:])).flatten(0, 1)
            for name, part in zip(self.means, eps.split(sizes, dim=-1), strict=True)
        }
        constant = {name: p for name, p in self.model.owned().items() if name not in sampled}
        return sampled | {name: p.expand(samples, *p.shape).flatten(0, 1) for name, p in constant.items()}

    def _class_scores(self, weights: Mapping[str, Tensor], tokens: Tensor, z: Tensor) -> Tensor:
        """Return class scores for each sample of the weights, `(S, C, B, classes)`."""
        samples = len(next(iter(weights.values()))) // len(z)
        parameters = {f"model.{name}": value for name, value in weights.items()}
        batch = tuple(rows.expand(samples, *rows.shape).flatten(0, 1) for rows in (tokens, z))
        scores: Tensor = functional_call(self.logits, parameters, batch).unflatten(0, (samples, len(z)))
        return scores


@final
class _Logits(nn.Module):
    """A prompted ViT's class scores as a function of all its parameters."""

    def __init__(self, model: PromptedViT) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, z: Tensor) -> Tensor:
        """Return scores `(C, B, classes)`."""
        return self.model.logits(tokens, self.model.generator.plain(z))


def prior(state: Arrays) -> Arrays:
    """Return the Gaussian that a posterior is held to: the one sent for that, or w."""
    return {**without_personal(state), **under(PRIOR, state)}


def _row(stacked: Mapping[str, Tensor], client: int) -> Arrays:
    """Return one client's arrays."""
    return {name: tensor[client].detach().cpu().numpy().copy() for name, tensor in stacked.items()}


def _detached(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the same numbers, at which gradients stop."""
    return {name: tensor.detach() for name, tensor in tensors.items()}

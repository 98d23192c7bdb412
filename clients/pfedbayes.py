r"""pFedBayes on prompts: a Gaussian over prompts and head at each client (Zhang et al., ICML 2022, arXiv 2206.07977).

With the received global Gaussian w, the clients' prior, client m trains its posterior q_m over the weights theta,

    q_m = argmin E_q[-log p(D_m | theta)] + zeta KL(q | w),   q = N(mu, diag sigma^2),   sigma = softplus(rho),

predicts with it and keeps it. What it sends is a copy w_m of the global Gaussian, which takes steps on `KL(q_m | w_m)`
beside those of q_m (`aggregate=mean`). Or (`product`, see `strategies.pfedbayes`) it is q_m itself, which then starts
at w in every round and may be given another prior. Per image, the KL counts `zeta / n_m`, n_m the client's images; zeta
is `inference.beta`.

The paper alternates several steps of q_m with one of w_m on a batch; here both step once, from the same point. Its
models are whole networks, ours prompts and head on a frozen one. A mean has the name of its weight, rho that plus
`.rho`, and q_m's names are led by `own.`.
"""

from collections.abc import Mapping, Sequence
from typing import final

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from clients.base import AbstractClient, Draws
from clients.inputs import Inputs
from clients.local import fit_blocks, local_streams
from clients.own import OWN, own, without_own
from clients.prompt_tuning import LARGEST_PASS
from fedbayes.arrays import Arrays, under
from fedbayes.comm.messages import ClientRequest, ClientUpdate
from fedbayes.errors import ConfigError, require_choice, require_number
from fedbayes.inference.elbo import Objective
from fedbayes.inference.mean_field import PRIOR, RHO, divergence, rho_of, std_of
from fedbayes.inference.settings import InferenceSettings
from fedbayes.models.prompted import PromptedViT
from fedbayes.optim.local_training import LocalTraining
from fedbayes.seeding import Streams
from fedbayes.simulation.client import ClientSetup


@final
class PFedBayesClient(AbstractClient):
    """Trains a posterior over its weights near the global one, and predicts with draws from it.

    Args:
        setup: images, model and seed.
        personal: parts of w that never leave the client.
        inference: J draws of the weights in a training step, S in a prediction, and zeta as `beta`.
        optim: the local training.
        init_std: sigma of every weight before training, so that of the first prior.
        aggregate: what the server makes of the replies, which decides what they hold: `mean` or `product`.

    Raises:
        ConfigError: if a value is out of range, or prompts have a posterior of their own.
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
        generator = self.model.generator
        if generator.code_dim and generator.kind != "deterministic":
            raise ConfigError(
                f"generator.kind={generator.kind} has a posterior over prompts, but pFedBayes has one over the "
                "weights; use fixed or deterministic."
            )
        self.inference, self.optim = inference, optim
        self.sends_copy = require_choice("method.strategy.aggregate", aggregate, ("mean", "product")) == "mean"
        rho = float(rho_of(torch.tensor(require_number("method.client.init_std", init_std, 0, open_low=True))))
        self.means = list(self.model.trainable())
        spread = {name + RHO: np.full_like(self.model.initial[name], rho) for name in self.means}
        self.start: Arrays = {**self.model.initial, **spread}
        self.scores = _Scores(self.model)

    def initial(self) -> Arrays:
        """The shared part of the first prior."""
        return self.share(self.start)[0]

    def train(self, requests: Sequence[ClientRequest]) -> list[ClientUpdate]:
        """Local epochs of q_m, and of the copy of w beside it."""
        received = [{**request.arrays, **without_own(request.personal)} for request in requests]
        starts = [self._start(state, request) for state, request in zip(received, requests, strict=True)]
        w, q = self._stack([prior(state) for state in received]), self._stack(starts)
        metrics = self._fit(requests, q, w, with_copy=self.sends_copy)
        constants = self.model.unstack()
        updates = []
        for c, (request, state) in enumerate(zip(requests, constants, strict=True)):
            copy, posterior = _row(w, c), _row(q, c)
            shared, _ = self.share({**state, **(copy if self.sends_copy else posterior)})
            _, kept = self.share({**state, **copy})
            mine = {OWN + name: value for name, value in posterior.items()}
            images = len(self.data.indices(request.partition, "train"))
            said = {name: float(values[c]) for name, values in metrics.items()}
            updates.append(ClientUpdate(request.partition, shared, images, said, {**kept, **mine}))
        return updates

    def adapt(self, parameters: Sequence[Arrays], requests: Sequence[ClientRequest]) -> Sequence[Arrays]:
        """Each client's q_m, or w if it was never trained, after the steps that are asked for."""
        chosen = [
            own(state) if request.personal else without_own(state)
            for state, request in zip(parameters, requests, strict=True)
        ]
        asked = requests[0].adapt
        steps = self.optim.finetune_steps if asked is None else asked
        if not steps:
            return chosen
        w, q = self._stack([prior(state) for state in parameters]), self._stack(chosen)
        self._fit(requests, q, w, with_copy=False, steps=steps)
        return [{**state, **_row(q, c)} for c, state in enumerate(self.model.unstack())]

    def draw(self, inputs: Inputs, parameters: Sequence[Arrays], streams: Streams) -> Draws:
        """S draws of the weights, each for all images of a client."""
        q = self._stack([own(state) for state in parameters])
        draws = self.inference.predict_samples
        weights = self._sample(q, streams, draws)
        clients, images = inputs.mask.shape
        width = max(1, LARGEST_PASS // (draws * clients))
        parts = [
            self._logits(weights, inputs.tokens[:, i : i + width], inputs.z[:, i : i + width])
            for i in range(0, images, width)
        ]
        return Draws(torch.cat(parts, dim=2), {})

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
        """The bound of a batch, nats per image, one loss per client.

        Args:
            inputs: the batch.
            q: means and rho of the posteriors, each `(C, ...)`.
            w: those of the global Gaussian or its copies; the posteriors' loss does not move them.
            noise: draws of the weights.
            images: n_m, `(C,)`, training images of each client.
            beta: zeta.
            with_copy: whether `KL(q | w)` is also to move w, and then not q.
        """
        draws = self.inference.train_samples
        logits = self._logits(self._sample(q, noise, draws), inputs.tokens, inputs.z)
        labels = inputs.labels.expand(logits.shape[:-1]).unsqueeze(-1)
        each = logits.log_softmax(-1).gather(-1, labels).squeeze(-1).mean(0)  # (C, B)
        log_likelihood = (torch.where(inputs.mask, each, torch.zeros_like(each)) * inputs.weights).sum(1)
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
        """Train q, and w if it is a copy that goes back, in place; see `objective`.

        Args:
            requests: of the cohort.
            q: the posteriors.
            w: the global Gaussian.
            with_copy: whether w is trained.
            steps: of an adaptation before an evaluation; None for a round's local epochs.

        Returns:
            Each term of the objective, `(C,)`, its mean over `optim.blocks`.
        """
        partitions, server_round = [request.partition for request in requests], requests[0].server_round
        lead = "" if steps is None else "adapt "
        order, noise, changes = local_streams(self.seed, server_round, partitions, lead)
        device = self.model.backbone.mean.device
        images = torch.tensor([len(self.data.indices(one, "train")) for one in partitions], device=device).clamp(min=1)
        beta = self.inference.beta_at(server_round)
        # The names decide on the learning rate, so what they lead with stays in front.
        trained = {f"{name}.own": tensor for name, tensor in q.items()} | (w if with_copy else {})
        return fit_blocks(
            self.optim,
            self.data,
            self.inputs,
            trained,
            lambda inputs: self.objective(inputs, q, w, noise, images, beta, with_copy),
            partitions,
            order,
            changes,
            steps,
        )

    def _start(self, received: Arrays, request: ClientRequest) -> Arrays:
        """Where a posterior starts: as it was left, but for what is to be multiplied from w itself."""
        mine = own(request.personal)
        return {**received, **mine} if self.sends_copy else {**mine, **request.arrays}

    def _stack(self, states: Sequence[Arrays]) -> dict[str, Tensor]:
        """Means and rho of a cohort's Gaussians, leaves of shape `(C, ...)`; the model takes what is never trained."""
        full = [{**self.start, **state} for state in states]
        self.model.stack(full)
        return {
            name: torch.from_numpy(np.stack([state[name] for state in full]))
            .to(self.model.backbone.mean.device)
            .requires_grad_()
            for mean in self.means
            for name in (mean, mean + RHO)
        }

    def _divergence(self, q: Mapping[str, Tensor], p: Mapping[str, Tensor]) -> Tensor:
        """KL(q | p) of each client, nats, `(C,)`."""
        terms = [divergence(q[n], std_of(q[n + RHO]), p[n], std_of(p[n + RHO])) for n in self.means]
        return torch.stack(terms).sum(0)

    def _sample(self, q: Mapping[str, Tensor], noise: Streams, draws: int) -> dict[str, Tensor]:
        """Draws of all weights, `mu + sigma eps`, each `(S * C, ...)`: a draw is a client like any other."""
        first = q[self.means[0]]
        sizes = [q[name][0].numel() for name in self.means]
        eps = noise.normal((draws,), [1] * len(first), sum(sizes), first.device).squeeze(2)  # (S, C, weights)
        sampled = {
            name: (q[name] + std_of(q[name + RHO]) * part.unflatten(-1, q[name].shape[1:])).flatten(0, 1)
            for name, part in zip(self.means, eps.split(sizes, dim=-1), strict=True)
        }
        constant = {name: p for name, p in self.model.owned().items() if name not in sampled}
        return sampled | {name: p.expand(draws, *p.shape).flatten(0, 1) for name, p in constant.items()}

    def _logits(self, weights: Mapping[str, Tensor], tokens: Tensor, z: Tensor) -> Tensor:
        """Class scores with each draw of the weights, `(S, C, B, classes)`."""
        draws = len(next(iter(weights.values()))) // len(z)
        named = {f"model.{name}": value for name, value in weights.items()}
        batch = tuple(one.expand(draws, *one.shape).flatten(0, 1) for one in (tokens, z))
        scores: Tensor = functional_call(self.scores, named, batch).unflatten(0, (draws, len(z)))
        return scores


@final
class _Scores(nn.Module):
    """A prompted ViT's class scores as a function of all its parameters."""

    def __init__(self, model: PromptedViT) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, z: Tensor) -> Tensor:
        """`(C, B, classes)`."""
        return self.model.logits(tokens, self.model.generator.plain(z))


def prior(state: Mapping[str, np.ndarray]) -> Arrays:
    """The Gaussian that a posterior is held to: the one sent for that, or w."""
    return {**without_own(state), **under(PRIOR, state)}


def _row(stacked: Mapping[str, Tensor], client: int) -> Arrays:
    """One client's arrays."""
    return {name: tensor[client].detach().cpu().numpy().copy() for name, tensor in stacked.items()}


def _detached(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same numbers, at which gradients stop."""
    return {name: tensor.detach() for name, tensor in tensors.items()}

r"""Prompt tuning of a frozen ViT by variational inference: VPT, its instance-wise kin and pFedBayesPT.

The Pyro programs are, for image x with class feature z and label y (Ye et al. 2025, arXiv 2508.19621, for the idea;
Yin & Zhou 2018, arXiv 1805.11183, for the bound; Jia et al. 2022, arXiv 2203.12119, for VPT):

    model   c ~ N(0, I_r),   y ~ Categorical(head(ViT(x, P_base + reshape(U c))))
    guide   c ~ int N(c; psi, sigma^2) q(psi | z) d psi

Prompts without a posterior (`generator.kind` fixed or deterministic) are the same programs without the site `code`.
"""

import math
from collections.abc import Sequence
from typing import final

import pyro
import torch
from pyro import distributions as dist
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from clients.base import AbstractClient, Draws
from clients.inputs import Inputs
from clients.mixing_probe import MixingProbe
from fedbayes.data.augment import Augment
from fedbayes.data.federated import Batch, FederatedData
from fedbayes.inference.diagnostics import mixing_variances
from fedbayes.inference.elbo import Objective, elbo
from fedbayes.inference.fit import LocalTraining
from fedbayes.inference.gaussian import AmortisedNormal
from fedbayes.inference.mixing import Pushforward
from fedbayes.inference.reverse import GaussianReverse
from fedbayes.inference.semi_implicit import SemiImplicitNormal
from fedbayes.inference.settings import InferenceSettings
from fedbayes.messages import Arrays, ClientRequest, ClientUpdate
from fedbayes.models.prompted import PromptedViT
from fedbayes.models.prompts import EXPLICIT
from fedbayes.seeding import Streams

PROBE_IMAGES = 16
"""Images of a client on which the mixing is measured before and after its training."""

LARGEST_PASS = 2048
"""Images times draws that go through the backbone at once in a prediction."""


@final
class PromptTuningClient(AbstractClient):
    """Trains generator and head on the client's images, starting from the server's parameters.

    Args:
        data: see `AbstractClient`, like the arguments down to `personal`.
        model: the prompted ViT.
        augment: changes of training images.
        cache_mb: bound of the token cache.
        seed: of the run.
        personal: parts that never leave the client.
        inference: J, K, S and the weight of the KL.
        optim: the local training.
    """

    def __init__(
        self,
        *,
        data: FederatedData,
        model: PromptedViT,
        augment: Augment,
        cache_mb: float,
        seed: int,
        personal: Sequence[str],
        inference: InferenceSettings,
        optim: LocalTraining,
    ) -> None:
        super().__init__(data=data, model=model, augment=augment, cache_mb=cache_mb, seed=seed, personal=personal)
        self.inference, self.optim = inference, optim
        self.has_posterior = model.generator.kind in (*EXPLICIT, "semi_implicit")

    def train(self, requests: Sequence[ClientRequest]) -> list[ClientUpdate]:
        """Local epochs from each request's parameters; replies carry the shared part of the result."""
        partitions = [request.partition for request in requests]
        server_round = requests[0].server_round
        self.model.stack([{**request.arrays, **request.personal} for request in requests])
        order, noise, changes = (
            Streams(self.seed, server_round, partitions, purpose) for purpose in ("order", "noise", "augment")
        )
        beta = self.inference.beta_at(server_round)
        probe = MixingProbe(self.model, *self.inputs.features(self._some(partitions)), self.seed)
        before = probe()
        batches = self.data.epochs(partitions, self.optim.local_epochs, self.optim.batch_size, order)
        metrics = self.optim.fit(
            self.model.trainable(),
            (self.inputs.train(batch, changes) for batch in batches),
            lambda inputs: self.objective(inputs, noise, beta),
            self.data.steps(partitions, self.optim.local_epochs, self.optim.batch_size),
        )
        metrics |= {f"{name}_received": values for name, values in before.items()}
        metrics |= {f"{name}_sent": values for name, values in probe().items()}
        updates = []
        for c, (partition, state) in enumerate(zip(partitions, self.model.unstack(), strict=True)):
            shared, personal = self.share(state)
            mine = {name: float(values[c]) for name, values in metrics.items()}
            if self.has_posterior:
                mine["log_classes"] = math.log(self.model.classes)  # all that a label can pay for `kl`, nats
            updates.append(ClientUpdate(partition, shared, len(self.data.indices(partition, "train")), mine, personal))
        return updates

    def _some(self, partitions: Sequence[int]) -> Batch:
        """The first validation images of each client of a cohort; their labels are not looked at."""
        whole = self.data.whole(partitions, "validation")
        first = slice(None), slice(PROBE_IMAGES)
        return Batch(whole.index[first], whole.mask[first], whole.labels[first])

    def objective(self, inputs: Inputs, noise: Streams, beta: float) -> Objective:
        """The bound of a batch, one loss per client, with the noise of their own streams."""
        draws = self.inference.train_samples if self.has_posterior else 1
        return elbo(self._model, self._guide, inputs, noise, draws=draws, weights=inputs.weights, beta=beta)

    def draw(self, inputs: Inputs, parameters: Sequence[Arrays], streams: Streams) -> Draws:
        """S draws of prompts per image; one where the kind has no posterior."""
        self.model.stack(parameters)
        generator, z = self.model.generator, inputs.z
        code, metrics = None, {}
        if self.has_posterior:
            draws = (self.inference.predict_samples,)
            psi = self._mixing(inputs, streams, torch.Size(draws))
            scale = generator.scale(z)
            code = psi + scale * streams.normal(draws, inputs.counts, generator.code_dim, z.device)
            if draws[0] > 1 and generator.noise_dim:
                metrics["mixing_variance"], metrics["conditional_variance"] = mixing_variances(psi, scale)
        elif generator.kind == "deterministic":
            code = generator.mixing(z, None).unsqueeze(0)
        width = max(1, LARGEST_PASS // ((1 if code is None else len(code)) * len(z)))
        parts = []
        for first in range(0, z.shape[1], width):
            last = first + width
            prompts = generator.decode(None).unsqueeze(0) if code is None else generator.decode(code[:, :, first:last])
            parts.append(self.model.logits(inputs.tokens[:, first:last], prompts))
        return Draws(torch.cat(parts, dim=2), metrics)

    def _mixing(self, inputs: Inputs, streams: Streams, sample_shape: torch.Size) -> Tensor:
        """The psi of the images of a batch, `sample_shape + (C, B, r)`; explicit kinds have one psi for all draws."""
        generator = self.model.generator
        if not generator.noise_dim:
            return generator.mixing(inputs.z, None).expand(*sample_shape, *inputs.mask.shape, -1)
        eps = streams.normal(sample_shape, inputs.counts, generator.noise_dim, inputs.z.device)
        return generator.mixing(inputs.z, eps)

    def _plates(self, inputs: Inputs) -> tuple[pyro.plate, pyro.plate]:
        clients, images = inputs.mask.shape
        return pyro.plate("clients", clients, dim=-2), pyro.plate("images", images, dim=-1)

    def _model(self, inputs: Inputs, noise: Streams) -> None:  # noqa: ARG002  (model and guide share arguments)
        """Prior over codes and likelihood of the labels."""
        generator, z = self.model.generator, inputs.z
        clients, images = self._plates(inputs)
        with clients, images:
            code = generator.mixing(z, None).unsqueeze(0) if generator.kind == "deterministic" else None
            if self.has_posterior:
                zero = torch.zeros(generator.code_dim, dtype=z.dtype, device=z.device)
                code = pyro.sample("code", dist.Normal(zero, 1.0, validate_args=False).to_event(1))
            logits = self.model.logits(inputs.tokens, generator.decode(code))
            pyro.sample("label", dist.Categorical(logits=logits, validate_args=False), obs=inputs.labels)

    def _guide(self, inputs: Inputs, noise: Streams) -> None:
        """Posterior over codes given the images."""
        if not self.has_posterior:
            return
        clients, images = self._plates(inputs)
        with clients, images:
            pyro.sample("code", self._posterior(inputs, noise))

    def _posterior(self, inputs: Inputs, noise: Streams) -> TorchDistribution:
        """Explicit or semi-implicit, as `generator.kind` says; of each image of a batch."""
        generator, z = self.model.generator, inputs.z
        scale = generator.scale(z)

        def standard(shape: torch.Size) -> Tensor:
            return noise.normal(shape[:-3], inputs.counts, shape[-1], z.device)

        if generator.kind in EXPLICIT:
            location, factor = generator.mixing(z, None), generator.factor(z)
            return AmortisedNormal(location, scale, factor, standard, validate_args=False)
        noise_dim, shape = generator.noise_dim, inputs.mask.shape
        reverse = None
        if generator.has_reverse:
            reverse = GaussianReverse(lambda code: generator.reverse(code, z), noise_dim, standard)
        return SemiImplicitNormal(
            Pushforward(lambda eps: generator.mixing(z, eps), noise_dim, shape, standard),
            scale,
            self.inference.num_extra,
            reverse=reverse,
            noise=standard,
            validate_args=False,
        )

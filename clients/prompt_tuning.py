r"""Prompt tuning of a frozen ViT by variational inference: VPT, its instance-wise kin and pFedBayesPT.

The Pyro programs are, for image x with class feature z and label y (Ye et al. 2025, arXiv 2508.19621, for the idea;
Yin & Zhou 2018, arXiv 1805.11183, for the bound; Jia et al. 2022, arXiv 2203.12119, for VPT):

    model   c ~ N(0, I_r),   y ~ Categorical(head(ViT(x, P_base + reshape(U c))))
    guide   c ~ int N(c; psi, sigma^2) q(psi | z) d psi

Prompts without a posterior (`generator.kind` fixed or deterministic) are the same programs without the site `code`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import cast, final

import pyro
import torch
from pyro import distributions as dist
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from clients.base import AbstractClient, Draws
from clients.inputs import Inputs
from clients.local import fit_blocks, local_streams
from clients.mixing_probe import MixingProbe
from fedbayes.arrays import Arrays
from fedbayes.comm.messages import ClientRequest, ClientUpdate
from fedbayes.data.federated import Batch
from fedbayes.inference.diagnostics import mixing_variances
from fedbayes.inference.elbo import Objective, elbo
from fedbayes.inference.gaussian import AmortisedNormal
from fedbayes.inference.mixing import Pushforward
from fedbayes.inference.reverse import GaussianReverse
from fedbayes.inference.semi_implicit import SemiImplicitNormal
from fedbayes.inference.settings import InferenceSettings
from fedbayes.models.prompts import EXPLICIT, PromptGenerator
from fedbayes.optim.local_training import LocalTraining
from fedbayes.seeding import Streams
from fedbayes.simulation.client import ClientSetup

PROBE_IMAGES = 16
"""Images of a client on which the mixing is measured before and after its training."""

LARGEST_PASS = 2048
"""Images times draws that go through the backbone at once in a prediction."""


@final
class PromptTuningClient(AbstractClient):
    """Trains generator and head on the client's images, starting from the server's parameters.

    Args:
        setup: images, model and seed.
        personal: parts that never leave the client.
        inference: J, K, S and the weight of the KL.
        optim: the local training.
        pool: train on the training images of all who train instead of the client's own: no federation any more, but
            what one is measured against.
    """

    def __init__(
        self,
        *,
        setup: ClientSetup,
        personal: Sequence[str],
        inference: InferenceSettings,
        optim: LocalTraining,
        pool: bool = False,
    ) -> None:
        super().__init__(setup=setup, personal=personal)
        self.inference, self.optim = inference, optim
        self.training = self.data.pooled() if pool else self.data
        generator = self.model.generator
        explicit = isinstance(generator, PromptGenerator) and generator.has_posterior
        self.posterior = cast(PromptGenerator, generator) if explicit else None

    def train(self, requests: Sequence[ClientRequest]) -> list[ClientUpdate]:
        """Local epochs from each request's parameters; replies carry the shared part of the result."""
        partitions = [request.partition for request in requests]
        server_round = requests[0].server_round
        self.model.stack([{**request.arrays, **request.personal} for request in requests])
        probe = MixingProbe(self.model, *self.inputs.features(self._some(partitions)), self.seed)
        before = probe()
        metrics = self._fit(partitions, server_round)
        metrics |= {f"{name}_received": values for name, values in before.items()}
        metrics |= {f"{name}_sent": values for name, values in probe().items()}
        updates = []
        for c, (partition, state) in enumerate(zip(partitions, self.model.unstack(), strict=True)):
            shared, personal = self.share(state)
            mine = {name: float(values[c]) for name, values in metrics.items()}
            if self.posterior is not None:
                mine["log_classes"] = math.log(self.model.classes)  # all that a label can pay for `kl`, nats
            images = len(self.training.indices(partition, "train"))
            updates.append(ClientUpdate(partition, shared, images, mine, personal))
        return updates

    def adapt(self, parameters: Sequence[Arrays], requests: Sequence[ClientRequest]) -> Sequence[Arrays]:
        """The parameters after the requests' steps, or `optim.finetune_steps`, on each client's own training images."""
        asked = requests[0].adapt
        steps = self.optim.finetune_steps if asked is None else asked
        if not steps:
            return parameters
        self.model.stack(parameters)
        self._fit([request.partition for request in requests], requests[0].server_round, steps)
        return self.model.unstack()

    def _fit(self, partitions: Sequence[int], server_round: int, steps: int | None = None) -> dict[str, Tensor]:
        """Train what the model holds; see `fit_blocks`."""
        lead = "" if steps is None else "adapt "
        order, noise, changes = local_streams(self.seed, server_round, partitions, lead)
        beta = self.inference.beta_at(server_round)
        return fit_blocks(
            self.optim,
            self.training if steps is None else self.data,
            self.inputs,
            self.model.trainable(),
            lambda inputs: self.objective(inputs, noise, beta),
            partitions,
            order,
            changes,
            steps,
        )

    def _some(self, partitions: Sequence[int]) -> Batch:
        """The first validation images of each client of a cohort; their labels are not looked at."""
        whole = self.data.batch(partitions, "validation")
        first = slice(None), slice(PROBE_IMAGES)
        return Batch(whole.index[first], whole.mask[first], whole.labels[first])

    def objective(self, inputs: Inputs, noise: Streams, beta: float) -> Objective:
        """The bound of a batch, one loss per client, with the noise of their own streams, and the prompts' penalty."""
        draws = self.inference.train_samples if self.posterior is not None else 1
        bound = elbo(self._model, self._guide, inputs, noise, draws=draws, weights=inputs.weights, beta=beta)
        penalty = self.model.generator.penalty(inputs.z, inputs.weights)
        return bound if penalty is None else replace(bound, loss=bound.loss + penalty, penalty=penalty)

    def draw(self, inputs: Inputs, parameters: Sequence[Arrays], streams: Streams) -> Draws:
        """S draws of prompts per image; one where the kind has no posterior."""
        self.model.stack(parameters)
        z = inputs.z
        if self.posterior is None:
            prompts = self.model.generator.plain(z).unsqueeze(0)
            one_set = prompts.shape[2] == 1
            return Draws(self._scores(inputs, 1, lambda some: prompts if one_set else prompts[:, :, some]), {})
        draws, metrics = (self.inference.predict_samples,), {}
        psi = self._mixing(self.posterior, inputs, streams, torch.Size(draws))
        scale = self.posterior.scale(z)
        code = psi + scale * streams.normal(draws, inputs.counts, self.posterior.code_dim, z.device)
        if draws[0] > 1 and self.posterior.noise_dim:
            metrics["mixing_variance"], metrics["conditional_variance"] = mixing_variances(psi, scale)
        decode = self.posterior.decode
        return Draws(self._scores(inputs, draws[0], lambda some: decode(code[:, :, some])), metrics)

    def _scores(self, inputs: Inputs, draws: int, prompts: Callable[[slice], Tensor]) -> Tensor:
        """Class scores `(S, C, B, classes)`, as many images at a time as go through the backbone at once.

        Args:
            inputs: the images.
            draws: S, draws of prompts for each.
            prompts: gives those of some images.
        """
        clients, images = inputs.mask.shape
        width = max(1, LARGEST_PASS // (draws * clients))
        pieces = [slice(first, first + width) for first in range(0, images, width)]
        return torch.cat([self.model.logits(inputs.tokens[:, some], prompts(some)) for some in pieces], dim=2)

    @staticmethod
    def _mixing(generator: PromptGenerator, inputs: Inputs, streams: Streams, sample_shape: torch.Size) -> Tensor:
        """The psi of the images of a batch, `sample_shape + (C, B, r)`; explicit kinds have one psi for all draws."""
        if not generator.noise_dim:
            return generator.mixing(inputs.z, None).expand(*sample_shape, *inputs.mask.shape, -1)
        eps = streams.normal(sample_shape, inputs.counts, generator.noise_dim, inputs.z.device)
        return generator.mixing(inputs.z, eps)

    def _plates(self, inputs: Inputs) -> tuple[pyro.plate, pyro.plate]:
        clients, images = inputs.mask.shape
        return pyro.plate("clients", clients, dim=-2), pyro.plate("images", images, dim=-1)

    def _model(self, inputs: Inputs, noise: Streams) -> None:  # noqa: ARG002  (model and guide share arguments)
        """Prior over codes and likelihood of the labels."""
        z = inputs.z
        clients, images = self._plates(inputs)
        with clients, images:
            if self.posterior is None:
                prompts = self.model.generator.plain(z).unsqueeze(0)
            else:
                zero = torch.zeros(self.posterior.code_dim, dtype=z.dtype, device=z.device)
                code = pyro.sample("code", dist.Normal(zero, 1.0, validate_args=False).to_event(1))
                prompts = self.posterior.decode(code)
            logits = self.model.logits(inputs.tokens, prompts)
            pyro.sample("label", dist.Categorical(logits=logits, validate_args=False), obs=inputs.labels)

    def _guide(self, inputs: Inputs, noise: Streams) -> None:
        """Posterior over codes given the images."""
        if self.posterior is None:
            return
        clients, images = self._plates(inputs)
        with clients, images:
            pyro.sample("code", self._distribution(self.posterior, inputs, noise))

    def _distribution(self, generator: PromptGenerator, inputs: Inputs, noise: Streams) -> TorchDistribution:
        """The posterior of each image of a batch, explicit or semi-implicit, as `generator.kind` says."""
        z = inputs.z
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

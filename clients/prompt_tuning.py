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
from typing import final

import pyro
import torch
from pyro import distributions as dist
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from clients.base import AbstractClient, LinearScores, Scores, of_client, parameters_of, passes
from clients.inputs import Inputs
from clients.local import adaptation_steps, fit_cohort
from fedbayes.arrays import Arrays
from fedbayes.comm.messages import ClientRequest, ClientUpdate
from fedbayes.data.federated import Batch
from fedbayes.errors import ConfigError
from fedbayes.inference.diagnostics import mixing_variances
from fedbayes.inference.elbo import Objective, elbo
from fedbayes.inference.gaussian import AmortisedNormal
from fedbayes.inference.mixing import Pushforward
from fedbayes.inference.reverse import GaussianReverse
from fedbayes.inference.semi_implicit import SemiImplicitNormal
from fedbayes.inference.settings import InferenceSettings
from fedbayes.models.anchoring import noise_bank
from fedbayes.models.prompts.base import whole
from fedbayes.models.prompts.coded import AbstractGaussianPrompts, AbstractPosteriorPrompts, SemiImplicitPrompts
from fedbayes.optim.local_training import LocalTraining
from fedbayes.seeding import Streams
from fedbayes.simulation.client import ClientSetup

PROBE_IMAGES = 16  # images of a client on which the mixing is measured before and after its training
VARIANCES = "mixing_variance", "conditional_variance"


@final
class PromptTuningClient(AbstractClient):
    """Trains generator and head on the client's images, starting from the server's parameters.

    Args:
        setup: images, model and seed.
        personal: first parts of parameter names that never leave the client.
        inference: J, K, S and the weight of the KL.
        optim: the local training.
        pool: train on the images of all training clients together, a reference and no federation.
    """

    trains_blocks = True

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
        self.posterior = generator if isinstance(generator, AbstractPosteriorPrompts) else None

    def train(self, requests: Sequence[ClientRequest]) -> list[ClientUpdate]:
        """Train for the local epochs from each request's parameters; replies carry the shared part of the result."""
        self.model.stack([parameters_of(request) for request in requests])
        images = self.inputs.features(self._probe_batch([request.partition for request in requests]))
        received = self._probe_mixing(*images)
        metrics = self._fit(requests)
        metrics |= {f"{name}_received": values for name, values in received.items()}
        metrics |= {f"{name}_sent": values for name, values in self._probe_mixing(*images).items()}
        constants = {} if self.posterior is None else {"log_classes": math.log(self.model.classes)}  # a label's nats
        updates = []
        for c, (request, state) in enumerate(zip(requests, self.model.unstack(), strict=True)):
            shared, personal = self.split(state)
            count = len(self.training.indices(request.partition, "train"))
            updates.append(ClientUpdate(request.partition, shared, count, of_client(metrics, c) | constants, personal))
        return updates

    def adapt(self, parameters: Sequence[Arrays], requests: Sequence[ClientRequest]) -> Sequence[Arrays]:
        """Return the parameters after the steps that are asked for on each client's training images."""
        steps = adaptation_steps(self.optim, requests)
        if not steps:
            return parameters
        self.model.stack(parameters)
        self._fit(requests, steps)
        return self.model.unstack()

    def _fit(self, requests: Sequence[ClientRequest], steps: int | None = None) -> dict[str, Tensor]:
        """Train the parameters that the model holds; see `fit_cohort`."""
        beta = self.inference.beta_at(requests[0].server_round)
        return fit_cohort(
            self,
            self.optim,
            requests,
            self.model.trainable(),
            lambda inputs, noise: self.objective(inputs, noise, beta),
            data=self.training if steps is None else self.data,
            purpose="" if steps is None else "adapt ",
            steps=steps,
        )

    def _probe_batch(self, partitions: Sequence[int]) -> Batch:
        """Return the first validation images of each client of a cohort; their labels are not read."""
        whole = self.data.batch(partitions, "validation")
        first = slice(None), slice(PROBE_IMAGES)
        return Batch(whole.index[first], whole.mask[first], whole.labels[first], whole.class_counts)

    @torch.no_grad()
    def _probe_mixing(self, z: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """Return the mixing's variances, `(C,)`, on a noise bank that all clients share; nothing without noise."""
        if self.posterior is None or not self.posterior.noise_dim:
            return {}
        bank = noise_bank(self.posterior.noise_dim, self.seed).to(z)
        psi = self.posterior.mixing(z, bank[:, None, None].expand(-1, *z.shape[:2], -1))
        variances = mixing_variances(psi, self.posterior.scale(z))
        return {name: (variance * weights).sum(1) for name, variance in zip(VARIANCES, variances, strict=True)}

    def objective(self, inputs: Inputs, noise: Streams, beta: float) -> Objective:
        """Return the bound of a batch and the prompts' penalty, one loss per client."""
        samples = self.inference.train_samples if self.posterior is not None else 1
        bound = elbo(self._model, self._guide, inputs, noise, samples=samples, weights=inputs.weights, beta=beta)
        penalty = self.model.penalty(inputs.z, inputs.weights)
        return bound if penalty is None else replace(bound, loss=bound.loss + penalty, penalty=penalty)

    def score(self, inputs: Inputs, parameters: Sequence[Arrays], streams: Streams) -> Scores:
        """Return class scores for S samples of prompts per image, or for its prompts without a posterior."""
        self.model.stack(parameters)
        z, posterior = inputs.z, self.posterior
        if posterior is None:
            prompts = self.model.generator.plain(z).unsqueeze(0)
            is_one_set = prompts.shape[2] == 1
            return Scores(self._logits(inputs, 1, lambda part: prompts if is_one_set else prompts[:, :, part]), {})
        samples, metrics, eps = self.inference.predict_samples, {}, None
        if posterior.noise_dim:
            eps = streams.normal((samples,), inputs.counts, posterior.noise_dim, z.device)
        psi = posterior.mixing(z, eps)
        psi = psi.expand(samples, *inputs.mask.shape, -1) if eps is None else psi
        scale = posterior.scale(z)
        code = psi + scale * streams.normal((samples,), inputs.counts, posterior.code_dim, z.device)
        if samples > 1 and posterior.noise_dim:
            metrics = dict(zip(VARIANCES, mixing_variances(psi, scale), strict=True))
        return Scores(self._logits(inputs, samples, lambda part: posterior.decode(code[:, :, part])), metrics)

    def linear_scores(self, inputs: Inputs, parameters: Arrays) -> LinearScores:
        """Return frozen features and the head; prompts, changes of the ViT and class priors are refused."""
        for is_used, setting, remedy in (
            (self.model.weights is not None, "method.weights", "choose a method without"),
            (self.model.generator.plain(inputs.z).shape[-2], "prompts.length", "set prompts.length=0"),
            (inputs.log_prior is not None, "head.prior", "choose head.prior=none"),
        ):
            if is_used:
                raise ConfigError(
                    f"private=True: {setting} makes class scores depend on more than frozen features and the head; "
                    f"{remedy}, or private=False."
                )
        self.model.stack([parameters])
        features = self.model.features(inputs.tokens, self.model.generator.plain(inputs.z))[0]
        head = self.model.head
        assert head.bias is not None, "heads have one"
        parts = features, whole(head.weight)[0], head.bias[0, 0]
        return LinearScores(*(part.detach().cpu() for part in parts))

    def _logits(self, inputs: Inputs, samples: int, prompts: Callable[[slice], Tensor]) -> Tensor:
        """Return class scores `(S, C, B, classes)`, with `prompts` giving those of a slice of the images."""
        parts = passes(inputs.mask, samples)
        scores = [self.model.logits(inputs.tokens[:, part], prompts(part), inputs.z[:, part]) for part in parts]
        return inputs.with_prior(torch.cat(scores, dim=2))

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
                zero = z.new_zeros(self.posterior.code_dim)
                code = pyro.sample("code", dist.Normal(zero, 1.0, validate_args=False).to_event(1))
                prompts = self.posterior.decode(code)
            logits = inputs.with_prior(self.model.logits(inputs.tokens, prompts, z))
            pyro.sample("label", dist.Categorical(logits=logits, validate_args=False), obs=inputs.labels)

    def _guide(self, inputs: Inputs, noise: Streams) -> None:
        """Posterior over codes given the images."""
        if self.posterior is None:
            return
        clients, images = self._plates(inputs)
        with clients, images:
            pyro.sample("code", self._distribution(self.posterior, inputs, noise))

    def _distribution(self, generator: AbstractPosteriorPrompts, inputs: Inputs, noise: Streams) -> TorchDistribution:
        """Return the posterior of each image of a batch, explicit or semi-implicit."""
        z = inputs.z

        def standard(shape: torch.Size) -> Tensor:
            return noise.normal(shape[:-3], inputs.counts, shape[-1], z.device)

        scale = generator.scale(z)
        if isinstance(generator, AbstractGaussianPrompts):
            return AmortisedNormal(generator.mean(z), scale, generator.factor(z), standard, validate_args=False)
        assert isinstance(generator, SemiImplicitPrompts), "the one other kind with a posterior"
        reverse = None
        if generator.has_reverse:
            reverse = GaussianReverse(lambda code: generator.reverse(code, z), generator.noise_dim, standard)
        return SemiImplicitNormal(
            Pushforward(lambda eps: generator.mixing(z, eps), generator.noise_dim, inputs.mask.shape, standard),
            scale,
            self.inference.num_extra,
            reverse=reverse,
            noise=standard,
            validate_args=False,
        )

r"""The objective of a Pyro model and guide, kept apart for each client of a cohort.

    L = E_guide[ log p(label | ...) + sum of scaled log p(latent) - sum of scaled log q(latent) ]

Pyro's `Trace_ELBO` sums everything into one number. Here the sites' terms are the same but summed over images only, so
every client has a loss of its own; the sum over clients equals Trace_ELBO's. Clients stand on plate dimension -2,
images on -1, and samples (J, `train_samples`) on -3.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import pyro
import torch
from jaxtyping import Float
from pyro import poutine
from pyro.poutine import Trace
from torch import Tensor

from fedbayes.inference.semi_implicit import SemiImplicitNormal

Program = Callable[..., Any]


@final
@dataclass(frozen=True)
class Objective:
    """Terms of the objective of each client, nats per image; `None` is what the programs do not have.

    Attributes:
        loss: negative ELBO with the KL weighed by beta, and the penalty; differentiable.
        kl: one-sample estimate of KL(guide, prior), without beta.
        effective_components: of a semi-implicit mixture, 1 to K + 1.
        bound_saturation: see `fedbayes.inference.diagnostics`; of a plain mixture with K of at least 1.
        penalty: what the prompts add to the loss.
    """

    loss: Float[Tensor, " clients"]
    log_likelihood: Float[Tensor, " clients"]
    kl: Float[Tensor, " clients"] | None = None
    effective_components: Float[Tensor, " clients"] | None = None
    bound_saturation: Float[Tensor, " clients"] | None = None
    penalty: Float[Tensor, " clients"] | None = None

    def metrics(self) -> dict[str, Tensor]:
        """Return every term that exists, detached, by name."""
        return {name: value.detach() for name, value in vars(self).items() if value is not None}


def elbo(
    model: Program, guide: Program, *args: Any, samples: int, weights: Float[Tensor, "clients images"], beta: float
) -> Objective:
    """Evaluate model and guide once, with `samples` samples side by side.

    Args:
        model: Pyro program; its observed site is `label`, its latent site, if any, is `code`.
        guide: Pyro program over the same latent site.
        *args: passed to both.
        samples: J.
        weights: of the images, 0 for padding, 1 / (client's images) for the mean.
        beta: weight of the KL; 0 leaves it out.
    """
    particles = pyro.plate("samples", samples, dim=-3)
    guide_trace = poutine.trace(particles(guide)).get_trace(*args)
    replayed = poutine.replay(particles(model), trace=guide_trace)
    model_trace = poutine.trace(replayed).get_trace(*args)

    def per_client(term: Tensor) -> Tensor:
        masked = torch.where(weights > 0, term, torch.zeros((), dtype=term.dtype, device=term.device))
        return (masked.expand(samples, *weights.shape).mean(0) * weights).sum(-1)  # (C,)

    log_likelihood = per_client(_log_prob(model_trace, "label"))
    if "code" not in guide_trace:
        return Objective(loss=-log_likelihood, log_likelihood=log_likelihood)
    kl = per_client(_log_prob(guide_trace, "code") - _log_prob(model_trace, "code"))
    loss = -log_likelihood + beta * kl if beta > 0 else -log_likelihood
    site: Any = guide_trace.nodes["code"]
    posterior = site["fn"]
    if not isinstance(posterior, SemiImplicitNormal):
        return Objective(loss, log_likelihood, kl)
    mixture = posterior.mixture(site["value"])
    # A reverse model's weights are no densities: what the bound credits them with has no ceiling of log(K + 1).
    saturation = mixture.bound_saturation if posterior.reverse is None else None
    effective = per_client(mixture.effective_components)
    return Objective(loss, log_likelihood, kl, effective, None if saturation is None else per_client(saturation))


def _log_prob(trace: Trace, site: str) -> Tensor:
    """Return a site's log density, in nats, of the batch's shape, before masks and scales."""
    node: Any = trace.nodes[site]
    density: Tensor = node["fn"].log_prob(node["value"])
    return density

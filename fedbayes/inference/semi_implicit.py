r"""Semi-implicit variational distributions, after Yin & Zhou, ICML 2018 (arXiv 1805.11183).

    h(p) = int q(p | psi) q_phi(psi) d psi,   q(p | psi) = N(psi, scale^2),   psi ~ q_phi known only by its draws

`psi_0` generated p and `psi_1 .. psi_K` are fresh (K is `num_extra`). With
`h_K(p) = 1/(K+1) sum_{k=0..K} q(p | psi_k)`, `E[-log h_K(p)]` never exceeds the entropy of h and rises to it with K, so
`E[log p(y, p) - log h_K(p)]` is a lower bound of the ELBO that tightens with K. It credits the implicit part with at
most `log(K + 1)` nats: `log q(p | psi_0) - log h_K(p) <= log(K + 1)` for every draw.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from jaxtyping import Float
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import Normal, constraints

Mixing = Callable[[torch.Size], Tensor]
"""`mixing(sample_shape) -> psi` of shape `sample_shape + batch_shape + event_shape`, reparameterised."""

Noise = Callable[[torch.Size], Tensor]
"""`noise(shape)`: standard normal draws of that shape."""


def log_mixture(log_components: Float[Tensor, "components *batch"]) -> Float[Tensor, "*batch"]:
    """`log 1/(K+1) sum_k exp(log_components_k)`, in nats."""
    return log_components.logsumexp(0) - math.log(log_components.shape[0])


def effective_components(log_components: Float[Tensor, "components *batch"]) -> Float[Tensor, "*batch"]:
    """How many mixture components matter: the effective sample size of their weights, `1 / sum_k w_k^2`, 1 to K + 1.

    Near one, the semi-implicit posterior is the conditional it is built from and K buys nothing.
    """
    weights = log_components.softmax(0)
    return 1 / weights.square().sum(0)


def mixing_variances(
    psi: Float[Tensor, "draws *batch event"], scale: Float[Tensor, "*#batch event_or_1"]
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """`Var[psi]` and `scale^2`, each summed over the event; between-image spread does not enter.

    Args:
        psi: at least two draws of the mixing variable for each element of the batch.
        scale: standard deviation of the conditional.
    """
    return psi.var(0).sum(-1), scale.square().expand_as(psi[0]).sum(-1)


def mixing_ratio(mixing: float, conditional: float) -> float:
    """`E_x[Var psi] / (E_x[Var psi] + E_x[scale^2])`: a ratio of means, so images are averaged before it is taken.

    Args:
        mixing: mean over images of the first of `mixing_variances`.
        conditional: mean over images of the second; positive.

    Returns:
        0 to 1; near 0 the mixing has collapsed to a point.
    """
    return mixing / (mixing + conditional)


@final
class SemiImplicitNormal(TorchDistribution):
    """A normal whose mean is itself random, with a law known only by its draws.

    `rsample` draws p; `log_prob` of that very draw is the mixture above, psi_0 included and K fresh psi beside it, and
    asking twice gives the same number. Of any other value it is the mixture over K fresh draws. So Pyro's plain
    `Trace_ELBO` computes the bound of the module docstring, plates and scaling included.

    Args:
        mixing: draws psi; called once here, for psi_0, which fixes the shapes.
        scale: standard deviation of p given psi; broadcasts to psi.
        num_extra: K, fresh draws of psi in the mixture; 0 is the loosest bound.
        event_dim: rightmost dimensions of psi that make one event.
        noise: source of the conditional's standard normal draws; the default draws from torch's global generator.

    Raises:
        ValueError: if `num_extra` is negative, or `log_prob` is asked of a foreign value at `num_extra=0`.
    """

    has_rsample = True
    arg_constraints: dict[str, Any] = {}  # noqa: RUF012  (torch's own class attribute)

    def __init__(
        self,
        mixing: Mixing,
        scale: Tensor,
        num_extra: int,
        event_dim: int = 1,
        noise: Noise | None = None,
        validate_args: bool | None = None,
    ) -> None:
        if num_extra < 0:
            raise ValueError(f"num_extra must be at least 0, got {num_extra}: it counts fresh draws of psi.")
        self.mixing, self.scale, self.num_extra = mixing, scale, num_extra
        self.noise: Noise = noise or (lambda shape: torch.randn(shape, dtype=scale.dtype, device=scale.device))
        self.psi = mixing(torch.Size())
        self._drawn: tuple[Tensor, Tensor] | None = None  # the last draw and its psi_0
        self._components: tuple[Tensor, Tensor] | None = None  # a value and its log components
        split = self.psi.dim() - event_dim
        super().__init__(self.psi.shape[:split], self.psi.shape[split:], validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> constraints.Constraint:
        """All real events."""
        return constraints.independent(constraints.real, self.event_dim)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> "SemiImplicitNormal":
        """The same law over a larger batch; the new elements are independent draws, not copies of one."""
        wanted = torch.Size(batch_shape)
        if wanted == self.batch_shape:
            return self
        grown = _Expanded(self.mixing, self.batch_shape, wanted)
        return SemiImplicitNormal(
            grown, self.scale, self.num_extra, self.event_dim, self.noise, validate_args=self._validate_args
        )

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw p, reparameterised: `psi_0 + scale * noise`."""
        # The psi drawn for the shapes serves the first draw only: further draws are independent of it.
        fresh = len(sample_shape) > 0 or self._drawn is not None
        psi = self.mixing(torch.Size(sample_shape)) if fresh else self.psi
        value: Tensor = psi + self.scale * self.noise(psi.shape)
        self._drawn, self._components = (value, psi), None
        return value

    def log_components(self, value: Tensor) -> Float[Tensor, "components *batch"]:
        """`log q(value | psi_k)` for every component in use, in nats; psi_0's comes first where it is known."""
        if self._components is not None and self._components[0] is value:
            return self._components[1]
        own = self._drawn is not None and self._drawn[0] is value
        if not own and self.num_extra == 0:
            raise ValueError("log_prob of a value that rsample did not draw needs num_extra of at least 1, got 0.")
        lead = value.shape[: max(0, value.dim() - len(self.batch_shape) - len(self.event_shape))]
        parts = []
        if own and self._drawn is not None:
            parts.append(self._conditional(value, self._drawn[1]).unsqueeze(0))
        if self.num_extra:
            parts.append(self._conditional(value, self.mixing(torch.Size((self.num_extra, *lead)))))
        components = torch.cat(parts)
        self._components = (value, components)
        return components

    def log_prob(self, value: Tensor) -> Tensor:
        """The mixture `log h_K(value)`, in nats, one per batch element."""
        if self._validate_args:
            self._validate_sample(value)
        return log_mixture(self.log_components(value))

    def _conditional(self, value: Tensor, psi: Tensor) -> Tensor:
        """`log q(value | psi)`, summed over the event."""
        density: Tensor = Normal(psi, self.scale, validate_args=False).log_prob(value)
        return density.sum(tuple(range(-self.event_dim, 0)))


@final
class _Expanded:
    """A mixing over a larger batch: fresh draws for each new element, moved to where the batch grew."""

    def __init__(self, mixing: Mixing, old: torch.Size, new: torch.Size) -> None:
        self._mixing, self._lead = mixing, new[: len(new) - len(old)]
        grown = new[len(new) - len(old) :]
        self._stretched = [i for i, (a, b) in enumerate(zip(old, grown, strict=True)) if a != b]
        if any(old[i] != 1 for i in self._stretched):
            raise ValueError(f"cannot expand a batch of shape {tuple(old)} to {tuple(new)}: only size 1 can grow.")
        self._sizes = tuple(grown[i] for i in self._stretched)

    def __call__(self, sample_shape: torch.Size) -> Tensor:
        """Draws of shape `sample_shape + lead + grown batch + event`."""
        prefix = torch.Size((*sample_shape, *self._lead))
        psi = self._mixing(torch.Size((*prefix, *self._sizes)))
        for left, i in reversed(list(enumerate(self._stretched))):
            axis = len(prefix) + left  # the fresh axis; those behind it have been moved already
            place = len(prefix) + left + 1 + i  # the size-1 axis that it replaces
            psi = psi.squeeze(place).movedim(axis, place - 1)
        return psi

r"""Semi-implicit variational distributions, after Yin & Zhou, ICML 2018 (arXiv 1805.11183).

    h(p) = int q(p | psi) q_phi(psi) d psi,   q(p | psi) = N(psi, scale^2),   psi ~ q_phi known only by its draws

`psi_0` generated p and `psi_1 .. psi_K` are fresh (K is `num_extra`). With
`h_K(p) = 1/(K+1) sum_{k=0..K} q(p | psi_k)`, `E[-log h_K(p)]` never exceeds the entropy of h and rises to it with K, so
`L_K = E[log p(y, p) - log h_K(p)]` is a lower bound of the ELBO that tightens with K. It credits the implicit part with
at most `log(K + 1)` nats: `log q(p | psi_0) - log h_K(p) <= log(K + 1)` for every draw. Without `psi_0` the same
expression is an upper bound, U_K. A reverse model changes the weights of the components, and draws psi_1 .. psi_K where
they matter; see `fedbayes.inference.reverse`.
"""

import math
from collections import deque
from collections.abc import MutableMapping, Sequence
from typing import Any, cast, final

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.utils.checkpoint import checkpoint
from torch.utils.weak import WeakTensorKeyDictionary

from fedbayes.inference.gaussian import log_normal, require_broadcasting, require_scale, require_whole, total
from fedbayes.inference.mixing import Mixing, Noise, Pushforward, StandardLike, expanded, sample_noise
from fedbayes.inference.mixture import Mixture
from fedbayes.inference.reverse import GaussianReverse, NoisePosterior, require_fitting

NEAR = 1e-3
"""Largest difference between a draw and the same draw through a transform and back, in units of the scale."""

REMEMBERED = 8
"""Draws that are recognised by value."""


@final
class SemiImplicitNormal(TorchDistribution):
    """A normal whose mean is itself random, with a law known only by its draws.

    `rsample` draws p; `log_prob` of that draw is the mixture above, psi_0 included and K fresh psi beside it, and
    asking twice gives the same number. A draw is recognised as the tensor itself or, for the latest draws, by its
    numbers: a copy, or what the inverse of a transform makes of it in a `TransformedDistribution`, where rounding may
    move up to a tenth of the entries by more than `NEAR` (a transform with `cache_size=1` gives the tensor itself
    back). Of any other value `log_prob` is the mixture over K fresh draws. So Pyro's plain `Trace_ELBO` computes the
    bound of the module docstring, plates and scaling included. Like other distributions it belongs to the parameters of
    the moment: make it anew in each step.

    Args:
        mixing: draws psi, of shape `sample_shape + batch_shape + event_shape`; called once here, for psi_0, which fixes
            the shapes. A plain callable, or a `Pushforward`, which tells its noise.
        scale: standard deviation of p given psi; broadcasts to psi.
        num_extra: K, fresh draws of psi in the mixture; 0 is the loosest bound.
        event_dim: rightmost dimensions of psi that make one event.
        reverse: model of the noise given p; needs a `Pushforward`. None: plain semi-implicit inference.
        noise: source of the conditional's standard normal draws; the default draws from torch's global generator.
        chunk: most fresh draws at once; memory then grows with K only by their noise (by nothing on the path gradient),
            and each draw is computed twice. None: all at once. Needs a `Pushforward` or the path gradient.
        path_gradient: differentiate `log_prob` through p alone, the mixture's parameters held fixed. The part left
            out has mean zero, so the gradient of L_K is the same in expectation, and the K draws need no graph.
        share_extra: the same K fresh draws for all of rsample's `sample_shape`; right where nothing but the batch tells
            its elements apart, and cheaper by their number. Plates and particles are batch, and do not share.

    Raises:
        ValueError: if a shape, K or (where arguments are validated) the scale makes no density, or options exclude each
            other; later, if `log_prob` is asked of a value drawn elsewhere at K = 0.
    """

    has_rsample = True
    arg_constraints: dict[str, Any] = {}  # noqa: RUF012  (torch's own class attribute)

    def __init__(
        self,
        mixing: Mixing,
        scale: Tensor | float,
        num_extra: int,
        event_dim: int = 1,
        reverse: GaussianReverse | None = None,
        noise: Noise | None = None,
        *,
        chunk: int | None = None,
        path_gradient: bool = False,
        share_extra: bool = False,
        validate_args: bool | None = None,
    ) -> None:
        require_whole("num_extra", num_extra, 0, "it counts fresh draws of psi")
        require_whole("event_dim", event_dim, 0, "it counts dimensions of psi")
        if chunk is not None:
            require_whole("chunk", chunk, 1, "it counts draws at once; None takes all")
        require_fitting(mixing, reverse, chunk, path_gradient)
        self.mixing, self.num_extra, self.reverse = mixing, num_extra, reverse
        self.chunk, self.path_gradient, self.share_extra = chunk, path_gradient, share_extra
        self.psi, self._eps = self._mix(torch.Size())
        if self.psi.dim() < event_dim:
            raise ValueError(
                f"mixing(torch.Size([])) gave psi of shape {tuple(self.psi.shape)}, too few for event_dim={event_dim}."
            )
        self.scale = scale if isinstance(scale, Tensor) else self.psi.new_full((), scale)
        require_broadcasting(self.scale, self.psi)
        self.noise: Noise = noise or StandardLike(self.psi)
        # Of every draw that somebody still holds, and of the latest ones: its psi_0 with the noise behind it. Of every
        # value asked: its mixture and whether that has a graph.
        self._origins: MutableMapping[Tensor, _Origin] = WeakTensorKeyDictionary()
        self._latest: deque[tuple[Tensor, _Origin]] = deque(maxlen=REMEMBERED)
        self._mixtures: MutableMapping[Tensor, tuple[Mixture, bool]] = WeakTensorKeyDictionary()
        self._is_unused = torch.is_grad_enabled()  # whether psi_0 may still serve a draw
        split = self.psi.dim() - event_dim
        if isinstance(mixing, Pushforward) and mixing.batch_shape != self.psi.shape[:split]:
            raise ValueError(
                f"mixing has batch_shape {tuple(mixing.batch_shape)} but gave psi of batch shape "
                f"{tuple(self.psi.shape[:split])}, whose elements would share noise; give the Pushforward that shape."
            )
        super().__init__(self.psi.shape[:split], self.psi.shape[split:], validate_args=validate_args)
        if self._validate_args:
            require_scale(self.scale)

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> constraints.Constraint:
        """All real events."""
        return constraints.independent(constraints.real, self.event_dim)

    @property
    def mean(self) -> Tensor:
        """Unknown: psi is known only by its draws."""
        raise NotImplementedError(f"the mean of psi has no formula; estimate it: {_ESTIMATE}.mean(0).")

    @property
    def variance(self) -> Tensor:
        """Unknown: psi is known only by its draws."""
        raise NotImplementedError(f"the variance of psi has no formula; estimate it: {_ESTIMATE}.var(0).")

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> "SemiImplicitNormal":
        """The same law over a larger batch; the new elements are independent draws, not copies of one."""
        wanted = torch.Size(batch_shape)
        if wanted == self.batch_shape:
            return self
        return SemiImplicitNormal(
            expanded(self.mixing, self.batch_shape, wanted),
            self.scale,
            self.num_extra,
            self.event_dim,
            self.reverse,
            self.noise,
            chunk=self.chunk,
            path_gradient=self.path_gradient,
            share_extra=self.share_extra,
            validate_args=self._validate_args,
        )

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw p, reparameterised: `psi_0 + scale * noise`."""
        # The psi drawn for the shapes serves the first draw only: further draws are independent of it.
        is_fresh = len(sample_shape) > 0 or not self._is_unused
        psi, eps = self._mix(torch.Size(sample_shape)) if is_fresh else (self.psi, self._eps)
        self._is_unused = self._is_unused and is_fresh
        value: Tensor = psi + self.scale * sample_noise(self.noise, psi.shape)
        self._origins[value] = (psi, eps)
        self._latest.append((value.detach(), (psi, eps)))
        return value

    def log_prob(self, value: Tensor) -> Tensor:
        """The mixture `log h_K(value)`, in nats, one per batch element."""
        if self._validate_args:
            self._validate_sample(value)
        return self.mixture(value).log_density

    def mixture(self, value: Tensor, *, with_origin: bool = True) -> Mixture:
        """The mixture behind `log_prob(value)`, with its diagnostics; the same one each time it is asked.

        One found where gradients are off has none, so asking for it where they are on finds another.

        Args:
            value: a draw, or another value.
            with_origin: whether psi_0 of a draw is in the mixture; False gives the upper bound's mixture.
        """
        if not with_origin:
            return self._mixture(value, None)
        needs_graph = torch.is_grad_enabled()
        if value not in self._mixtures or (needs_graph and not self._mixtures[value][1]):
            self._mixtures[value] = (self._mixture(value, self._origin(value)), needs_graph)
        return self._mixtures[value][0]

    def _origin(self, value: Tensor) -> "_Origin | None":
        """psi_0 of a draw and its noise; None for another value."""
        if value in self._origins:
            return self._origins[value]
        for draw, origin in reversed(self._latest):
            if draw.shape == value.shape:
                is_near = (value.detach() - draw).abs() <= NEAR * self.scale.detach()
                if is_near.double().mean() >= 0.9:
                    return origin
        return None

    def _mixture(self, value: Tensor, origin: "_Origin | None") -> Mixture:
        if origin is None and self.num_extra == 0:
            raise ValueError(
                "log_prob of a value that rsample did not draw needs num_extra of at least 1, got 0: at K = 0 the "
                "mixture is the draw's component alone."
            )
        if self.path_gradient:
            return self._along_path(value, origin)
        tau = None if self.reverse is None else self.reverse(value)
        log_origin = None
        if origin is not None:
            log_origin = self._conditional(value, origin[0])
            if tau is not None:
                log_origin = log_origin + tau.log_ratio(cast(Tensor, origin[1]))
        first = [] if log_origin is None else [log_origin.unsqueeze(0)]
        sizes = self._chunks()
        if len(sizes) <= 1:
            fresh = [self._log_weights(value, tau, self._fresh_noise(size, value)) for size in sizes]
            return Mixture.of(torch.cat(first + fresh), log_origin)
        parts = [Mixture.of(weights) for weights in first]
        for size in sizes:
            parts.append(checkpoint(self._part, value, tau, self._fresh_noise(size, value), use_reentrant=False))
        return Mixture.joined(parts, log_origin)

    def _part(self, value: Tensor, tau: NoisePosterior | None, noise: Tensor) -> Mixture:
        return Mixture.of(self._log_weights(value, tau, noise))

    def _chunks(self) -> list[int]:
        """How many fresh draws to take at a time."""
        most = self.chunk or self.num_extra
        return [min(most, self.num_extra - first) for first in range(0, self.num_extra, most or 1)]

    def _fresh_noise(self, size: int, value: Tensor) -> Tensor:
        """What fresh components are made of: standard normal draws; of a plain callable, psi itself."""
        shape = torch.Size((size, *self._lead(value)))
        if self.reverse is not None:
            noise_dim = self.reverse.noise_dim
            return self.reverse.standard(torch.Size((*shape, *self.batch_shape, noise_dim)), self.psi)
        return self.mixing.eps(shape) if isinstance(self.mixing, Pushforward) else self._mix(shape)[0]

    def _log_weights(self, value: Tensor, tau: NoisePosterior | None, noise: Tensor) -> Tensor:
        """`log w_k` of fresh components, `(k, *batch)`."""
        if tau is not None:
            eps, log_ratio = tau.push(noise)
            return self._conditional(value, self._transport(eps)) + log_ratio
        psi = self._transport(noise) if isinstance(self.mixing, Pushforward) else noise
        return self._conditional(value, psi)

    def _along_path(self, value: Tensor, origin: "_Origin | None") -> Mixture:
        """The mixture with its gradient in the value alone, `(sum_k w_k psi_k / sum_k w_k - value) / scale^2`."""
        point, scale = value.detach(), self.scale.detach()
        with torch.no_grad():
            log_origin = None if origin is None else self._conditional(point, origin[0])
            log_sum = log_squares = torch.full_like(total(point, self.event_dim), -math.inf)
            centre = torch.zeros_like(point)
            for size in ([0] if origin is not None else []) + self._chunks():  # 0: the generating component
                if size == 0 and origin is not None:
                    psi = origin[0].unsqueeze(0)
                else:
                    psi = self._mix(torch.Size((size, *self._lead(value))))[0]
                weights = self._conditional(point, psi)
                before, log_sum = log_sum, torch.logaddexp(log_sum, weights.logsumexp(0))
                log_squares = torch.logaddexp(log_squares, (2 * weights).logsumexp(0))
                normalised = self._as_event((weights - log_sum).exp())
                centre = centre * self._as_event((before - log_sum).exp()) + (normalised * psi).sum(0)
            score = (centre - point) / scale.square()
        moved = total(score * (value - point), self.event_dim)  # zero in value; its gradient is the score
        return Mixture(log_sum + moved, log_squares, self.num_extra + (origin is not None), log_origin)

    def _as_event(self, per_element: Tensor) -> Tensor:
        return per_element.reshape((*per_element.shape, *[1] * self.event_dim))

    def _lead(self, value: Tensor) -> tuple[int, ...]:
        """The sample shape of a value, or ones in its place where it shares the fresh draws."""
        lead = value.shape[: max(0, value.dim() - len(self.batch_shape) - len(self.event_shape))]
        return (1,) * len(lead) if self.share_extra else tuple(lead)

    def _conditional(self, value: Tensor, psi: Tensor) -> Tensor:
        """`log q(value | psi)`, summed over the event."""
        return log_normal(value, psi, self.scale, self.event_dim)

    def _mix(self, sample_shape: torch.Size) -> tuple[Tensor, Tensor | None]:
        """Draws of psi, and their noise where the mixing tells it."""
        if isinstance(self.mixing, Pushforward):
            eps = self.mixing.eps(sample_shape)
            return self._checked(self.mixing.function(eps), sample_shape), eps
        return self._checked(self.mixing(sample_shape), sample_shape), None

    def _transport(self, eps: Tensor) -> Tensor:
        mixing = cast(Pushforward, self.mixing)
        return self._checked(mixing.function(eps), eps.shape[: eps.dim() - 1 - len(mixing.batch_shape)])

    def _checked(self, psi: Tensor, sample_shape: torch.Size) -> Tensor:
        """The draws, if they have the shape that psi_0 has fixed."""
        first: Tensor | None = getattr(self, "psi", None)
        wanted = (*sample_shape, *(psi if first is None else first).shape)
        if first is not None and psi.shape != wanted:
            raise ValueError(
                f"mixing gave psi of shape {tuple(psi.shape)} for sample_shape {tuple(sample_shape)}; it must be "
                f"{tuple(wanted)}: the sample shape in front of psi_0's shape."
            )
        return psi


_Origin = tuple[Tensor, Tensor | None]
_ESTIMATE = "SemiImplicitNormal.rsample((1000,))"

"""Lower and upper bound of the evidence lower bound of a semi-implicit posterior, as functions of its draws."""

from collections.abc import Callable

from torch import Tensor
from torch.distributions import Distribution

from fedbayes.inference.semi_implicit import SemiImplicitNormal


def lower_bound(posterior: Distribution, log_joint: Callable[[Tensor], Tensor], draws: int) -> Tensor:
    """Terms whose mean is L_K, at most the ELBO `E_h[log p(y, p) - log h(p)]` and rising to it with K.

    Args:
        posterior: of p; an explicit one, whose density is exact, gives the ELBO itself.
        log_joint: `log p(y, p)` in nats, one per draw and batch element.
        draws: how many.

    Returns:
        Nats, `(draws, *batch)`, differentiable.
    """
    p = posterior.rsample((draws,))
    return log_joint(p) - posterior.log_prob(p)


def upper_bound(posterior: SemiImplicitNormal, log_joint: Callable[[Tensor], Tensor], draws: int) -> Tensor:
    """Terms whose mean is U_K: psi_0 left out, so at least the ELBO and falling to it with K; arguments as above.

    The path gradient rests on psi_0 being there: with `path_gradient` the values are right, their gradient is not.

    Raises:
        ValueError: at K = 0, where nothing would be left.
    """
    p = posterior.rsample((draws,))
    return log_joint(p) - posterior.mixture(p, with_origin=False).log_density

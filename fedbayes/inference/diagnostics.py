r"""What a semi-implicit posterior has come to: components that matter, how tight the bound can be, how wide it mixes.

With w_k the normalised weights of the mixture's components, the generating one first:

    effective components   1 / sum_k w_k^2; the one that also fits `tau`
    bound saturation       (log q(p | psi_0) - log h_K(p)) / log(K + 1); the bound credits no more than log(K + 1) nats
    mixing ratio           E_x[Var psi] / (E_x[Var psi] + E_x[scale^2]); near 0 the mixing is a point
"""

import math

from jaxtyping import Float
from torch import Tensor

from fedbayes.inference.mixture import Mixture
from fedbayes.inference.thresholds import COLLAPSED


def log_mixture(log_weights: Float[Tensor, "components *batch"]) -> Float[Tensor, "*batch"]:
    """`log 1/(K+1) sum_k exp(log_weights_k)`, in nats."""
    return Mixture.of(log_weights).log_density


def effective_components(log_weights: Float[Tensor, "components *batch"]) -> Float[Tensor, "*batch"]:
    """How many mixture components matter: the effective sample size of their weights, `1 / sum_k w_k^2`, 1 to K + 1.

    Near one, the semi-implicit posterior is the conditional it is built from and K buys nothing.
    """
    return Mixture.of(log_weights).effective_components


def bound_saturation(log_weights: Float[Tensor, "components *batch"]) -> Float[Tensor, "*batch"]:
    """`(log q(p | psi_0) - log h_K(p)) / log(K + 1)`, at most 1; above `SATURATED` the bound is limited by K.

    Args:
        log_weights: of a plain mixture (no reverse model), the generating component's first.

    Raises:
        ValueError: if there is only one component, which the bound credits with nothing.
    """
    saturation = Mixture.of(log_weights, log_weights[0]).bound_saturation
    if saturation is None:
        raise ValueError("bound_saturation needs K of at least 1, got 0: at K = 0 the bound credits no mixing at all.")
    return saturation


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
        0 to 1; near 0 the mixing has collapsed to a point. NaN where the two are no variances.
    """
    return mixing / (mixing + conditional) if mixing + conditional > 0 else math.nan


def has_collapsed(ratio: float) -> bool:
    """Whether a mixing ratio says that the posterior is but its conditional: a local optimum, reached by bad luck."""
    return ratio < COLLAPSED

r"""What a semi-implicit posterior has come to: components that matter, how tight the bound can be, how wide it mixes.

With w_k the normalised weights of the mixture's components, the generating one first (see `Mixture`):

    effective components   1 / sum_k w_k^2; the one that also fits `tau`
    bound saturation       (log q(p | psi_0) - log h_K(p)) / log(K + 1); the bound credits no more than log(K + 1) nats
    mixing ratio           E_x[Var psi] / (E_x[Var psi] + E_x[scale^2]); near 0 the mixing is a point
"""

import math

from jaxtyping import Float
from torch import Tensor

from fedbayes.inference.thresholds import COLLAPSED


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

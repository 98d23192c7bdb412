r"""Two posteriors with a reference: what `semi_implicit_posteriors.py` approximates, and how far off it is.

    logistic   y ~ Bernoulli(sigmoid(x^T p)), p ~ N(0, 10^2 I), d = 22: Breiman's waveforms, class 0 against the others
    counts     x ~ NegativeBinomial(r, prob), r ~ Gamma(.01, .01), prob ~ Beta(.01, .01), p = (log r, logit prob): the
               red mites of Bliss & Fisher, Biometrics 1953; both data sets are those of Yin & Zhou, ICML 2018

The reference of the second is quadrature. That of the first is a long run of NUTS for moments, and importance sampling
for `log Z = log p(y)`, which the NUTS draws check by going the other way.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.functional import hessian, jacobian
from torch.distributions import Gamma, MultivariateNormal
from torch.nn.functional import logsigmoid

LogJoint = Callable[[Tensor], Tensor]
"""`log p(y, p)` in nats, `(*batch, d) -> (*batch)`, in the dtype of its argument."""

MITES = (70, 38, 17, 10, 9, 3, 2, 1)
"""Apple leaves with 0, 1, .. 7 mites."""


@final
@dataclass(frozen=True)
class Reference:
    """The posterior as well as we know it.

    Attributes:
        log_z: nats.
        error: standard error of `log_z`, nats.
        mean: of p.
        sd: of p.
        correlation: of p.
        notes: how it was found, name to number.
    """

    log_z: float
    error: float
    mean: list[float]
    sd: list[float]
    correlation: list[list[float]]
    notes: dict[str, float]


def waveforms(rows: int = 400, seed: int = 0) -> tuple[Float[Tensor, "rows 22"], Float[Tensor, " rows"]]:
    """Design with a leading one and 21 standardised features, and labels 0 or 1; after Breiman et al. 1984."""
    rng = np.random.default_rng(seed)
    bumps = [np.maximum(6 - np.abs(np.arange(1, 22) - centre), 0) for centre in (7, 15, 11)]
    pairs = np.stack([[bumps[a], bumps[b]] for a, b in ((0, 1), (0, 2), (1, 2))])
    classes = rng.integers(0, 3, rows)
    share = rng.random((rows, 1))
    x = share * pairs[classes, 0] + (1 - share) * pairs[classes, 1] + rng.standard_normal((rows, 21))
    design = np.column_stack([np.ones(rows), (x - x.mean(0)) / x.std(0)])
    return torch.from_numpy(design), torch.from_numpy((classes == 0).astype(float))


def logistic_joint(design: Float[Tensor, "rows d"], labels: Float[Tensor, " rows"], prior_sd: float = 10.0) -> LogJoint:
    """`sum_i log sigmoid((2 y_i - 1) x_i^T p) + log N(p; 0, prior_sd^2 I)`."""
    signed = design * (2 * labels - 1).unsqueeze(1)
    constant = -0.5 * design.shape[1] * math.log(2 * math.pi * prior_sd**2)

    def log_joint(p: Tensor) -> Tensor:
        likelihood = logsigmoid(p @ signed.to(p.dtype).T).sum(-1)
        return likelihood - 0.5 * p.square().sum(-1) / prior_sd**2 + constant

    return log_joint


def count_joint(leaves: tuple[int, ...] = MITES, a: float = 0.01, b: float = 0.01, c: float = 0.01) -> LogJoint:
    """Negative binomial, `x! P(x) = Gamma(r + x) / Gamma(r) prob^x (1 - prob)^r`, priors Gamma(a, b) and Beta(c, c).

    In (log r, logit prob), so the Jacobian `r prob (1 - prob)` is part of it.
    """
    n, total = sum(leaves), sum(x * many for x, many in enumerate(leaves))
    more = [sum(leaves[j + 1 :]) for j in range(len(leaves) - 1)]  # leaves with more than j mites
    factorials = sum(many * math.lgamma(x + 1) for x, many in enumerate(leaves))
    priors = a * math.log(b) - math.lgamma(a) + math.lgamma(2 * c) - 2 * math.lgamma(c)

    def log_joint(p: Tensor) -> Tensor:
        r, yes, no = p[..., 0].exp(), logsigmoid(p[..., 1]), logsigmoid(-p[..., 1])
        # Gamma(r + x) / Gamma(r) = prod_{j < x} (r + j): a difference of log Gammas would lose digits in float32.
        rising = sum(many * (r + j).log() for j, many in enumerate(more))
        likelihood = rising + total * yes + n * r * no - factorials
        return likelihood + a * p[..., 0] - b * r + c * (yes + no) + priors

    return log_joint


def quadrature(log_joint: LogJoint, low: tuple[float, float], high: tuple[float, float], points: int) -> Reference:
    """Two-dimensional posterior by the trapezoidal rule, which converges faster than any power where the tails vanish.

    Args:
        log_joint: of a pair.
        low: lower corner of the box.
        high: upper corner.
        points: in each direction; `error` is the change from half as many.
    """

    def on_grid(many: int) -> tuple[float, Tensor, Tensor]:
        axes = [torch.linspace(a, b, many, dtype=torch.float64) for a, b in zip(low, high, strict=True)]
        grid = torch.cartesian_prod(*axes)  # (many^2, 2)
        cell = math.prod(float(axis[1] - axis[0]) for axis in axes)
        log_mass = log_joint(grid) + math.log(cell)
        return float(log_mass.logsumexp(0)), grid, log_mass.softmax(0)

    log_z, grid, mass = on_grid(points)
    rim = ((grid == torch.tensor(low)) | (grid == torch.tensor(high))).any(1)
    notes = {"mass on the rim": float(mass[rim].sum()), "points": points}
    return _described(grid, mass, log_z, abs(log_z - on_grid(points // 2)[0]), notes)


def laplace(log_joint: LogJoint, dim: int) -> MultivariateNormal:
    """The Gaussian at the mode with the curvature there, by Newton's method from zero."""
    p = torch.zeros(dim, dtype=torch.float64)
    for _ in range(100):
        gradient = jacobian(log_joint, p)
        precision = -hessian(log_joint, p)
        step = torch.linalg.solve(precision, gradient)
        while log_joint(p + step) < log_joint(p):
            step = step / 2
        p = p + step
        if step.norm() < 1e-10:
            return MultivariateNormal(p, precision_matrix=precision)
    raise RuntimeError(f"Newton's method did not settle in 100 steps; the last step was {float(step.norm()):g} long.")


def log_evidence(
    log_joint: LogJoint, around: MultivariateNormal, draws: int, freedom: float = 10.0
) -> tuple[float, float, float, Reference]:
    r"""`log Z = log E_t[p(y, p) / t(p)]`, t the multivariate Student-t with the Gaussian's location and shape.

    Returns:
        log Z and its standard error (delta method) in nats, the effective share of the draws, and the weighted moments.
    """
    dim = len(around.loc)
    chi = Gamma(freedom / 2, 0.5).sample((draws, 1)).double()
    u = torch.randn(draws, dim, dtype=torch.float64)
    p = around.loc + (u * (freedom / chi).sqrt()) @ around.scale_tril.T
    squares = (u.square() * freedom / chi).sum(1)
    constant = math.lgamma((freedom + dim) / 2) - math.lgamma(freedom / 2) - 0.5 * dim * math.log(freedom * math.pi)
    log_t = constant - around.scale_tril.diagonal().log().sum() - (freedom + dim) / 2 * (squares / freedom).log1p()
    log_weights = log_joint(p) - log_t
    log_z = float(log_weights.logsumexp(0)) - math.log(draws)
    share = float(1 / log_weights.softmax(0).square().sum()) / draws
    error = _relative_error(log_weights)
    return log_z, error, share, _described(p, log_weights.softmax(0), log_z, error, {})


def log_evidence_from_draws(
    log_joint: LogJoint, around: MultivariateNormal, p: Float[Tensor, "draws d"]
) -> tuple[float, float]:
    """The other way round, `-log E_posterior[g(p) / p(y, p)]`, g the Gaussian, which must not have the wider tails.

    Returns:
        log Z and its standard error in nats, had the draws been independent. A Gaussian fitted to the same draws would
        bias it by about their number into that of its parameters.
    """
    log_weights = around.log_prob(p) - log_joint(p)
    return math.log(len(p)) - float(log_weights.logsumexp(0)), _relative_error(log_weights)


def nuts(log_joint: LogJoint, start: MultivariateNormal, chains: int, draws: int, warmup: int) -> Tensor:
    """Pyro's no-U-turn sampler, chain by chain, each from a draw of `start` made twice as wide: `(chain, draw, d)`."""
    from pyro.infer import MCMC, NUTS

    found = []
    for _ in range(chains):
        first = start.loc + 2 * (start.sample() - start.loc)
        kernel = NUTS(potential_fn=lambda at: -log_joint(at["p"]), full_mass=True, target_accept_prob=0.8)
        run = MCMC(kernel, num_samples=draws, warmup_steps=warmup, initial_params={"p": first}, disable_progbar=True)
        run.run()
        found.append(run.get_samples()["p"])
    return torch.stack(found)


def logistic_reference(log_joint: LogJoint, chains: int = 4, draws: int = 4000, warmup: int = 500) -> Reference:
    """NUTS for moments, importance sampling for log Z, and how far each is from the other."""
    from pyro.ops.stats import effective_sample_size, split_gelman_rubin

    torch.manual_seed(0)
    gaussian = laplace(log_joint, 22)
    log_z, error, share, weighted = log_evidence(log_joint, gaussian, 200_000)
    walked = nuts(log_joint, gaussian, chains, draws, warmup)
    flat = walked.flatten(0, 1)  # (chains * draws, d)
    uniform = torch.full((len(flat),), 1 / len(flat), dtype=torch.float64)
    found = _described(flat, uniform, log_z, error, {})
    precision = gaussian.precision_matrix
    backwards, backwards_error = log_evidence_from_draws(log_joint, gaussian, flat)
    notes = {
        "largest split R-hat": float(split_gelman_rubin(walked).max()),
        "smallest effective sample size": float(effective_sample_size(walked).min()),
        "importance sampling, effective share": share,
        "log Z from the NUTS draws": backwards,
        "its standard error": backwards_error,
        "KL of the best diagonal Gaussian, had the posterior been Laplace's": float(
            0.5 * (precision.diagonal().log().sum() - precision.logdet())
        ),
        **{f"weighted draws, {name}": value for name, value in distances(weighted, found).items()},
    }
    return Reference(log_z, error, found.mean, found.sd, found.correlation, notes)


def distances(found: Reference, exact: Reference) -> dict[str, float]:
    """How far moments are off: of means in posterior sd, the smallest and largest ratio of sd, of correlations."""
    mean, sd, correlation = (torch.tensor(x).double() for x in (found.mean, found.sd, found.correlation))
    true_mean, true_sd, truth = (torch.tensor(x).double() for x in (exact.mean, exact.sd, exact.correlation))
    return {
        "largest error of a mean, sd": float(((mean - true_mean) / true_sd).abs().max()),
        "smallest ratio of sd": float((sd / true_sd).min()),
        "largest ratio of sd": float((sd / true_sd).max()),
        "largest error of a correlation": float((correlation - truth).abs().max()),
    }


def moments(p: Float[Tensor, "draws d"]) -> Reference:
    """Of draws; its log Z is not a number."""
    return _described(p.double(), torch.full((len(p),), 1 / len(p), dtype=torch.float64), math.nan, math.nan, {})


def _relative_error(log_weights: Float[Tensor, " draws"]) -> float:
    """Standard error of the logarithm of the mean weight."""
    return math.sqrt(max(0.0, float(log_weights.softmax(0).square().sum()) - 1 / len(log_weights)))


def _described(p: Tensor, mass: Tensor, log_z: float, error: float, notes: dict[str, float]) -> Reference:
    """Moments of weighted points."""
    mean = mass @ p
    off = p - mean
    covariance = (off * mass.unsqueeze(1)).T @ off
    sd = covariance.diagonal().sqrt()
    return Reference(log_z, error, mean.tolist(), sd.tolist(), (covariance / torch.outer(sd, sd)).tolist(), notes)

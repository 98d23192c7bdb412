r"""The semi-implicit posterior whose every quantity is known, and a source of noise that can be played again.

psi = m + A eps,  p | psi ~ N(psi, s^2 I_d)   hence  h(p) = N(m, C),  C = A A^T + s^2 I
prior p ~ N(0, t^2 I_d),  y | p ~ N(H p, r^2 I_n)

ELBO = log Z - KL(h || p(p | y)),  log Z = log N(y; 0, t^2 H H^T + r^2 I)
I = 1/2 log det(I + A A^T / s^2),  L_0 = ELBO - I,  U_1 = ELBO + tr(A A^T) / s^2 - I,  chi^2 = e^{2 I} - 1
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from fedbayes.inference.bounds import lower_bound
from fedbayes.inference.mixing import Pushforward, StandardLike
from fedbayes.inference.semi_implicit import SemiImplicitNormal

MOST = 4_000_000
"""Numbers in a batch of component noise."""


class Bank:
    """A noise source that serves the same numbers in the same order, however they are asked for."""

    def __init__(self, seed, size=1_000_000, dtype=torch.float64):
        self.numbers = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=dtype)
        self.served = 0

    def __call__(self, shape):
        first, self.served = self.served, self.served + math.prod(shape)
        assert self.served <= len(self.numbers), "a larger bank is needed"
        return self.numbers[first : self.served].view(shape)


@dataclass
class LinearGaussian:
    """A case of the module docstring."""

    m: Tensor
    A: Tensor
    H: Tensor
    y: Tensor
    s: float
    t: float
    r: float

    @classmethod
    def make(cls, d=3, e=3, n=5, s=0.25, t=1.5, r=0.7, scale=0.6, seed=0):
        """The reference's cases: its generator, its order of draws."""
        rng = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(*shape, generator=rng, dtype=torch.float64)

        H = normal(n, d)
        y = H @ (t * normal(d)) + r * normal(n)
        mode = cls(y.new_zeros(d), y.new_zeros(d, e), H, y, s, t, r).exact.mean
        return cls(mode + 0.3 * s * normal(d), scale * normal(d, e) / math.sqrt(e), H, y, s, t, r)

    @property
    def spread(self):
        return torch.eye(len(self.m), dtype=self.m.dtype) + self.A @ self.A.T / self.s**2  # C / s^2

    @property
    def q(self):
        return MultivariateNormal(self.m, self.s**2 * self.spread)

    @property
    def precision(self):
        """Lambda, of p(p | y)."""
        return self.H.T @ self.H / self.r**2 + torch.eye(len(self.m), dtype=self.m.dtype) / self.t**2

    @property
    def exact(self):
        """p(p | y)."""
        mean = torch.linalg.solve(self.precision, self.H.T @ self.y) / self.r**2
        return MultivariateNormal(mean, precision_matrix=self.precision)

    @property
    def log_evidence(self):
        covariance = self.t**2 * self.H @ self.H.T + self.r**2 * torch.eye(len(self.y), dtype=self.y.dtype)
        return float(MultivariateNormal(torch.zeros_like(self.y), covariance).log_prob(self.y))

    @property
    def elbo(self):
        return self.log_evidence - float(kl_divergence(self.q, self.exact))

    @property
    def information(self):
        return float(0.5 * torch.logdet(self.spread))

    @property
    def chi2(self):
        return float(torch.det(self.spread)) - 1

    @property
    def upper_1(self):
        return self.elbo + float((self.A**2).sum()) / self.s**2 - self.information

    def log_joint(self, p):
        likelihood = Normal(p @ self.H.T, self.r).log_prob(self.y).sum(-1)
        return likelihood + Normal(0.0, self.t).log_prob(p).sum(-1)

    def control(self, p):
        """`log p(y, p) - log h(p) - ELBO`: mean zero under h, and most of the noise of a bound."""
        return self.log_joint(p) - self.q.log_prob(p) - self.elbo

    def mixing(self, noise=None):
        return Pushforward(lambda eps: self.m + eps @ self.A.T, self.A.shape[1], (), noise or StandardLike(self.A))

    def posterior(self, num_extra, noise=None, **options):
        scale = torch.as_tensor(self.s, dtype=self.m.dtype)
        return SemiImplicitNormal(self.mixing(noise), scale, num_extra, noise=noise, **options)

    def estimate(self, posterior, draws, bound=lower_bound):
        """A bound and its standard error, with the control variate."""
        most = max(1, MOST // ((posterior.num_extra + 1) * len(self.m)))
        terms = []
        with torch.no_grad():
            for first in range(0, draws, most):
                terms.append(bound(posterior, lambda p: self.log_joint(p) - self.control(p), min(most, draws - first)))
        found = torch.cat(terms)
        return float(found.mean()), float(found.std() / math.sqrt(draws))


def gaussian_reverse_of_linear(location, factor, scale):
    r"""The true reverse of `psi = location + factor eps`, `p ~ N(psi, scale^2 I)`, as a network for `GaussianReverse`.

    `q(eps | p) = N(V F^T (p - location) / scale^2, V)` with `V = (I + F^T F / scale^2)^-1`; with it the bound is exact.
    """
    m = factor.shape[1]
    eye = torch.eye(m, dtype=factor.dtype, device=factor.device)
    covariance = torch.linalg.inv(eye + factor.T @ factor / scale**2)
    tril = torch.linalg.cholesky(covariance)
    gain = factor @ covariance / scale**2  # (event, m)
    rows, columns = torch.tril_indices(m, m, offset=-1)
    constant = torch.cat([tril.diagonal().log(), tril[rows, columns]])

    def network(p):
        loc = (p - location) @ gain
        return torch.cat([loc, constant.expand(*loc.shape[:-1], -1)], -1)

    return network

r"""pFedBayes's server: the clients' Gaussians become the next prior (Zhang et al., ICML 2022, arXiv 2206.07977).

`mean` averages the copies w_m that clients send, means and rho alike, and moves the global w by a fraction beta:

    w <- (1 - beta) w + beta sum_m (n_m / n) w_m

`product` is Bayes' rule instead: the clients' posteriors are multiplied, and the first prior p_0 counts once. In the
first round, when it is everybody's prior, in precisions Lambda and with M clients,

    Lambda = sum_m Lambda_m - (M - 1) Lambda_0,   mu = Lambda^-1 (sum_m Lambda_m mu_m - (M - 1) Lambda_0 mu_0)

Later w has seen the images already. So the server remembers the factor t_m that each client has contributed, sends it
`p_m = w / t_m` as its prior, from which it finds q_m, and updates (Ashman et al. 2022, arXiv 2202.12275)

    t_m <- t_m^(1 - beta) (q_m / p_m)^beta,   w <- p_0 prod_m t_m

There are no weights n_m: precisions know how many images they rest on. On a linear-Gaussian model, with beta = 1 and
the clients' zeta = 1, w is the posterior of the pooled images of all clients that were ever sampled; with another zeta
their likelihood counts 1 / zeta times. Other models' factors may leave w, or a prior, less precise than p_0, even
negatively so: there p_0's precision is taken (`mean_field.at_least`), for what is sent and not in the factors, so that
a p_m which had to be raised counts for no image. Where a round's training is short, M clients that each go a little way
together go M times as far, so beta is better near 1 / M; the fixed point is the same. The paper has `mean` alone.
"""

from collections.abc import Mapping, Sequence
from typing import final

import numpy as np
import torch
from torch import Tensor

from fedbayes.arrays import Arrays, under
from fedbayes.comm.messages import ClientUpdate
from fedbayes.errors import require_choice, require_number
from fedbayes.inference.mean_field import PRIOR, RHO, Natural, at_least, diagonal, product, rho_of, std_of
from strategies.base import AbstractStrategy, weighted_mean

FIRST = "first/"  # leads the names of p_0 in a strategy's state


@final
class PFedBayes(AbstractStrategy):
    """Combines Gaussians over weights; a weight's mean has its name, and rho that plus `.rho`.

    Where `beta` is None it is 1 for `aggregate="mean"`, and 1 / (number of replies) for `"product"`.
    """

    def __init__(self, aggregate: str, beta: float | None = None) -> None:
        super().__init__()
        self.is_product = require_choice("method.strategy.aggregate", aggregate, ("mean", "product")) == "product"
        self.beta = None if beta is None else require_number("method.strategy.beta", beta, 0, 1, open_low=True)
        self.first: Arrays = {}

    def outgoing(self, server_round: int, partition: int) -> Arrays:  # noqa: ARG002
        """Return w, and beside it the prior of a client that has contributed to it; the first w is p_0."""
        if self.is_product and not self.first:
            self.first = dict(self.shared)
        prior = {PRIOR + name: array for name, array in self._prior(partition).items()}
        return {**self.shared, **prior} if prior else self.shared  # the same object for all shares its bytes

    def state(self) -> Arrays:
        """Return p_0, and precision and shift of each client's factors, `(2, ...)`, as `seen` has them."""
        return {FIRST + name: array for name, array in self.first.items()} | super().state()

    def restore(self, state: Arrays) -> None:
        """Take back what `state` returned."""
        self.first = under(FIRST, state)
        super().restore({name: array for name, array in state.items() if not name.startswith(FIRST)})

    def aggregate(self, updates: Sequence[ClientUpdate]) -> None:
        """Compute the next prior by the formulas above; parameters that belong to no Gaussian are averaged."""
        mean = weighted_mean(updates)
        if self.is_product:
            self.shared = {**mean, **self._posterior(updates)}
        elif self.beta is None:
            self.shared = mean
        else:
            self.shared = {
                name: np.asarray((1 - self.beta) * self.shared[name].astype(np.float64) + self.beta * new, new.dtype)
                for name, new in mean.items()
            }

    def _posterior(self, updates: Sequence[ClientUpdate]) -> Arrays:
        """Return the product of the first prior and all clients' factors."""
        names = [name for name in self.shared if name + RHO in self.shared]
        beta = 1 / len(updates) if self.beta is None else self.beta
        for update in updates:
            old, prior, new = self._factors(update.partition), self.shared | self._prior(update.partition), {}
            for name in names:
                step = _natural(update.arrays, name).over(_natural(prior, name)).power(beta)
                factor = product([old[name].power(1 - beta), step]) if name in old else step
                new[name] = np.stack([factor.precision, factor.shift])
            self.seen[update.partition] = new
        factors = [self._factors(partition) for partition in sorted(self.seen)]
        return self._arrays(
            {name: product([_natural(self.first, name), *(factor[name] for factor in factors)]) for name in names}
        )

    def _factors(self, partition: int) -> dict[str, Natural]:
        """Return t_m by weight; empty for a client that has contributed nothing."""
        return {name: Natural(*torch.from_numpy(pair)) for name, pair in self.seen.get(partition, {}).items()}

    def _prior(self, partition: int) -> Arrays:
        """Return w without the client's factor, the prior of a client that has contributed; empty for others."""
        factors = self._factors(partition)
        return self._arrays({name: _natural(self.shared, name).over(factor) for name, factor in factors.items()})

    def _arrays(self, gaussians: Mapping[str, Natural]) -> Arrays:
        """Return Gaussians as they are sent, nowhere less precise than the first prior."""
        arrays: Arrays = {}
        for name, gaussian in gaussians.items():
            mean, std = at_least(gaussian, _natural(self.first, name).precision, _double(self.shared, name))
            for key, value in ((name, mean), (name + RHO, rho_of(std))):
                arrays[key] = value.numpy().astype(self.shared[key].dtype)
        return arrays


def _double(arrays: Arrays, name: str) -> Tensor:
    return torch.from_numpy(arrays[name]).double()


def _natural(arrays: Arrays, name: str) -> Natural:
    return diagonal(_double(arrays, name), std_of(_double(arrays, name + RHO)))

r"""pFedBayes's server: the clients' Gaussians become the next prior (Zhang et al., ICML 2022, arXiv 2206.07977).

`mean` averages the copies w_m that clients send, means and rho alike, and moves the global Gaussian w by a share beta:

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
a p_m which had to be raised counts for no image. M clients that each went a little way together go M times as far, so
where a round's training is short, beta is better near 1 / M, which changes how soon w is reached but not which. The
paper has `mean` alone.
"""

from collections.abc import Mapping, Sequence
from typing import final

import numpy as np
import torch
from torch import Tensor

from fedbayes.arrays import Arrays
from fedbayes.comm.messages import ClientUpdate
from fedbayes.errors import require_choice, require_number
from fedbayes.inference.mean_field import PRIOR, RHO, Natural, at_least, diagonal, product, rho_of, std_of
from strategies.base import AbstractStrategy, weighted_mean

FIRST, PRECISION, SHIFT = "first", "precision", "shift"
"""First parts of the names in a strategy's state."""


@final
class PFedBayes(AbstractStrategy):
    """Combines Gaussians over weights; a weight's mean has its name, and rho that plus `.rho`.

    Args:
        aggregate: `mean` or `product`.
        beta: share of the way from the global Gaussian to what the replies make of it; null: all of it for `mean`, and
            one part in the number of replies for `product`.

    Raises:
        ConfigError: if a value is out of range.
    """

    def __init__(self, aggregate: str, beta: float | None = None) -> None:
        super().__init__()
        self.is_product = require_choice("method.strategy.aggregate", aggregate, ("mean", "product")) == "product"
        self.beta = None if beta is None else require_number("method.strategy.beta", beta, 0, 1, open_low=True)
        self.first: Arrays = {}
        self.factors: dict[int, dict[str, Natural]] = {}

    def outgoing(self, server_round: int, partition: int) -> Arrays:  # noqa: ARG002
        """w, and beside it the prior of a client that has contributed to it; what goes out first is p_0."""
        if self.is_product and not self.first:
            self.first = dict(self.shared)
        prior = {PRIOR + name: array for name, array in self._prior(partition).items()}
        return {**self.shared, **prior} if prior else self.shared  # the same object for all shares its bytes

    def state(self) -> Arrays:
        """p_0 and the factor of each client."""
        kept = {f"{FIRST}/{name}": array for name, array in self.first.items()}
        for partition, factors in self.factors.items():
            for name, factor in factors.items():
                kept[f"{PRECISION}/{partition}/{name}"] = factor.precision.numpy()
                kept[f"{SHIFT}/{partition}/{name}"] = factor.shift.numpy()
        return kept

    def restore(self, state: Arrays) -> None:
        """Take back what `state` gave."""
        self.first, self.factors = {}, {}
        for key, array in state.items():
            what, _, rest = key.partition("/")
            if what == FIRST:
                self.first[rest] = array
            elif what == PRECISION:
                partition, _, name = rest.partition("/")
                shift = state[f"{SHIFT}/{rest}"]
                self.factors.setdefault(int(partition), {})[name] = Natural(*map(torch.from_numpy, (array, shift)))

    def aggregate(self, updates: Sequence[ClientUpdate]) -> None:
        """The next prior, by the formulas above; parameters that are no Gaussian's are averaged."""
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
        """The product of the first prior and all clients' factors."""
        names = [name for name in self.shared if name + RHO in self.shared]
        beta = 1 / len(updates) if self.beta is None else self.beta
        for update in updates:
            known, prior, new = self.factors.get(update.partition, {}), self.shared | self._prior(update.partition), {}
            for name in names:
                step = _natural(update.arrays, name).over(_natural(prior, name)).power(beta)
                new[name] = product([known[name].power(1 - beta), step]) if name in known else step
            self.factors[update.partition] = new
        everyone = sorted(self.factors)
        return self._arrays(
            {name: product([_natural(self.first, name), *(self.factors[m][name] for m in everyone)]) for name in names}
        )

    def _prior(self, partition: int) -> Arrays:
        """What the posterior of a client is held to that has contributed to w: w without that. Others' is w itself."""
        factors = self.factors.get(partition, {})
        return self._arrays({name: _natural(self.shared, name).over(factor) for name, factor in factors.items()})

    def _arrays(self, found: Mapping[str, Natural]) -> Arrays:
        """Gaussians as they are sent, nowhere less precise than the first prior."""
        arrays: Arrays = {}
        for name, one in found.items():
            mean, std = at_least(one, _natural(self.first, name).precision, _double(self.shared, name))
            for key, value in ((name, mean), (name + RHO, rho_of(std))):
                arrays[key] = value.numpy().astype(self.shared[key].dtype)
        return arrays


def _double(arrays: Mapping[str, np.ndarray], name: str) -> Tensor:
    return torch.from_numpy(arrays[name]).double()


def _natural(arrays: Mapping[str, np.ndarray], name: str) -> Natural:
    """A weight's Gaussian by its natural parameters."""
    return diagonal(_double(arrays, name), std_of(_double(arrays, name + RHO)))

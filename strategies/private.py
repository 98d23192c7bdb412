r"""Client-level differential privacy of the average (DP-FedAvg, McMahan et al., ICLR 2018, arXiv 1710.06963).

Of m clients that a round samples, each step u_i - w is clipped to length C over all shared numbers together, then

    w <- w + 1/m sum_i clip(u_i - w, C) + N(0, (z C / m)^2 I),

clients counted alike: the number of its images would tell something of a client. A rejected reply counts as no step; m
stays, since whether a reply can be used may depend on the client's data. Replacing one client by another moves the sum
by 2 C / m at most, so the noise is z / 2 times the sensitivity. The accountant composes rounds in which m of n clients
are sampled without replacement, by Renyi differential privacy (dp_accounting, extra `[dp]`), for neighbouring
federations that differ in one client's data. A failed round releases nothing; that it failed is not covered.

The noise is keyed by the clipped steps too: a round that is computed again after a break has the same noise if its
steps are the same, and other noise if not. Whoever knows the key knows who is sampled, which the accountant takes for
unknown, and with the steps the noise. In a simulation the key is the run's seed; in a Flower App, whose clients know
that, a secret of the server's process (`fedbayes.server.sampling`). NumPy's generator is not cryptographic.

Private are the parameters that the server hands out. Not covered are the run's log (losses, evaluations) and personal
parameters, which a simulation's checkpoints hold; a node hands them out only with `share-personal=true`.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any, final

import numpy as np

from fedbayes.arrays import Arrays, clipped, moved
from fedbayes.comm.messages import ClientUpdate, Kind
from fedbayes.errors import ConfigError, require_number, require_whole
from fedbayes.seeding import numpy_generator
from fedbayes.server.strategy import ServerStrategy
from strategies.base import AbstractWrapper

RANGE = 1e-12, 1e6  # of z and C: the accountant's formulas lose all digits far beyond


@final
class PrivateAveraging(AbstractWrapper):
    """A plain average whose every step is clipped and noisy; a server optimiser may follow, at no cost of privacy.

    `privacy` in `conf/config.yaml` explains the settings; of `clients`, `per_round` are sampled, by a `key` that is the
    run's seed or a secret.

    Raises:
        ConfigError: if a value is out of range, the strategy is no plain average, or dp_accounting is missing.
    """

    def __init__(
        self,
        strategy: ServerStrategy,
        *,
        noise: float,
        clip: float,
        groups: Sequence[str] | None,
        delta: float | None,
        clients: int,
        per_round: int,
        key: int | str,
    ) -> None:
        if not strategy.plain_mean:
            raise ConfigError(
                f"privacy.noise={noise}: {strategy.name} does not only average what clients send; choose a method that "
                "does, with method.strategy.aggregate=mean."
            )
        if groups is not None and (isinstance(groups, str) or not isinstance(groups, Sequence) or not groups):
            raise ConfigError(f"privacy.groups={groups} is not a list of groups; write e.g. [head], or null for all.")
        super().__init__(strategy)
        self.noise = require_number("privacy.noise", noise, *RANGE)
        self.clip = require_number("privacy.clip", clip, *RANGE)
        self.groups = ("",) if groups is None else tuple(f"{name}." for name in groups)
        default = require_whole("clients", clients, 1) ** -1.1
        self.delta = require_number("privacy.delta", default if delta is None else delta, 0, 1, open_low=True)
        if self.delta >= 1 / clients:
            raise ConfigError(
                f"privacy.delta={self.delta} allows to show one of clients={clients}; choose below {1 / clients:.3g}."
            )
        self._key, self._clients, self._per_round, self._round = key, clients, per_round, 0
        self.privacy_spent(1)  # a missing library is reported before the first round

    def privacy_spent(self, rounds: int) -> dict[str, Any]:
        """Return the settings, and epsilon after each round."""
        curve = spent(self.noise, self._clients, self._per_round, rounds, self.delta)
        return {"noise": self.noise, "clip": self.clip, "delta": self.delta, "epsilon": list(curve)}

    def requests(self, server_round: int, partitions: Sequence[int], kind: Kind) -> dict[int, Arrays]:
        """Return the strategy's requests, if noise can hide all that is averaged.

        Raises:
            ConfigError: if nothing is shared, something is whole numbers, or a group is not there.
        """
        requests, shared = self.strategy.requests(server_round, partitions, kind), self.shared
        if kind == "evaluate":
            return requests
        self._round = server_round
        if not shared:
            raise ConfigError("privacy.noise: clients share nothing in this method, so there is nothing to hide.")
        if counted := [name for name, array in shared.items() if array.dtype.kind != "f"]:
            raise ConfigError(f"privacy.noise: {counted[0]} is counted, not learnt, and noise would not hide it.")
        if not all(any(name.startswith(group) for name in shared) for group in self.groups):
            parts = ", ".join(sorted({name.split(".")[0] for name in shared}))
            raise ConfigError(f"privacy.groups: {' '.join(self.groups)} has no shared part; they are {parts}.")
        return requests

    def aggregate(self, updates: Sequence[ClientUpdate]) -> None:
        """Take the mean of clipped steps, and add noise."""
        before, content, limited = self.shared, hashlib.sha256(), []
        for update in updates:
            learnt = {name: array for name, array in update.arrays.items() if name.startswith(self.groups)}
            arrays = {**before, **clipped(before, learnt, self.clip)}
            for array in arrays.values():
                content.update(array.tobytes())
            limited.append(replace(update, arrays=arrays, num_examples=1))
        self.strategy.aggregate(limited)
        rng = numpy_generator(self._key, self._round, "privacy", content.hexdigest())
        noisy = moved(before, self.shared, len(updates) / self._per_round)
        for name, array in noisy.items():
            if name.startswith(self.groups):
                noise = self.noise * self.clip / self._per_round * rng.standard_normal(array.shape)
                noisy[name] = np.asarray(array + noise, dtype=array.dtype)
        self.shared = noisy


@cache
def spent(noise: float, clients: int, per_round: int, rounds: int, delta: float) -> tuple[float, ...]:
    """Return epsilon after each round, for noise z and `per_round` of `clients` sampled without replacement.

    Raises:
        ConfigError: if dp_accounting is not installed.
    """
    try:
        import dp_accounting as dp
        from dp_accounting.rdp import RdpAccountant
    except ImportError as error:
        raise ConfigError("privacy.noise needs an accountant: install fedbayes[dp].") from error
    gaussian = dp.GaussianDpEvent(noise / 2)  # in units of the sensitivity 2 C / m
    event = gaussian if per_round == clients else dp.SampledWithoutReplacementDpEvent(clients, per_round, gaussian)
    accountant = RdpAccountant(neighboring_relation=dp.NeighboringRelation.REPLACE_ONE)
    return tuple(float(accountant.compose(event).get_epsilon(delta)) for _ in range(rounds))

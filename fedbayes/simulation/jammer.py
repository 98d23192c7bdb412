r"""A smart jammer of the clients' uplinks, and the server's policies against it: a repeated game between them.

The clients share G uplinks. A jammer of type k is after something: every group g of clients is worth `v^k_g` to it. It
jams up to `budget` groups in a round. The server chooses which group it invites fewer of, how many clients it invites
beyond what it needs, and how long it waits. With `i_bg` the invitations of a group under the server's action b, as a
multiple of uniform ones, and `s_g` the probability that a reply of the group arrives, the jammer is paid

    M^k[a, b] = 1 - sum_g v^k_g i_bg s_g(a, b) + price(b)          the expected loss of useful update mass, and its cost
    s_g(a, b) = exp(-(2^(rate / wait_b) - 1) / SINR_g(a))           outage of a Rayleigh fading link
    SINR_g(a) = snr / (1 + jnr) where a jams g, else snr

The type `none` is no jammer at all. The jammer knows its type, the server has its prior alone: `simulation.games` has
the strategies of both. Everything is keyed by the seed and the round, so that a resumed run meets the same jammer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import final

import numpy as np

from fedbayes.errors import ConfigError, require_choice, require_number, require_whole
from fedbayes.seeding import numpy_generator
from fedbayes.simulation.attacks import AbstractAttack
from fedbayes.simulation.faults import Fault
from fedbayes.simulation.games import InformedPlayer, UninformedPlayer, require_discount, require_game

TYPES = ("none", "largest", "domain", "class", "bytes")
STRATEGIES = ("smart", "greedy", "random")
POLICIES = ("uniform", "security", "expected")
FORCED = -1e3
"""Payoff of an action that a type cannot take: no jammer jams nothing."""


@final
@dataclass(frozen=True)
class Link:
    """An uplink's budget: bits per second and hertz of a reply in the least time; mean SNR, and JNR, in decibels."""

    rate: float
    snr: float
    jnr: float

    def __post_init__(self) -> None:
        """Check the values."""
        require_number("attack.link.rate", self.rate, 0, open_low=True)
        for key in ("snr", "jnr"):
            require_number(f"attack.link.{key}", getattr(self, key), -200, 200)

    def success(self, *, jammed: bool, wait: float) -> float:
        """Return the probability that a reply arrives within `wait` times the least time."""
        sinr = 10 ** (self.snr / 10) / (1 + jammed * 10 ** (self.jnr / 10))
        return float(np.exp(-(2 ** (self.rate / wait) - 1) / sinr))


@final
@dataclass(frozen=True)
class Schedule:
    """An action of the server: the group of which it invites fewer, and multiples of invitations and of time."""

    fewer: int | None
    invite: float
    wait: float


@final
@dataclass(frozen=True)
class PlayedRound:
    """What both sides did in a round; `belief` is an onlooker's in each type after it, `payoff` the jammer's."""

    jammed: tuple[int, ...]
    schedule: Schedule
    belief: np.ndarray
    payoff: float


@final
class Policy:
    """How the server invites clients and waits for them: the group `sampling`.

    Args:
        name: `uniform`; `security`, the server's security strategy; `expected`, where it cannot see what is jammed.
        fewer: invitations of the group that is invited less, as a multiple of uniform ones.
        invite: multiples of the needed clients that the server chooses from; the first is what a uniform server does.
        wait: multiples of the least time that it chooses from; the first is what a uniform server does.
        price: of a further multiple of invitations and of time, in update mass.
    """

    def __init__(
        self,
        *,
        name: str,
        fewer: float = 0.25,
        invite: Sequence[float] = (1.0,),
        wait: Sequence[float] = (1.0,),
        price: float = 0.0,
    ) -> None:
        self.name = require_choice("sampling.name", name, POLICIES)
        self.fewer = require_number("sampling.fewer", fewer, 0, 1)
        self.price = require_number("sampling.price", price, 0)
        for key, multiples in (("invite", invite), ("wait", wait)):
            if not isinstance(multiples, Sequence) or not multiples:
                raise ConfigError(f"sampling.{key}={multiples} is no list of multiples; write e.g. [1.0].")
            for multiple in multiples:
                require_number(f"sampling.{key}", multiple, 1)
        self.schedules = [(float(more), float(longer)) for more in invite for longer in wait]


@final
class Jammer(AbstractAttack):
    """A smart jammer of the clients' uplinks: `attack=jammer`.

    Args:
        seed: of its type, its actions, and the fading of the uplinks.
        prior: by type, its probability; they sum to 1. The server knows it.
        type: of this jammer; None to sample it from the prior.
        strategy: `smart` plays its security strategy, `greedy` what a uniform server suffers most from in a round,
            `random` jams as many groups by lot.
        groups: uplinks; clients are spread over them in blocks of equal size, those with the same main domain together.
        budget: groups that it can jam in a round.
        domain: that the type `domain` is after, by number.
        label: that the type `class` is after, by number.
        link: the budget of an uplink, see `Link`.
        discount: of the game.
        horizon: stages that the programs of both players look ahead.
    """

    def __init__(
        self,
        *,
        seed: int,
        prior: Mapping[str, float],
        type: str | None,
        strategy: str,
        groups: int,
        budget: int,
        domain: int,
        label: int,
        link: Mapping[str, float],
        discount: float,
        horizon: int,
    ) -> None:
        if not isinstance(prior, Mapping) or not prior or set(prior) - set(TYPES):
            raise ConfigError(f"attack.prior={prior} must give probabilities of {', '.join(TYPES)}.")
        if not isinstance(link, Mapping) or set(link) != {"rate", "snr", "jnr"}:
            raise ConfigError(f"attack.link={link} must give rate, snr and jnr.")
        if type is not None and not prior.get(type):
            raise ConfigError(f"attack.type={type} must be a type that has a probability in attack.prior.")
        super().__init__(fraction=0.0, seed=seed)  # no client is malicious
        self.prior, self.link = dict(prior), Link(**link)
        self.type = type
        self.strategy = require_choice("attack.strategy", strategy, STRATEGIES)
        self.groups = require_whole("attack.groups", groups, 2)
        self.budget = require_whole("attack.budget", budget, 1, self.groups)
        self.domain, self.label = require_whole("attack.domain", domain, 0), require_whole("attack.label", label, 0)
        self.discount = require_discount(discount)
        self.horizon = require_whole("attack.horizon", horizon, 1)

    def game(self, clients: Sequence[int], domains: np.ndarray, labels: np.ndarray, policy: Policy) -> "UplinkGame":
        """Return the game over the uplinks of a federation.

        Args:
            clients: partitions that train, ascending.
            domains: training images of each of them by domain, `(clients, domains)`.
            labels: training images of each of them by class, `(clients, classes)`.
            policy: of the server.

        Raises:
            ConfigError: if there are more groups than clients, or nobody has what a type is after.
        """
        require_whole("attack.groups", self.groups, 2, len(clients))
        blocks = np.array_split(np.argsort(domains.argmax(1), kind="stable"), self.groups)
        images = domains.sum(1)
        largest = np.where(images >= np.quantile(images, 0.75), images, 0)
        worth = {"none": images, "largest": largest, "bytes": np.ones(len(clients))}
        if "domain" in self.prior:
            worth["domain"] = domains[:, require_whole("attack.domain", self.domain, 0, domains.shape[1] - 1)]
        if "class" in self.prior:
            worth["class"] = labels[:, require_whole("attack.label", self.label, 0, labels.shape[1] - 1)]
        values = []
        for kind in self.prior:
            total = np.array([worth[kind][block].sum() for block in blocks], dtype=np.float64)
            if total.sum() == 0:
                raise ConfigError(f"attack.prior.{kind}: no client has such images; choose another one to be after.")
            values.append(total / total.sum())
        return UplinkGame(self, [[clients[place] for place in block] for block in blocks], np.stack(values), policy)


@final
class UplinkGame:
    """The game of a jammer and a server over the uplinks of a federation, played round by round.

    `groups` are the partitions of each of the G uplinks, and `values` what each is worth to each type, `(K, G)`, rows
    summing to 1; for `none`, to the server. `payoffs` to the jammer are `(K, A, B)`, and `type` is an index of types.
    """

    def __init__(self, jammer: Jammer, groups: Sequence[Sequence[int]], values: np.ndarray, policy: Policy) -> None:
        self.jammer, self.policy, self.types, self.values = jammer, policy, tuple(jammer.prior), values
        self.group_of = {partition: group for group, block in enumerate(groups) for partition in block}
        self._share = np.array([len(block) for block in groups]) / len(self.group_of)
        sizes = range(jammer.budget + 1)
        self.jams = [jam for size in sizes for jam in combinations(range(len(groups)), size)]
        self.schedules = [Schedule(g, *choice) for g in (None, *range(len(groups))) for choice in policy.schedules]
        self.payoffs, prior = require_game(self._payoffs(), list(jammer.prior.values()))
        sampled = int(numpy_generator(jammer.seed, "jammer's type").choice(len(prior), p=prior))
        self.type = sampled if jammer.type is None else self.types.index(jammer.type)
        self._informed = InformedPlayer(self.payoffs, prior, jammer.discount, jammer.horizon)
        self._uninformed = UninformedPlayer(self.payoffs, prior, jammer.discount, jammer.horizon)
        self._played: list[PlayedRound] = []

    def round(self, server_round: int) -> PlayedRound:
        """Return what is played in a round, counted from 1; earlier rounds are played first."""
        while len(self._played) < server_round:
            self._played.append(self._play(len(self._played) + 1))
        return self._played[server_round - 1]

    def invitations(self, server_round: int) -> dict[int, float]:
        """Return how often the server invites each client in a round, as a multiple of uniform invitations."""
        factors = self._factors(self.round(server_round).schedule)
        return {partition: float(factors[group]) for partition, group in self.group_of.items()}

    def fault(self, server_round: int, attempt: int, partition: int) -> Fault | None:
        """Return the loss of a client's reply; None if it arrives."""
        played = self.round(server_round)
        jammed = self.group_of[partition] in played.jammed
        success = self.jammer.link.success(jammed=jammed, wait=played.schedule.wait)
        arrives = numpy_generator(self.jammer.seed, server_round, attempt, partition, "uplink").random() < success
        return None if arrives else Fault("drop")

    def facts(self, server_round: int) -> dict[str, float]:
        """Return what the log says of a round: groups jammed, the jammer's payoff, the belief in each type after it."""
        played = self.round(server_round)
        belief = zip(self.types, played.belief, strict=True)
        counts = {"jammed_groups": len(played.jammed), "jammer_payoff": played.payoff}
        return counts | {f"belief_{kind}": float(value) for kind, value in belief}

    def _factors(self, schedule: Schedule) -> np.ndarray:
        """Return the invitations of each group, `(G,)`, as multiples of uniform ones."""
        factors = np.ones(len(self._share))
        if schedule.fewer is not None:
            share = self._share[schedule.fewer]
            factors[:] = (1 - self.policy.fewer * share) / (1 - share)
            factors[schedule.fewer] = self.policy.fewer
        return schedule.invite * factors

    def _payoffs(self) -> np.ndarray:
        payoffs = np.empty((len(self.types), len(self.jams), len(self.schedules)))
        link, groups = self.jammer.link, range(len(self._share))
        for (a, jam), (b, schedule) in product(enumerate(self.jams), enumerate(self.schedules)):
            arrives = np.array([link.success(jammed=group in jam, wait=schedule.wait) for group in groups])
            price = self.policy.price * (schedule.invite + schedule.wait - 2)
            payoffs[:, a, b] = 1 - self.values @ (self._factors(schedule) * arrives) + price
        if "none" in self.types:
            payoffs[self.types.index("none"), 1:] = FORCED
        return payoffs

    def _play(self, server_round: int) -> PlayedRound:
        """Play a round, and take what is seen into what both sides know."""
        rng = numpy_generator(self.jammer.seed, server_round, "jammer")
        mixture = self._informed.mixture()  # (K, A): what a smart jammer of each type plays
        if self.jammer.strategy == "smart":
            action = int(rng.choice(len(self.jams), p=mixture[self.type]))
        elif self.types[self.type] == "none":
            action = 0
        elif self.jammer.strategy == "greedy":
            action = int(self.payoffs[self.type, :, 0].argmax())
        else:
            action = int(rng.choice([a for a, jam in enumerate(self.jams) if len(jam) == self.jammer.budget]))
        place = 0
        if self.policy.name != "uniform":
            reply = self._uninformed.mixture()
            place = int(numpy_generator(self.jammer.seed, server_round, "schedule").choice(len(reply), p=reply))
            self._uninformed.observe(reply, action if self.policy.name == "security" else mixture)
        self._informed.observe(mixture, action)
        payoff = float(self.payoffs[self.type, action, place])
        return PlayedRound(self.jams[action], self.schedules[place], self._informed.belief, payoff)

r"""PFPT's server: prompts as sets, matched before they are averaged (Weng et al., NeurIPS 2024, arXiv 2502.19752).

The prompts that M clients send are draws around K summarising prompts phi. Client t activates some of these, each
for one of its prompts, which lies around it:

    a_tk ~ Bernoulli(p_k),   s_tj ~ N(phi_k, sigma^2 I) where s_tj is the prompt for which t activates k

Likelihood is maximised in turns: over a client's matching, given the others', by the Hungarian algorithm, and over phi,
the mean of what is matched to it, in which every client counts alike: where all match what they began with, this is
federated averaging of prompts, unweighted. K is not fixed. In the paper, networks that map phi to p and sigma are
learnt, K begins at one for each prompt received, and what nobody activates is dropped. Here sigma is a number, and p is
integrated out under the prior that lets K grow, the Indian buffet process of mass gamma (Griffiths & Ghahramani 2011),
which leaves every step in closed form. With n other clients at phi_k, whose mean is m,

    log likelihood gained by s at phi_k:   log n / (M - n) - n / (n + 1) |s - m|^2 / (2 sigma^2)
    ... at a summarising prompt of its own:   log gamma / M

The set may grow, but a ViT sees as many prompts as ever: a client is sent the summarising prompts that it activated
(the paper: all of them, or a choice from a pool), or without a part in the last round those that most clients did.
Each block of a ViT with deep prompts has its own set. Heads are averaged, weighted by images.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, final

import numpy as np
from scipy.optimize import linear_sum_assignment

from fedbayes.arrays import Arrays
from fedbayes.comm.messages import ClientUpdate
from fedbayes.errors import ConfigError, require_number, require_whole
from fedbayes.models.prompts.base import BASE as PROMPTS
from strategies.base import SERVER, AbstractStrategy, sendable, weighted_mean

PARTITIONS, ACTIVATED, SET = SERVER + "partitions", SERVER + "activated", SERVER + "set."


@final
class PFPT(AbstractStrategy):
    """Matches the clients' prompts to a set that grows and shrinks, and averages their heads.

    `noise` is sigma, `mass` gamma; all clients are matched anew up to `sweeps` times, until nothing gets likelier. If
    clients share no plain set of prompts, the first message is a ConfigError.
    """

    recomputed = (PROMPTS, SET)  # the order of the set is another one each round

    def __init__(self, *, noise: float, mass: float, sweeps: int) -> None:
        super().__init__()
        self.noise = require_number("method.strategy.noise", noise, 0, open_low=True)
        self.mass = require_number("method.strategy.mass", mass, 0, open_low=True)
        self.sweeps = require_whole("method.strategy.sweeps", sweeps, 0)

    def outgoing(self, server_round: int, partition: int) -> Arrays:  # noqa: ARG002
        """Return the prompts of the set that the client activated, or the common ones."""
        names = sorted(name for name in self.shared if name.startswith("generator."))
        if names != [PROMPTS]:
            raise ConfigError(
                f"PFPT matches {PROMPTS} alone, but clients share {', '.join(names) or 'no prompts'}; use "
                "generator.kind=fixed and leave generator out of method.client.personal."
            )
        outgoing = sendable(self.shared)
        known = self.shared.get(PARTITIONS, np.zeros(0, np.int64)).tolist()
        if partition in known:
            rows = self.shared[ACTIVATED][known.index(partition)]  # (blocks, length)
            outgoing[PROMPTS] = np.stack([self.shared[f"{SET}{block}"][row] for block, row in enumerate(rows)])
        return outgoing

    def aggregate(self, updates: Sequence[ClientUpdate]) -> None:
        """Find the set that explains the clients' prompts; `generator.base` is what most clients activated of it."""
        replies = np.stack([update.arrays[PROMPTS] for update in updates])  # (M, blocks, length, dim)
        blocks = [block.astype(np.float64) for block in replies.swapaxes(0, 1)]
        summaries = [summarise(block, self.noise, self.mass, self.sweeps) for block in blocks]
        common = [prompts[most_activated(activated, replies.shape[2])] for prompts, activated in summaries]
        self.shared = {
            **weighted_mean(updates),
            PROMPTS: np.stack(common).astype(replies.dtype),
            PARTITIONS: np.array([update.partition for update in updates]),
            ACTIVATED: np.stack([summary.activated for summary in summaries], axis=1),
            **{f"{SET}{block}": summary.prompts.astype(replies.dtype) for block, summary in enumerate(summaries)},
        }


@final
class Summary(NamedTuple):
    """Summarising prompts, in the order in which the clients need them, and who activated them."""

    prompts: np.ndarray  # phi, (K, dim)
    activated: np.ndarray  # index into phi of each prompt of each client, (M, length)


def summarise(prompts: np.ndarray, noise: float, mass: float, sweeps: int) -> Summary:
    """Match every client's prompts in turn to those before it, then, `sweeps` times at most, to all others.

    `prompts` are the clients', `(M, length, dim)`, float64; `noise` is sigma, `mass` gamma.
    """
    clients, length, dim = prompts.shape
    labels = np.full((clients, length), -1)
    for t in range(clients):
        labels[t] = match(prompts, labels, t, noise, mass, among=t + 1)
    likelihood = log_likelihood(prompts, labels, noise, mass)
    for _ in range(sweeps):
        for t in range(clients):
            labels[t] = match(prompts, labels, t, noise, mass, among=clients)
        before, likelihood = likelihood, log_likelihood(prompts, labels, noise, mass)
        if likelihood <= before + 1e-9:
            break
    _, first, place = np.unique(labels, return_index=True, return_inverse=True)
    activated = np.argsort(np.argsort(first))[place].reshape(clients, length)
    sums, counts = np.zeros((len(first), dim)), np.zeros(len(first))
    np.add.at(sums, activated, prompts)
    np.add.at(counts, activated, 1)
    return Summary(sums / counts[:, None], activated)


def match(prompts: np.ndarray, labels: np.ndarray, t: int, noise: float, mass: float, among: int) -> np.ndarray:
    """Return the likeliest labels of client t's prompts, `(length,)`, given the others'; new ones where it is alone.

    `labels`, `(M, length)`, has the summarising prompt of each prompt, -1 for clients that are not matched yet;
    `among` is M of the formulas: clients that are matched, t included.
    """
    length = prompts.shape[1]
    is_matched = labels >= 0
    is_matched[t] = False
    known, place, counts = np.unique(labels[is_matched], return_inverse=True, return_counts=True)
    sums = np.zeros((len(known), prompts.shape[2]))
    np.add.at(sums, place, prompts[is_matched])
    squares = np.square(prompts[t][:, None] - sums / counts[:, None]).sum(-1)  # (length, K)
    gains = np.log(counts / (among - counts)) - counts / (counts + 1) * squares / (2 * noise**2)
    alone = np.full((length, length), math.log(mass / among))
    _, columns = linear_sum_assignment(np.concatenate([gains, alone], axis=1), maximize=True)
    fresh = np.arange(length) + (known[-1] + 1 if len(known) else 0)
    matched: np.ndarray = np.concatenate([known, fresh])[columns]
    return matched


def log_likelihood(prompts: np.ndarray, labels: np.ndarray, noise: float, mass: float) -> float:
    r"""Return what the matchings maximise, nats, with phi at its best and without the constants of the Gaussians.

    `sum_k [log gamma + log (M - n_k)! (n_k - 1)! / M! - sum_{s at k} |s - phi_k|^2 / (2 sigma^2)]`
    """
    clients, total = len(prompts), 0.0
    for label in np.unique(labels):
        rows = prompts[labels == label]
        n = len(rows)
        total += math.log(mass) + math.lgamma(clients - n + 1) + math.lgamma(n) - math.lgamma(clients + 1)
        total -= float(np.square(rows - rows.mean(0)).sum()) / (2 * noise**2)
    return total


def most_activated(activated: np.ndarray, length: int) -> np.ndarray:
    """Return the `length` prompts that most clients activated, the earlier of equals, in the order of the set."""
    counts = np.bincount(activated.ravel(), minlength=length)
    return np.sort(np.argsort(-counts, kind="stable")[:length])

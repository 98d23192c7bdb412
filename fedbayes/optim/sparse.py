r"""Blocks that a client trains and sends, and how much they matter (IST: Yao et al., EMNLP 2024, arXiv 2410.11772).

Block b has importance `I_b`, at first 0, and `p_b = sigmoid(I_b)`. In each round a client trains `fraction` of the B
blocks, sampled without replacement with weights p. Beside that, N_c distinct candidate sets `C_j` of blocks, common to
all clients, are sampled with weights `sigmoid(-I_b)`; the response of the blocks in C_j is scaled by `suppression`, and
client i answers its loss `L_ij`. With `r_j = sum_i (n_i / n) exp(-L_ij)`, less its mean over j,

    I_b <- I_b - mu p_b (1 - p_b) sum_j r_j 1[b in C_j]:

a block whose suppression does not hurt loses importance. The paper redraws blocks in each step of one learner; here a
step is a round of a federation. RST, the paper's ablation, samples with equal weights: `candidates=0`.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from fedbayes.arrays import Arrays, block_of
from fedbayes.errors import ConfigError, require_bool, require_choice, require_number, require_whole
from fedbayes.models.adapters import A
from fedbayes.seeding import numpy_generator

IMPORTANCE = "sparse.importance"
"""Name of I in a request, `(blocks,)`."""
FIRST = (A, "weights.down.")
"""Lead the names of first factors."""
LOSS = "suppressed_loss_"
"""Leads the names of the metrics `L_ij`, nats."""


@final
@dataclass(frozen=True)
class BlockChoice:
    """The keys of `sparse`.

    Attributes:
        seed: of the run; selections are keyed by it, so no mask travels and the server knows what to expect.
        fraction: of the blocks that a client trains and sends in a round; a half rounds up, at least one.
        per: `client` for a selection of each client, `round` for one that all share.
        candidates: N_c; 0 for random selections (RST).
        suppressed: fraction of the blocks in a candidate set.
        suppression: what a suppressed block's response is scaled by; the paper's beta.
        rate: mu.
        normalise: divide the rewards r_j by their standard deviation over j.

    Raises:
        ConfigError: if a value is out of range.
    """

    seed: int
    fraction: float
    per: str = "client"
    candidates: int = 0
    suppressed: float = 0.5
    suppression: float = 0.25
    rate: float = 1.0
    normalise: bool = True

    def __post_init__(self) -> None:
        require_number("sparse.fraction", self.fraction, 0, 1, open_low=True)
        require_choice("sparse.per", self.per, ("client", "round"))
        require_whole("sparse.candidates", self.candidates, 0)
        require_number("sparse.suppressed", self.suppressed, 0, 1, open_low=True)
        require_number("sparse.suppression", self.suppression, 0, 1)
        require_number("sparse.rate", self.rate, 0)
        require_bool("sparse.normalise", self.normalise)
        if self.candidates == 1:
            raise ConfigError("sparse.candidates=1 has nothing to compare its loss with; choose at least 2.")

    def selected(
        self, blocks: Sequence[int], importance: np.ndarray, server_round: int, partition: int
    ) -> frozenset[int]:
        """Return the blocks that a client trains in a round."""
        place: tuple[int | str, ...] = (partition,) if self.per == "client" else ("all",)
        rng = numpy_generator(self.seed, server_round, *place, "select")
        return _sample(blocks, importance, size(self.fraction, len(blocks)), rng)

    def suppressed_sets(self, blocks: Sequence[int], importance: np.ndarray, server_round: int) -> list[frozenset[int]]:
        """Return the candidate sets of a round, all different; fewer where there are no more.

        Raises:
            ConfigError: if there is one set at most, whose loss nothing is compared with.
        """
        number = size(self.suppressed, len(blocks))
        most = min(self.candidates, math.comb(len(blocks), number))
        if self.candidates and most < 2:
            raise ConfigError(
                f"sparse.suppressed={self.suppressed} suppresses all of {len(blocks)} blocks, so there is nothing to "
                "compare; lower it, or choose sparse=random."
            )
        rng, sets = numpy_generator(self.seed, server_round, "suppress"), dict[frozenset[int], None]()
        while len(sets) < most:
            sets[_sample(blocks, -importance, number, rng)] = None
        return [*sets]

    def updated(
        self,
        blocks: Sequence[int],
        importance: np.ndarray,
        sets: Sequence[Collection[int]],
        losses: np.ndarray,
        images: np.ndarray,
    ) -> np.ndarray:
        """Return the importance after a round.

        Args:
            blocks: B numbers, ascending.
            importance: before, `(B,)`.
            sets: the candidate sets of the round.
            losses: of each client with each set suppressed, nats, `(clients, candidates)`.
            images: weights of the clients.
        """
        rewards = np.average(np.exp(-losses), axis=0, weights=images)
        rewards -= rewards.mean()
        if self.normalise and (spread := rewards.std()) > 0:
            rewards /= spread
        p = _sigmoid(importance)
        total = np.array([sum(r for r, chosen in zip(rewards, sets, strict=True) if b in chosen) for b in blocks])
        return np.asarray(importance - self.rate * p * (1 - p) * total)


def size(fraction: float, blocks: int) -> int:
    """Return how many of the blocks a fraction is: a half rounds up, at least one."""
    return max(1, int(fraction * blocks + 0.5))


def suppressed(state: Arrays, initial: Arrays, blocks: Collection[int], scale: float) -> Arrays:
    """Return parameters with the response of some blocks scaled: `w_0 + scale (w - w_0)`, w_0 the run's initial ones.

    What stands before a product, A of a change `B A` and the entrance of a bottleneck, stays: the other factor is
    scaled, whose initial value is 0.
    """
    return {
        name: array - np.asarray((1 - scale) * (array - initial[name]), array.dtype)
        if block_of(name) in blocks and not name.startswith(FIRST)
        else array
        for name, array in state.items()
    }


def _sample(blocks: Sequence[int], importance: np.ndarray, number: int, rng: np.random.Generator) -> frozenset[int]:
    """Sample blocks without replacement, with weights `sigmoid(importance)`."""
    p = _sigmoid(importance)
    return frozenset(rng.choice(np.asarray(blocks), number, replace=False, p=p / p.sum()).tolist())


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-x)))

"""An aggregate of steps that no server sees: two parties hold shares of them and open it alone.

In a simulation both parties, and the dealer, run in the server's process: it shows what they compute and what that
costs, and protects nobody. `docs/secure.md` has the trust model.
"""

from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np

from fedbayes.arrays import Arrays
from fedbayes.comm.messages import ClientUpdate
from fedbayes.errors import ConfigError
from fedbayes.secure.aggregates import aggregate, divisor
from fedbayes.secure.arithmetic import COMPARISONS
from fedbayes.secure.party import Party, in_threads
from fedbayes.secure.sharing import FEWEST, SEEDED, VECTOR, Sharing
from fedbayes.secure.stream import SEED, expanded
from fedbayes.server.strategy import ServerStrategy
from strategies.base import AbstractWrapper


@final
class SecureAveraging(AbstractWrapper):
    """Hands the wrapped strategy one reply a round: its parameters moved by the aggregate of all clients' steps.

    Raises:
        ConfigError: if the strategy is no plain average, since others need what each client sends.
    """

    def __init__(self, strategy: ServerStrategy, sharing: Sharing) -> None:
        if not strategy.plain_mean:
            raise ConfigError(
                f"privacy.secure.kind=shares: {strategy.name} does not only average what clients send; choose a method "
                "that does, with method.strategy.aggregate=mean (privacy.secure.aggregate has robust ones)."
            )
        super().__init__(strategy)
        self.sharing = sharing
        self._like: Arrays = {}
        self._costs: list[dict[str, str | int]] = []
        self._chosen = 0

    def expected_reply(self, initial: Arrays) -> Arrays:
        """Return the two shares of a step of all parameters that may be sent.

        Raises:
            ConfigError: if nothing is sent, or it is counted and not learnt.
        """
        self._like = dict(sorted(self.strategy.expected_reply(initial).items()))
        if not self._like:
            raise ConfigError("privacy.secure.kind=shares: clients send nothing in this method; set it to none.")
        if counted := [name for name, array in self._like.items() if array.dtype.kind != "f"]:
            raise ConfigError(f"privacy.secure.kind=shares: {counted[0]} is counted, not learnt; set it to none.")
        self.sharing.require_room(self._size, FEWEST)
        return {VECTOR: np.zeros(self._size, self.sharing.share_ring.dtype), SEEDED: np.zeros(SEED, np.uint8)}

    @property
    def _size(self) -> int:
        """Numbers in a step."""
        return sum(array.size for array in self._like.values())

    def expected_from(self, partition: int, expected: Arrays) -> Arrays:  # noqa: ARG002
        """Return the two shares."""
        return expected

    def rejection_reason(self, update: ClientUpdate) -> str | None:
        """Say why shares cannot be of a ring's elements; a wrong step cannot be seen."""
        ring = self.sharing.share_ring
        if int(update.arrays[VECTOR].max(initial=0)) >= ring.modulus:
            return f"{VECTOR} has an entry of {ring.bits} bits or more"
        return "it claims no images" if update.num_examples < 1 else None

    def aggregate(self, updates: Sequence[ClientUpdate]) -> None:
        """Open the aggregate of the steps, and let the wrapped strategy take it.

        Raises:
            ArithmeticError: if there are so few steps that the aggregate would show one; nothing is opened then.
        """
        if len(updates) < FEWEST:
            raise ArithmeticError(f"{len(updates)} replies are too few to hide a step; {FEWEST} are needed")
        sharing, rule = self.sharing, self.sharing.rule([update.num_examples for update in updates])
        sharing.require_room(self._size, sum(rule.weights))
        held = (
            np.stack([update.arrays[VECTOR] for update in updates]),
            np.stack(
                [expanded(sharing.share_ring, (self._size,), update.arrays[SEEDED].tobytes()) for update in updates]
            ),
        )

        def program(party: Party) -> tuple[np.ndarray, list[int], Any]:
            opened, chosen = aggregate(party, sharing.share_ring, held[party.index], rule, COMPARISONS[sharing.compare])
            return opened, chosen, party.transcript

        opened, chosen, transcript = in_threads(program)[0]
        if not chosen:
            raise ArithmeticError(f"no step is within privacy.secure.bound={sharing.bound:g}")
        if 0 < len(chosen) < FEWEST and rule.name != "krum" and rule.bound is not None:
            raise ArithmeticError(f"{len(chosen)} steps are within the bound, too few to hide one; {FEWEST} are needed")
        self._costs, self._chosen = transcript.rows(), len(chosen)
        step, moved, start = sharing.decode(opened, divisor(rule, chosen)), {}, 0
        for name, like in self._like.items():
            part = step[start : start + like.size].reshape(like.shape)
            moved[name] = np.asarray(self.shared[name].astype(np.float64) + part, dtype=like.dtype)
            start += like.size
        self.strategy.aggregate([ClientUpdate(updates[0].partition, moved, sum(rule.weights), {})])

    def facts(self) -> Mapping[str, float]:
        """Return bits and rounds of the round, and how many steps are in its aggregate."""
        sums = {
            f"secure_{phase}_{measure}": sum(int(row[measure]) for row in self._costs if row["phase"] == phase)
            for phase, measure in (("online", "bits"), ("offline", "bits"), ("online", "rounds"))
        }
        return {**self.strategy.facts(), **sums, "secure_steps": self._chosen}

    def secure_costs(self) -> Mapping[str, Any]:
        """Return what `secure.json` says: the settings, bits and rounds of the last round, and a client's upload."""
        ring = self.sharing.share_ring
        return {
            "aggregate": self.sharing.aggregate,
            "compare": self.sharing.compare if self.sharing.judges else None,
            "numbers": self._size,
            "ring_bits": ring.bits,
            "fraction_bits": self.sharing.fraction,
            "upload_bytes": self._size * ring.dtype.itemsize + SEED,
            "clear_upload_bytes": sum(array.nbytes for array in self._like.values()),
            "round": self._costs,
        }

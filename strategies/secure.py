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
from fedbayes.secure.sharing import FEWEST, SEEDED, VECTOR, Sharing, with_step
from fedbayes.secure.stream import SEED, expanded
from fedbayes.secure.transcript import Transcript
from fedbayes.server.strategy import ServerStrategy
from strategies.base import AbstractWrapper
from strategies.robust import allowed


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
        self._transcript, self._chosen = Transcript(), 0

    def expected_reply(self, initial: Arrays) -> Arrays:
        """Return the two shares of a step of all parameters that may be sent.

        Raises:
            ConfigError: if nothing is sent, or it is counted and not learnt.
        """
        form = self.strategy.expected_reply(initial)
        if not form:
            raise ConfigError("privacy.secure.kind=shares: clients send nothing in this method; set it to none.")
        if counted := [name for name, array in form.items() if array.dtype.kind != "f"]:
            raise ConfigError(f"privacy.secure.kind=shares: {counted[0]} is counted, not learnt; set it to none.")
        size = sum(array.size for array in form.values())
        self.sharing.require_room(size, FEWEST)
        return {VECTOR: np.zeros(size, self.sharing.share_ring.dtype), SEEDED: np.zeros(SEED, np.uint8)}

    @property
    def _form(self) -> Arrays:
        """What a client would send in the clear."""
        return self.strategy.expected_reply(self.shared)

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
        sharing, ring, form = self.sharing, self.sharing.share_ring, self._form
        removed = allowed(sharing.malicious_fraction, len(updates))
        rule = sharing.rule([update.num_examples for update in updates], removed)
        size = sum(array.size for array in form.values())
        sharing.require_room(size, sum(rule.weights))
        held = (
            np.stack([update.arrays[VECTOR] for update in updates]),
            np.stack([expanded(ring, (size,), update.arrays[SEEDED].tobytes()) for update in updates]),
        )

        def program(party: Party) -> tuple[np.ndarray, list[int], Transcript]:
            opened, chosen = aggregate(party, ring, held[party.index], rule, COMPARISONS[sharing.compare])
            return opened, chosen, party.transcript

        opened, chosen, self._transcript = in_threads(program)[0]
        self._chosen = len(chosen)
        arrays = with_step(self.shared, form, sharing.decode(opened, divisor(rule, chosen)))
        self.strategy.aggregate([ClientUpdate(updates[0].partition, arrays, sum(rule.weights), {})])

    def facts(self) -> Mapping[str, float]:
        """Return bits and rounds of the round, and how many steps are in its aggregate."""
        online, offline = self._transcript.total("online"), self._transcript.total("offline")
        costs = {"online_bits": online.bits, "offline_bits": offline.bits, "online_rounds": online.rounds}
        renamed = {f"secure_{name}": amount for name, amount in costs.items()}
        return {**self.strategy.facts(), **renamed, "secure_steps": self._chosen}

    def secure_costs(self) -> Mapping[str, Any]:
        """Return what `secure.json` says: the settings, bits and rounds of the last round, and a client's upload."""
        ring, form = self.sharing.share_ring, self._form
        size = sum(array.size for array in form.values())
        return {
            "aggregate": self.sharing.aggregate,
            "compare": self.sharing.compare if self.sharing.judges else None,
            "numbers": size,
            "ring_bits": ring.bits,
            "fraction_bits": self.sharing.fraction,
            "upload_bytes": size * ring.dtype.itemsize + SEED,
            "clear_upload_bytes": sum(array.nbytes for array in form.values()),
            "round": self._transcript.rows(),
        }

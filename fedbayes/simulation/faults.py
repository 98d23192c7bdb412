"""Simulated faults of training clients, on a virtual clock: the same on every engine, sampled by partition.

Each client of a round is healthy or, with the given probabilities, unreachable (`drop`), raises (`error`) or replies
with NaN (`nan`). A fraction of all clients is slow (`straggle`): the reply comes after a delay that is exponential with
mean `delay`. The server waits until `deadline`; no real time passes.
"""

from dataclasses import dataclass
from typing import final

from fedbayes.errors import ConfigError, require_number, require_whole
from fedbayes.seeding import numpy_generator


@final
@dataclass(frozen=True)
class Fault:
    """`drop`, `error`, `nan`, or empty for a healthy client, and virtual seconds until the reply of a slow one."""

    kind: str = ""
    delay: float = 0.0


@final
class Faults:
    """Samples the faults of a run.

    Args:
        seed: of the samples.
        drop: fraction of the clients of a round that cannot be reached.
        error: fraction that raises instead of training.
        nan: fraction that replies with NaN in every parameter.
        straggle: fraction that is slow, of all clients.
        delay: mean delay of a slow client's reply, virtual seconds.
        deadline: virtual seconds that the server waits for replies; null for as long as it takes.

    Raises:
        ConfigError: if a value is out of range, or the fractions of drop, error and nan exceed 1 together.
    """

    def __init__(
        self,
        *,
        seed: int,
        drop: float = 0.0,
        error: float = 0.0,
        nan: float = 0.0,
        straggle: float = 0.0,
        delay: float = 60.0,
        deadline: float | None = 30.0,
    ) -> None:
        self._seed = require_whole("seed", seed, 0)
        fractions = {"drop": drop, "error": error, "nan": nan}
        self._fractions = {kind: require_number(f"faults.{kind}", value, 0, 1) for kind, value in fractions.items()}
        self._straggle = require_number("faults.straggle", straggle, 0, 1)
        self._delay = require_number("faults.delay", delay, 0, open_low=True)
        self.deadline = None if deadline is None else require_number("faults.deadline", deadline, 0)
        if sum(self._fractions.values()) > 1 + 1e-9:
            raise ConfigError(
                f"faults.drop={drop}, faults.error={error} and faults.nan={nan} exceed 1 together; lower them."
            )

    @property
    def any(self) -> bool:
        """Whether any fault can happen."""
        return self._straggle > 0 or any(self._fractions.values())

    def of(self, server_round: int, attempt: int, partition: int) -> Fault:
        """Return what happens to a client; depends on the run's seed and the arguments alone."""
        if not self.any:
            return Fault()
        rng = numpy_generator(self._seed, server_round, partition, f"fault {attempt}")
        place, slow, wait = rng.random(), rng.random(), rng.exponential(self._delay)
        kind = ""
        for name, fraction in self._fractions.items():
            if 0 <= place < fraction:
                kind = name
            place -= fraction
        return Fault(kind, wait if slow < self._straggle else 0.0)

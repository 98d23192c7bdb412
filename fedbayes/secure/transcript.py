"""What protocols cost: bits, bytes and rounds by phase and protocol."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import final


@final
@dataclass
class Cost:
    """What was transmitted, both directions together; bytes count each message filled up to a whole byte.

    A message of a socket has a header of 4 bytes more, and seeds of 32 bytes precede everything.
    """

    bits: int = 0
    bytes: int = 0
    messages: int = 0
    rounds: int = 0

    def add(self, messages: list[int], rounds: int) -> None:
        """Count messages of so many bits."""
        self.bits += sum(messages)
        self.bytes += sum(-(-bits // 8) for bits in messages)
        self.messages += sum(bits > 0 for bits in messages)
        self.rounds += rounds


@final
@dataclass
class Transcript:
    """Costs by (phase, protocol), phase `offline` (dealer to party 1) or `online` (between the parties).

    A protocol that runs inside another is named `outer/inner`.
    """

    costs: dict[tuple[str, str], Cost] = field(default_factory=dict)
    _names: list[str] = field(default_factory=list)

    @contextmanager
    def protocol(self, name: str) -> Iterator[None]:
        """Name what is transmitted meanwhile."""
        self._names.append(name)
        try:
            yield
        finally:
            self._names.pop()

    def count(self, phase: str, messages: list[int], rounds: int = 0) -> None:
        """Count messages of so many bits under the current protocol."""
        self.costs.setdefault((phase, "/".join(self._names)), Cost()).add(messages, rounds)

    def total(self, phase: str, prefix: str = "") -> Cost:
        """Return the cost of a phase, of all protocols whose names begin with a prefix."""
        whole = Cost()
        for (where, name), cost in self.costs.items():
            if where == phase and name.startswith(prefix):
                for measure, amount in asdict(cost).items():
                    setattr(whole, measure, getattr(whole, measure) + amount)
        return whole

    def rows(self) -> list[dict[str, str | int]]:
        """Return a row for each phase and protocol, in the order of their first messages."""
        return [{"phase": phase, "protocol": name, **asdict(cost)} for (phase, name), cost in self.costs.items()]

"""The dealer: correlated randomness for two parties, from seeds, so that little has to be transmitted.

The dealer shares a seed with each party. Party 0 expands all that it needs from its seed. Party 1 expands its part, and
the dealer sends it the *correction*: what cannot be random because it has to fit, such as a product of masks. Requests
depend on shapes alone, never on inputs. They are numbered, and a number is answered once: a mask that serves two values
would reveal their difference.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import count
from multiprocessing.connection import Connection, Listener
from threading import Lock
from typing import Any, ClassVar, final

from fedbayes.errors import RunError
from fedbayes.secure.rings import Elements, Form, pack, size_in_bits, unpack
from fedbayes.secure.stream import SEED, Stream, fresh_seed

Arrays = list[Elements]


@dataclass(frozen=True)
class AbstractCorrelation(ABC):
    """A kind of correlated randomness; the fields of a subclass are whole numbers, texts, and tuples of them."""

    kinds: ClassVar[dict[str, type["AbstractCorrelation"]]] = {}

    def __init_subclass__(cls) -> None:
        AbstractCorrelation.kinds[cls.__name__] = cls

    @abstractmethod
    def samples(self) -> tuple[Sequence[Form], Sequence[Form]]:
        """Return what party 0 and party 1 expand from their seeds."""

    @abstractmethod
    def corrections(self) -> Sequence[Form]:
        """Return what the dealer sends to party 1."""

    @abstractmethod
    def correct(self, first: Arrays, second: Arrays) -> Arrays:
        """Compute the corrections from the samples of both parties."""


def to_json(correlation: AbstractCorrelation) -> bytes:
    """Return a request as bytes."""
    return json.dumps([type(correlation).__name__, asdict(correlation)]).encode()


def from_json(data: bytes) -> AbstractCorrelation:
    """Return the request that `to_json` wrote; only known kinds are made, nothing is unpickled."""
    kind, fields = json.loads(data)
    return AbstractCorrelation.kinds[kind](**{name: _tuples(value) for name, value in fields.items()})


def _tuples(value: Any) -> Any:
    """Return lists as tuples, which JSON does not know."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


class AbstractSource(ABC):
    """A party's end of the dealer."""

    @abstractmethod
    def deal(self, correlation: AbstractCorrelation) -> Arrays:
        """Return the party's samples, and for party 1 the corrections behind them."""


@final
class Seeded(AbstractSource):
    """Samples from the party's seed, corrections from whoever answers.

    Args:
        index: 0 or 1.
        seed: what the party shares with the dealer.
        ask: takes the number of a request and the request; returns the corrections, none for party 0.
    """

    def __init__(self, index: int, seed: bytes, ask: Callable[[int, AbstractCorrelation], Arrays]) -> None:
        self._index, self._seed, self._ask, self._number = index, seed, ask, 0

    def deal(self, correlation: AbstractCorrelation) -> Arrays:
        """Return the party's samples, and for party 1 the corrections behind them."""
        number, self._number = self._number, self._number + 1
        return _expand(self._seed, number, correlation.samples()[self._index]) + self._ask(number, correlation)


@final
class Dealer:
    """Knows both seeds and computes corrections; safe to ask from two threads.

    Args:
        seeds: of party 0 and party 1. From the operating system if None. Seeds of a configuration repeat a run exactly,
            and whoever knows the configuration knows every mask.
    """

    def __init__(self, seeds: tuple[bytes, bytes] | None = None) -> None:
        self.seeds = seeds or (fresh_seed(), fresh_seed())
        self._next = [0, 0]
        self._ahead: dict[int, AbstractCorrelation] = {}
        self._lock = Lock()

    def source(self, index: int) -> AbstractSource:
        """Return a party's end for a thread of this process."""
        return Seeded(index, self.seeds[index], lambda number, correlation: self.answer(index, number, correlation))

    def answer(self, index: int, number: int, correlation: AbstractCorrelation) -> Arrays:
        """Return the corrections of a request; party 0 only announces it.

        Raises:
            RunError: if the party asks out of turn, or for something else than the other party under this number.
        """
        with self._lock:
            if number != self._next[index]:
                raise RunError(
                    f"party {index} asks for request {number} of the dealer, {self._next[index]} is next: "
                    "a mask must not serve twice; begin with new seeds."
                )
            self._next[index] += 1
            if number >= self._next[1 - index]:
                self._ahead[number] = correlation
            elif self._ahead.pop(number) != correlation:
                raise RunError(f"the parties ask for two different things under request {number} of the dealer.")
        if index == 0:
            return []
        first, second = (
            _expand(seed, number, forms) for seed, forms in zip(self.seeds, correlation.samples(), strict=True)
        )
        return correlation.correct(first, second)

    def serve(self, listener: Listener) -> None:
        """Answer both parties, each in a process of its own, until they close their connections.

        Raises:
            RunError: if they ask for different things, or one party connects twice.
        """
        connections = [listener.accept() for _ in range(2)]
        indices = [connection.recv_bytes(1)[0] for connection in connections]
        if sorted(indices) != [0, 1]:
            raise RunError(f"parties {indices} connect to the dealer, which serves one party 0 and one party 1.")
        with ThreadPoolExecutor(2) as threads:
            served = [threads.submit(self._serve, *pair) for pair in zip(indices, connections, strict=True)]
        for future in served:
            future.result()

    def _serve(self, index: int, connection: "Connection[bytes, bytes]") -> None:
        """Answer a party until it closes the connection, or asks for what it must not get."""
        with connection:
            connection.send_bytes(self.seeds[index])
            for number in count():
                try:
                    correlation = from_json(connection.recv_bytes())
                except EOFError:
                    return
                arrays = self.answer(index, number, correlation)
                if index == 1:
                    modules = [module for module, _ in correlation.corrections()]
                    connection.send_bytes(pack(list(zip(modules, arrays, strict=True))))


def remote_source(index: int, connection: "Connection[bytes, bytes]") -> AbstractSource:
    """Return a party's end of a dealer in another process, whose `serve` has the other end of the connection."""

    def ask(_: int, correlation: AbstractCorrelation) -> Arrays:
        forms = correlation.corrections()
        try:
            connection.send_bytes(to_json(correlation))
            data = connection.recv_bytes(-(-size_in_bits(forms) // 8)) if index == 1 else b""
        except (EOFError, OSError) as error:
            raise RunError("the dealer has hung up; see its error.") from error
        return unpack(data, forms) if index == 1 else []

    connection.send_bytes(bytes([index]))
    return Seeded(index, connection.recv_bytes(SEED), ask)


def _expand(seed: bytes, number: int, forms: Sequence[Form]) -> Arrays:
    """Return the samples of a request."""
    stream = Stream(seed, number)
    return [stream.sample(module, shape) for module, shape in forms]

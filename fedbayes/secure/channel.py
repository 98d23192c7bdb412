"""Lines between two parties: queues of two threads, or a connection over loopback with a common key.

A round is one call of `exchange` by both parties. Only bytes cross a line, never Python objects, and a message of no
bytes is not transmitted.
"""

from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Client, Connection, Listener
from queue import SimpleQueue
from typing import final

from fedbayes.errors import RunError

LOOPBACK = "127.0.0.1"


class AbstractChannel(ABC):
    """One party's end of a line."""

    @abstractmethod
    def exchange(self, outgoing: bytes, size: int) -> bytes:
        """Send bytes, and return the `size` bytes that the other party sends in the same round.

        Raises:
            RunError: if the other party has gone.
        """

    @abstractmethod
    def close(self) -> None:
        """End the line; the other party's next `exchange` raises."""


@final
class Paired(AbstractChannel):
    """A line between two threads of a process; `Paired.line()` makes both ends."""

    def __init__(self, inbox: "SimpleQueue[bytes | None]", outbox: "SimpleQueue[bytes | None]") -> None:
        self._inbox, self._outbox = inbox, outbox

    @classmethod
    def line(cls) -> tuple["Paired", "Paired"]:
        """Return the two ends of a new line."""
        a: SimpleQueue[bytes | None] = SimpleQueue()
        b: SimpleQueue[bytes | None] = SimpleQueue()
        return cls(a, b), cls(b, a)

    def exchange(self, outgoing: bytes, size: int) -> bytes:
        """Put bytes into the other thread's queue, and wait for its bytes if there are to be any."""
        if outgoing:
            self._outbox.put(outgoing)
        incoming = self._inbox.get() if size else b""
        if incoming is None:
            raise RunError("the other party has stopped; see its error.")
        return incoming

    def close(self) -> None:
        """Wake the other thread, which may wait for ever otherwise."""
        self._outbox.put(None)


@final
class Connected(AbstractChannel):
    """A line between two processes: a TCP connection whose ends prove that they know a common key (HMAC).

    The key keeps other users of the machine out; it encrypts nothing.
    """

    def __init__(self, connection: "Connection[bytes, bytes]") -> None:
        self._connection = connection
        # Two parties that both write first would wait for each other once the socket's buffers are full.
        self._writer = ThreadPoolExecutor(1)

    @classmethod
    def listen(cls, listener: Listener) -> "Connected":
        """Wait for the other party; `listener` is `Listener((LOOPBACK, 0), authkey=key)`."""
        return cls(listener.accept())

    @classmethod
    def connect(cls, port: int, key: bytes) -> "Connected":
        """Connect to a party that listens at a port of this machine."""
        return cls(Client((LOOPBACK, port), authkey=key))

    def exchange(self, outgoing: bytes, size: int) -> bytes:
        """Write bytes while the other party's bytes are read."""
        try:
            written = self._writer.submit(self._connection.send_bytes, outgoing) if outgoing else None
            incoming = self._connection.recv_bytes(size) if size else b""
            if written:
                written.result()
        except (EOFError, OSError) as error:
            raise RunError(f"the other party has stopped or sends more than {size} bytes; see its error.") from error
        return incoming

    def close(self) -> None:
        """Close the connection."""
        self._writer.shutdown()
        self._connection.close()

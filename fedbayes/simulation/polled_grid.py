"""A view of a Flower grid in another process's hands: replies are fetched as they come, and waiting can be ended.

Flower's own `send_and_receive` looks every 0.1 seconds (3 seconds where the grid is reached over a network) and,
without a timeout, for ever: a run that is interrupted in another thread would never end. And it asks a client that is
still at work on an earlier message again: both replies start from the same context, and whichever comes last wipes out
the personal parameters of the other.
"""

import threading
import time
from collections.abc import Iterable, Sequence
from typing import final

from flwr.app import Message
from flwr.serverapp import Grid

from fedbayes.errors import RunError


@final
class PolledGrid:
    """Looks for replies often while they come, and less often while none do; a client gets one message at a time.

    Once `stop` is set, waiting ends with an error; `longest` is the most seconds between two looks.
    """

    def __init__(self, grid: Grid, stop: threading.Event, longest: float = 0.05) -> None:
        self._grid, self._stop, self._longest = grid, stop, longest
        self._open: dict[str, int] = {}
        """Messages without a reply so far, also late ones of earlier calls: the node at work on each."""

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of the grid's nodes."""
        return self._grid.get_node_ids()

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages and collect the replies, in the order in which they come.

        A client that is late with an earlier reply is asked once that has come, if there is time left. After `timeout`
        seconds late replies are left out.

        Raises:
            RunError: if waiting was ended.
        """
        end = None if timeout is None else time.monotonic() + timeout
        waiting, pause = list(messages), 0.001
        sent: set[str] = set()
        replies: list[Message] = []
        while True:
            busy = set(self._open.values())
            free = [message for message in waiting if message.metadata.dst_node_id not in busy]
            waiting = [message for message in waiting if message.metadata.dst_node_id in busy]
            sent |= self._push(free)
            if not (waiting or sent & self._open.keys()) or (end is not None and time.monotonic() >= end):
                return replies
            arrived = list(self._grid.pull_messages(list(self._open)))
            replies += [reply for reply in arrived if reply.metadata.reply_to_message_id in sent]
            for reply in arrived:
                self._open.pop(reply.metadata.reply_to_message_id, None)
            pause = 0.001 if arrived else min(2 * pause, self._longest)
            if not arrived and self._stop.wait(pause):
                raise RunError("the run was stopped while clients were at work.")

    def _push(self, messages: Sequence[Message]) -> set[str]:
        """Send messages and return the ids of those that the grid accepts; others are not waited for."""
        accepted = set(self._grid.push_messages(messages)) if messages else set()
        nodes = {message.metadata.message_id: message.metadata.dst_node_id for message in messages}
        self._open |= {message_id: node for message_id, node in nodes.items() if message_id in accepted}
        return accepted & nodes.keys()

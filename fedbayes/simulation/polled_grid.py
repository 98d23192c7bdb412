"""A view of a Flower grid in another process's hands: answers are fetched as they come, and waiting can be ended.

Flower's own `send_and_receive` looks every 0.1 seconds (3 seconds where the grid is reached over a network) and,
without a timeout, for ever: a run that is interrupted in another thread would never end. And it asks a client that is
still at work on an earlier message again: both answers start from the same context, and whichever comes last wipes out
what the other kept.
"""

import threading
import time
from collections.abc import Iterable, Sequence
from typing import final

from flwr.app import Message
from flwr.serverapp import Grid

from fedbayes.errors import RunError
from fedbayes.simulation.grid_view import AbstractGridView


@final
class PolledGrid(AbstractGridView):
    """Looks for answers often while they come, and less often while none do; a client gets one message at a time.

    Args:
        grid: whose clients answer elsewhere.
        stop: once set, waiting ends with an error.
        longest: seconds between two looks, at most.
    """

    def __init__(self, grid: Grid, stop: threading.Event, longest: float = 0.05) -> None:
        super().__init__(grid)
        self._stop, self._longest = stop, longest
        self._open: dict[str, int] = {}
        """Messages without an answer so far, also late ones of earlier calls: who is at work on each."""

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages and collect the answers, in the order in which they come.

        A client that is late with an earlier answer is asked once it has given that, if there is time left.

        Args:
            messages: whom they are for stands in them.
            timeout: seconds after which late answers are left out; None waits for all.

        Raises:
            RunError: if waiting was ended.
        """
        end = None if timeout is None else time.monotonic() + timeout
        held = list(messages)
        mine: set[str] = set()
        answers: list[Message] = []
        pause = 0.001
        while True:
            at_work = set(self._open.values())
            free = [message for message in held if message.metadata.dst_node_id not in at_work]
            held = [message for message in held if message.metadata.dst_node_id in at_work]
            mine |= self._push(free)
            if not (held or mine & self._open.keys()) or (end is not None and time.monotonic() >= end):
                return answers
            come = list(self.pull_messages(list(self._open)))
            answers += [answer for answer in come if answer.metadata.reply_to_message_id in mine]
            for answer in come:
                self._open.pop(answer.metadata.reply_to_message_id, None)
            pause = 0.001 if come else min(2 * pause, self._longest)
            if not come and self._stop.wait(pause):
                raise RunError("the run was stopped while clients were at work.")

    def _push(self, messages: Sequence[Message]) -> set[str]:
        """Send messages; those that the grid refuses are not waited for.

        Returns:
            The ids of the others.
        """
        sent = set(self.push_messages(messages)) if messages else set()
        taken = {
            message.metadata.message_id: message.metadata.dst_node_id
            for message in messages
            if message.metadata.message_id in sent
        }
        self._open |= taken
        return set(taken)

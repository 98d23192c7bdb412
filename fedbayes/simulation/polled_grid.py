"""A view of a Flower grid in another process's hands: answers are fetched as they come, and waiting can be ended.

Flower's own `send_and_receive` looks every 0.1 seconds (3 seconds where the grid is reached over a network) and,
without a timeout, for ever: a run that is interrupted in another thread would never end.
"""

import threading
import time
from collections.abc import Iterable
from typing import final

from flwr.app import Message
from flwr.serverapp import Grid

from fedbayes.errors import RunError
from fedbayes.simulation.grid_view import AbstractGridView


@final
class PolledGrid(AbstractGridView):
    """Looks for answers often while they come, and less often while none do.

    Args:
        grid: whose clients answer elsewhere.
        stop: once set, waiting ends with an error.
        longest: seconds between two looks, at most.
    """

    def __init__(self, grid: Grid, stop: threading.Event, longest: float = 0.05) -> None:
        super().__init__(grid)
        self._stop, self._longest = stop, longest

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages and collect the answers, in the order in which they come.

        Args:
            messages: whom they are for stands in them.
            timeout: seconds after which late answers are left out; None waits for all.

        Raises:
            RunError: if waiting was ended.
        """
        waiting = set(self.push_messages(messages))
        end = None if timeout is None else time.monotonic() + timeout
        answers: list[Message] = []
        pause = 0.001
        while waiting and (end is None or time.monotonic() < end):
            come = list(self.pull_messages(waiting))
            answers += come
            waiting -= {answer.metadata.reply_to_message_id for answer in come}
            pause = 0.001 if come else min(2 * pause, self._longest)
            if waiting and self._stop.wait(pause):
                raise RunError("the run was stopped while clients were at work.")
        return answers

"""A view of a Flower grid that holds one round's sample, so that any Flower strategy samples what we sampled.

Flower's strategies draw node ids, which are random, with Python's global generator. Shown only the round's clients and
asked for all of them, they have nothing left to draw.
"""

from collections.abc import Iterable, Mapping
from typing import Any, final

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run


@final
class SampledGrid(Grid):
    """Some of a grid's nodes, in the order of their partitions.

    Args:
        grid: the whole federation.
        partitions: of the nodes in the view, by node id.
    """

    def __init__(self, grid: Grid, partitions: Mapping[int, int]) -> None:
        self._grid = grid
        self._partitions = dict(sorted(partitions.items(), key=lambda item: item[1]))

    def partition_of(self, node: int) -> int:
        """Whose data the node holds."""
        return self._partitions[node]

    def get_node_ids(self) -> Iterable[int]:
        """The sample, ascending by partition."""
        return list(self._partitions)

    def set_run(self, run: Run) -> None:
        """Passed on."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """Passed on."""
        return self._grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Passed on."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Passed on."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Passed on."""
        return self._grid.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], **options: Any) -> Iterable[Message]:
        """Passed on."""
        return self._grid.send_and_receive(messages, **options)

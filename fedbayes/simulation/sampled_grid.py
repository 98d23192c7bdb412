"""A view of a Flower grid that holds one round's sample, so that any Flower strategy samples what we sampled.

Flower's strategies draw node ids, which are random, with Python's global generator. Shown only the round's clients and
asked for all of them, they have nothing left to draw.
"""

from collections.abc import Iterable, Mapping
from typing import final

from flwr.serverapp import Grid

from fedbayes.simulation.grid_view import AbstractGridView


@final
class SampledGrid(AbstractGridView):
    """Some of a grid's nodes, in the order of their partitions.

    Args:
        grid: the whole federation.
        partitions: of the nodes in the view, by node id.
    """

    def __init__(self, grid: Grid, partitions: Mapping[int, int]) -> None:
        super().__init__(grid)
        self._partitions = dict(sorted(partitions.items(), key=lambda item: item[1]))

    def partition_of(self, node: int) -> int:
        """Whose data the node holds."""
        return self._partitions[node]

    def get_node_ids(self) -> Iterable[int]:
        """The sample, ascending by partition."""
        return list(self._partitions)

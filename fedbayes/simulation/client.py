"""What an engine expects of a client object, and how it answers Flower messages through it."""

from collections.abc import Callable, Sequence
from typing import Protocol

from fedbayes.messages import Arrays, ClientRequest, ClientUpdate

QUERY_PERSONAL = "query.personal"
"""Message type that asks a client for what it keeps to itself; only simulations answer it."""


class CohortClient(Protocol):
    """Trains and evaluates cohorts; `clients.base.AbstractClient` is the one ancestor of all of ours."""

    def prepare(self) -> None:
        """Whatever is needed once, before the first round."""
        ...

    def initial(self) -> Arrays:
        """The server's parameters before the first round."""
        ...

    def train(self, requests: Sequence[ClientRequest]) -> list[ClientUpdate]:
        """One answer for each request, in order."""
        ...

    def evaluate(self, requests: Sequence[ClientRequest]) -> list[ClientUpdate]:
        """One answer for each request, in order."""
        ...


ClientFactory = Callable[[], CohortClient]

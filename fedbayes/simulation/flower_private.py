"""Everything that Flower keeps private and fedbayes touches; nothing else here imports from `flwr.supercore`.

Flower 1.41 has no public way to make a grid of one's own: `Message(...)` asks the process for a task identity, a
message's id has no setter, `Grid.run` has a private type, and error codes are private constants. The Simulation Runtime
puts an actor that died back into its pool; Ray restarts it if told so through the resources of a client, which Flower
hands on to `ActorClass.options`.

`tests/simulation/test_flower_private.py` fails loudly if a new Flower moves any of it.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from flwr.app import Error, Message
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.supercore.run import Run as Run  # the type of a grid's run
from flwr.supercore.task_identity import TaskIdentity

FIRST_NODE = 1000
"""The first node id that is ours to give: Flower reserves 0 and 1."""

RESTARTS: dict[str, int | float] = {"max_restarts": -1, "max_task_retries": 1}
"""As a part of Flower's `client_resources`, makes Ray restart dead actors without end.

A message whose actor died is tried once more, which is safe because an answer depends on nothing but message and
state. Without that, messages to an actor that is starting again fail at once, and Flower hands it one after the other.
"""


def claim_identity() -> None:
    """Let this process create messages."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, SUPERLINK_NODE_ID


def require_identity() -> None:
    """Let this process create messages, if it may not yet: it may only read a finished run back."""
    try:
        _ = TaskIdentity.run_id
    except RuntimeError:
        claim_identity()


@contextmanager
def workers_end_with_ray() -> Iterator[None]:
    """Leave it to Ray's shutdown to end workers; of workers that are told to terminate, Ray logs a failed call."""
    from flwr.simulation.ray_transport.ray_actor import BasicActorPool

    terminate = BasicActorPool.terminate_all_actors
    BasicActorPool.terminate_all_actors = lambda self: None  # type: ignore[method-assign]  # noqa: ARG005
    try:
        yield
    finally:
        BasicActorPool.terminate_all_actors = terminate  # type: ignore[method-assign]


def empty_run() -> Run:
    """Return the description of a run that no app was uploaded for."""
    return Run.create_empty(1)


def stamp(message: Message, message_id: str) -> None:
    """Give a message its id, as Flower's own grids do when they send it."""
    message.metadata.__dict__["_message_id"] = message_id


def client_error(reason: str) -> Error:
    """Return the answer of a client that failed."""
    return Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason)

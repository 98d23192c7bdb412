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
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

__all__ = [
    "FIRST_NODE",
    "RESTARTS",
    "Run",
    "claim_identity",
    "client_error",
    "empty_run",
    "require_identity",
    "stamp",
    "workers_end_with_ray",
]

FIRST_NODE = 1000
"""The first node id that is ours to give: Flower reserves 0 and 1."""

RESTARTS: dict[str, int | float] = {"max_restarts": -1, "max_task_retries": 1}
"""As a part of Flower's `client_resources`, makes Ray restart dead actors without end.

A message whose actor died is tried once more, which is safe because an answer depends on nothing but message and
state. Without that, messages to an actor that is starting again fail at once, and Flower hands it one after the other.
"""


def claim_identity(run_id: int) -> None:
    """Make this process one that may create messages; the identity is global to the process."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, run_id, SUPERLINK_NODE_ID


def require_identity() -> None:
    """Claim an identity if this process has none, as one that only reads a finished run back."""
    try:
        _ = TaskIdentity.run_id
    except RuntimeError:
        claim_identity(1)


@contextmanager
def workers_end_with_ray() -> Iterator[None]:
    """Leave it to Ray's shutdown to end workers: of those that are told to terminate Ray says that the call failed."""
    from flwr.simulation.ray_transport.ray_actor import BasicActorPool

    terminate = BasicActorPool.terminate_all_actors
    BasicActorPool.terminate_all_actors = lambda self: None  # type: ignore[method-assign]  # noqa: ARG005
    try:
        yield
    finally:
        BasicActorPool.terminate_all_actors = terminate  # type: ignore[method-assign]


def empty_run(run_id: int) -> Run:
    """The description of a run that no app was uploaded for."""
    return Run.create_empty(run_id)


def stamp(message: Message, message_id: str) -> None:
    """Give a message its id, as Flower's own grids do when they send it."""
    message.metadata.__dict__["_message_id"] = message_id


def client_error(reason: str) -> Error:
    """What a client answers that failed."""
    return Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason)

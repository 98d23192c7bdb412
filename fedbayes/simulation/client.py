"""What an engine expects of a client object, and how cohorts of Flower messages are answered through it.

A client that fails leaves its place in the cohort to a stand-in with as many images. So the others get, to the last
bit, what they would have got beside a healthy client: their bits depend on the shapes of a batch, not on its values.
"""

import logging
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, final

import numpy as np
from flwr.app import Error, Message, MessageType, RecordDict

from fedbayes.arrays import Arrays, non_finite
from fedbayes.comm.messages import (
    ClientRequest,
    ClientUpdate,
    Kind,
    keep_personal,
    read_request,
    take_personal,
    write_partition,
    write_personal,
    write_reply,
)
from fedbayes.data.augment import Augment
from fedbayes.data.federated import FederatedData
from fedbayes.errors import FedbayesError
from fedbayes.inference.class_prior import ClassPriors
from fedbayes.models.prompted import PromptedViT
from fedbayes.simulation.flower_private import client_error

log = logging.getLogger("fedbayes")

PERSONAL = "personal"
QUERY_PERSONAL = f"{MessageType.QUERY}.{PERSONAL}"
"""Message type that asks a client for its personal parameters; only simulations answer it."""
RESTORE = "restore"
QUERY_RESTORE = f"{MessageType.QUERY}.{RESTORE}"
"""Message type that gives a client back its personal parameters of before the run broke off."""


@final
@dataclass(frozen=True, eq=False)
class ClientSetup:
    """What every client class is built from.

    Attributes:
        data: everybody's images; a request says whose to use.
        model: the prompted ViT, whose trainable part is filled anew for each cohort.
        augment: random changes of training images.
        cache_mb: largest size of the cache of tokens, megabytes.
        seed: of the run; all random numbers are keyed by it.
        priors: of the clients' classes.
    """

    data: FederatedData
    model: PromptedViT
    augment: Augment
    cache_mb: float
    seed: int
    priors: ClassPriors


class CohortClient(Protocol):
    """Trains and evaluates cohorts; `clients.base.AbstractClient` is the one ancestor of all of ours."""

    @property
    def data(self) -> FederatedData:
        """All images, and which client has which."""

    def prepare(self) -> None:
        """Do whatever is needed once, before the first round."""

    def initial(self) -> Arrays:
        """Return the server's parameters before the first round."""

    def train(self, requests: Sequence[ClientRequest]) -> list[ClientUpdate]:
        """Return one update a request, in order; a negative partition is a stand-in, see `FederatedData.indices`."""

    def evaluate(self, requests: Sequence[ClientRequest]) -> list[ClientUpdate]:
        """Return predictions for each request, as `train` returns updates."""


class ClientGrid(Protocol):
    """What the round loop needs of a Flower grid."""

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of the nodes that are there."""

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages and return the replies that come in time, in any order."""


ClientFactory = Callable[[], CohortClient]
"""Gives the process's one client object; light to send to another process, where it builds another."""

LIBRARIES = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))
OURS = tuple(str(Path(__file__).resolve().parents[2] / name) for name in ("fedbayes", "strategies", "clients"))
"""Folders of code that is not a user's."""

Work = Callable[[Sequence[ClientRequest]], list[ClientUpdate]]


def answer(
    client: CohortClient,
    kind: str,
    partitions: Sequence[int],
    contents: Sequence[RecordDict],
    states: Sequence[RecordDict],
    *,
    debug: bool = False,
) -> list[RecordDict | Error]:
    """Answer messages of one kind for a cohort of clients: the content of each reply, or why there is none.

    Args:
        client: does the work.
        kind: Flower's message type.
        partitions: the client of each message.
        contents: of the messages.
        states: personal parameters of each client; changed in place where it has trained without an error.
        debug: whether exceptions are raised here instead of becoming a client's answer.
    """
    if kind == MessageType.QUERY:
        return [write_partition(partition) for partition in partitions]
    if kind in (QUERY_PERSONAL, QUERY_RESTORE):
        handle = write_personal if kind == QUERY_PERSONAL else take_personal
        return [handle(state, content) for state, content in zip(states, contents, strict=True)]
    if kind not in (MessageType.TRAIN, MessageType.EVALUATE):
        return [client_error(f"cannot answer messages of type {kind}")] * len(contents)
    task: Kind = "train" if kind == MessageType.TRAIN else "evaluate"
    requests: list[ClientRequest | Exception] = []
    decoded: dict[int, Arrays] = {}
    for content, partition, state in zip(contents, partitions, states, strict=True):
        try:
            request = read_request(content, partition, task, state, decoded)
            requests.append(RuntimeError("simulated fault") if request.fault == "error" else request)
        except Exception as error:
            requests.append(error)
    updates = _updates(client.train if task == "train" else client.evaluate, partitions, requests, debug)
    return [
        client_error(_reason(update)) if isinstance(update, Exception) else _reply(update, request, content, state)
        for update, request, content, state in zip(updates, requests, contents, states, strict=True)
    ]


def _reply(
    update: ClientUpdate, request: ClientRequest | Exception, content: RecordDict, state: RecordDict
) -> RecordDict | Error:
    """Return a client's reply, and store its personal parameters if it has trained."""
    if (name := non_finite(update.personal)) is not None:  # the server never sees them, so it cannot check
        return client_error(f"{name} is not finite")
    assert not isinstance(request, Exception), "only what was asked is answered"
    if request.kind == "train":
        keep_personal(state, update, content)
    if request.fault == "nan":  # simulated
        nan = {n: np.full_like(array, np.nan) for n, array in update.arrays.items() if array.dtype.kind == "f"}
        update = replace(update, arrays={**update.arrays, **nan})
    return write_reply(update)


def _updates(
    work: Work, partitions: Sequence[int], requests: Sequence[ClientRequest | Exception], debug: bool
) -> list[ClientUpdate | Exception]:
    """Return the cohort's updates, with an exception in the place of each client that fails by itself."""
    updates: dict[int, ClientUpdate | Exception] = {i: r for i, r in enumerate(requests) if isinstance(r, Exception)}
    healthy = {i: request for i, request in enumerate(requests) if not isinstance(request, Exception)}
    while healthy:
        neighbour = next(iter(healthy.values()))
        cohort = [healthy.get(i) or replace(neighbour, partition=~p) for i, p in enumerate(partitions)]
        outcome = _attempt(work, cohort)
        if not isinstance(outcome, Exception):
            updates |= {i: outcome[i] for i in healthy}
            break
        if debug:
            raise outcome
        alone = {i: _attempt(work, [request]) for i, request in healthy.items()} if len(cohort) > 1 else {0: outcome}
        failed = {i: error for i, error in alone.items() if isinstance(error, Exception)}
        updates |= failed
        if not failed:
            updates |= {i: update[0] for i, update in alone.items() if not isinstance(update, Exception)}
            log.warning(
                "a cohort of %d clients failed (%s: %s), and each of them succeeds alone; lower simulation.cohort",
                *(len(cohort), type(outcome).__name__, str(outcome).partition("\n")[0]),
            )
        healthy = {i: request for i, request in healthy.items() if i not in updates}
    return [updates[i] for i in range(len(partitions))]


def _attempt(work: Work, requests: Sequence[ClientRequest]) -> list[ClientUpdate] | Exception:
    """Return the updates, or the exception that was raised."""
    try:
        return work(requests)
    except Exception as error:
        return error


def _reason(error: Exception) -> str:
    """Return what an exception was and where it was raised, in one line, and then its traceback."""
    place = None if isinstance(error, FedbayesError) else _place(error)
    line = f"{type(error).__name__}: {error}".partition("\n")[0] + (f" ({place})" if place else "")
    return f"{line}\n{''.join(traceback.format_exception(error))}"


def _place(error: Exception) -> str | None:
    """Return file and line of the innermost frame in a user's code, or else in ours; None if it was never raised."""
    frames = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    for libraries in (LIBRARIES + OURS, LIBRARIES, ()):
        places = [f"{file}, line {line}" for file, line in frames if not file.startswith(libraries)]
        if places:
            return places[-1]
    return None

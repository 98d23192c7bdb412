"""What an engine expects of a client object, and how cohorts of Flower messages are answered through it.

A client that fails leaves its place in the cohort to a stand-in with as many images. So the others get, to the last
bit, what they would have got beside a healthy client: their bits depend on the shapes of a batch, not on its values.
"""

import logging
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, final

import numpy as np
from flwr.app import Error, MessageType, RecordDict

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
from fedbayes.models.prompted import PromptedViT
from fedbayes.simulation.flower_private import client_error

log = logging.getLogger("fedbayes")

PERSONAL = "personal"
QUERY_PERSONAL = f"{MessageType.QUERY}.{PERSONAL}"
"""Message type that asks a client for what it keeps to itself; only simulations answer it."""
RESTORE = "restore"
QUERY_RESTORE = f"{MessageType.QUERY}.{RESTORE}"
"""Message type that gives a client back what it kept before the run broke off."""


@final
@dataclass(frozen=True, eq=False)
class ClientSetup:
    """Images, model and seed of the clients that one object plays; every client class takes it.

    Attributes:
        data: everybody's images; a request says whose to use.
        model: the prompted ViT, whose trainable part is filled anew for each cohort.
        augment: random changes of training images.
        cache_mb: largest size of the cache of tokens, megabytes.
        seed: of the run; all draws are keyed by it.
    """

    data: FederatedData
    model: PromptedViT
    augment: Augment
    cache_mb: float
    seed: int


class CohortClient(Protocol):
    """Trains and evaluates cohorts; `clients.base.AbstractClient` is the one ancestor of all of ours."""

    @property
    def data(self) -> FederatedData:
        """All images, and who holds which."""
        ...

    def prepare(self) -> None:
        """Whatever is needed once, before the first round."""
        ...

    def initial(self) -> Arrays:
        """The server's parameters before the first round."""
        ...

    def train(self, requests: Sequence[ClientRequest]) -> list[ClientUpdate]:
        """One answer for each request, in order; a negative partition is a stand-in, see `FederatedData.indices`."""
        ...

    def evaluate(self, requests: Sequence[ClientRequest]) -> list[ClientUpdate]:
        """One answer for each request, in order; a negative partition is a stand-in."""
        ...


ClientFactory = Callable[[], CohortClient]
"""Gives the process's one client object; light to send to another process, where it builds another."""

Work = Callable[[Sequence[ClientRequest]], list[ClientUpdate]]


def answer(
    client: CohortClient,
    kind: str,
    partitions: Sequence[int],
    contents: Sequence[RecordDict],
    states: Sequence[RecordDict],
) -> list[RecordDict | Error]:
    """What a cohort of clients answers to messages of one kind.

    Args:
        client: does the work.
        kind: Flower's message type.
        partitions: whom each message is for.
        contents: of the messages.
        states: what each client keeps; changed in place where a client has trained and its answer is no error.

    Returns:
        The content of each reply, or why there is none.
    """
    if kind == MessageType.QUERY:
        return [write_partition(partition) for partition in partitions]
    if kind == QUERY_PERSONAL:
        return [write_personal(state, content) for state, content in zip(states, contents, strict=True)]
    if kind == QUERY_RESTORE:
        return [take_personal(state, content) for state, content in zip(states, contents, strict=True)]
    if kind not in (MessageType.TRAIN, MessageType.EVALUATE):
        return [client_error(f"cannot answer messages of type {kind}")] * len(contents)
    requests: list[ClientRequest | Exception] = []
    known: dict[int, Arrays] = {}
    what: Kind = "train" if kind == MessageType.TRAIN else "evaluate"
    for content, partition, state in zip(contents, partitions, states, strict=True):
        try:
            asked = read_request(content, partition, what, state, known)
            requests.append(RuntimeError("simulated fault") if asked.fault == "error" else asked)
        except Exception as error:
            requests.append(error)
    answers: list[RecordDict | Error] = []
    work = client.train if kind == MessageType.TRAIN else client.evaluate
    updates = _isolated(work, partitions, requests)
    for update, request, content, state in zip(updates, requests, contents, states, strict=True):
        # The server never sees personal parameters, so whether they are finite is checked here.
        bad = None if isinstance(update, Exception) else non_finite(update.personal)
        if isinstance(update, Exception):
            answers.append(client_error(_reason(update)))
        elif bad is not None:
            answers.append(client_error(f"{bad} is not finite"))
        else:
            if kind == MessageType.TRAIN:
                keep_personal(state, update, content)
            spoilt = isinstance(request, ClientRequest) and request.fault == "nan"
            answers.append(write_reply(_spoilt(update) if spoilt else update))
    return answers


def _spoilt(update: ClientUpdate) -> ClientUpdate:
    """The same answer with NaN in the place of every floating-point number: a simulated fault."""
    arrays = {
        n: np.full_like(value, np.nan) if value.dtype.kind == "f" else value for n, value in update.arrays.items()
    }
    return replace(update, arrays=arrays)


def _isolated(
    work: Work, partitions: Sequence[int], requests: Sequence[ClientRequest | Exception]
) -> list[ClientUpdate | Exception]:
    """The cohort's updates, with an exception in the place of each client that fails by itself."""
    failed = {i: request for i, request in enumerate(requests) if isinstance(request, Exception)}
    healthy = {i: request for i, request in enumerate(requests) if not isinstance(request, Exception)}
    while healthy:
        neighbour = next(iter(healthy.values()))
        cohort = [
            healthy[i] if i in healthy else replace(neighbour, partition=~partition)
            for i, partition in enumerate(partitions)
        ]
        try:
            together = work(cohort)
            return [failed[i] if i in failed else together[i] for i in range(len(cohort))]
        except Exception as error:
            if len(cohort) == 1:
                return [error]
            alone = {i: _alone(work, request) for i, request in healthy.items()}
            guilty = {i: one for i, one in alone.items() if isinstance(one, Exception)}
            if not guilty:
                log.warning(
                    "a cohort of %d clients failed (%s: %s) although each of them succeeds alone; lower "
                    "simulation.cohort",
                    *(len(cohort), type(error).__name__, str(error).partition("\n")[0]),
                )
                return [failed[i] if i in failed else alone[i] for i in range(len(cohort))]
            failed |= guilty
            healthy = {i: request for i, request in healthy.items() if i not in guilty}
    return [failed[i] for i in range(len(partitions))]


def _alone(work: Work, request: ClientRequest) -> ClientUpdate | Exception:
    try:
        return work([request])[0]
    except Exception as error:
        return error


def _reason(error: Exception) -> str:
    """One line of what it was, then where."""
    return f"{type(error).__name__}: {error}\n{''.join(traceback.format_exception(error))}"

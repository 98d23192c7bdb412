"""A Flower ClientApp over a client object: how clients answer in a process that Flower runs, one at a time."""

import faulthandler
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from flwr.app import Context, Message, MessageType
from flwr.clientapp import ClientApp

from fedbayes.comm.messages import seconds_for
from fedbayes.errors import FedbayesError
from fedbayes.simulation.client import PERSONAL, QUERY_PERSONAL, QUERY_RESTORE, RESTORE, CohortClient, answer
from fedbayes.simulation.flower_private import client_error
from fedbayes.simulation.node import partition_of, shares_personal

STDERR = 2

ClientOf = Callable[[Context], CohortClient]
"""Gives the process's client object for a node's context; light to send to another process."""


def client_app(client_of: ClientOf) -> ClientApp:
    """A ClientApp whose clients are cohorts of one.

    Every question, also the first one for a node's partition, builds the client of the process if there is none: so all
    workers are ready before the first round's clock runs.

    Args:
        client_of: see `ClientOf`. What the node keeps stands in the context, as Flower wants it.
    """
    app = ClientApp()

    def reply(kind: str, message: Message, context: Context) -> Message:
        try:
            partition, client = partition_of(context.node_config), client_of(context)
            with _ended_after(seconds_for(message.content)):
                content = answer(client, kind, [partition], [message.content], [context.state])[0]
        except FedbayesError as error:  # one line for the server; Flower would wrap it
            content = client_error(f"{type(error).__name__}: {error}".removesuffix("."))
        return Message(content, reply_to=message)

    @app.query()
    def query(message: Message, context: Context) -> Message:
        return reply(MessageType.QUERY, message, context)

    @app.query(PERSONAL)
    def personal(message: Message, context: Context) -> Message:
        if not shares_personal(context.node_config):
            return Message(client_error("this node keeps what is personal"), reply_to=message)
        return reply(QUERY_PERSONAL, message, context)

    @app.query(RESTORE)
    def restore(message: Message, context: Context) -> Message:
        return reply(QUERY_RESTORE, message, context)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return reply(MessageType.TRAIN, message, context)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return reply(MessageType.EVALUATE, message, context)

    return app


@contextmanager
def _ended_after(seconds: float | None) -> Iterator[None]:
    """End this process, telling where it hung, if the block takes longer: nobody waits for the answer any more.

    The watch runs in a thread without Python's lock, so that it ends a process that hangs in foreign code, too. Flower
    would join the hung call for ever; Ray starts another process in the place of this one.
    """
    if seconds is not None:
        faulthandler.dump_traceback_later(seconds, exit=True, file=STDERR)
    try:
        yield
    finally:
        if seconds is not None:
            faulthandler.cancel_dump_traceback_later()

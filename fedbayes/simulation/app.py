"""A Flower ClientApp over a client object: how clients answer in a process that Flower runs, one at a time."""

from collections.abc import Callable

from flwr.app import Context, Message, MessageType
from flwr.clientapp import ClientApp

from fedbayes.errors import FedbayesError
from fedbayes.simulation.client import PERSONAL, QUERY_PERSONAL, CohortClient, answer
from fedbayes.simulation.flower_private import client_error
from fedbayes.simulation.node import partition_of, shares_personal

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
            partition = partition_of(context.node_config)
            content = answer(client_of(context), kind, [partition], [message.content], [context.state])[0]
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

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return reply(MessageType.TRAIN, message, context)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return reply(MessageType.EVALUATE, message, context)

    return app

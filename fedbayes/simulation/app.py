"""A Flower ClientApp over a client object: how clients answer in a process that Flower runs, one at a time."""

from collections.abc import Callable

from flwr.app import Context, Message, MessageType
from flwr.clientapp import ClientApp

from fedbayes.simulation.client import PERSONAL, QUERY_PERSONAL, CohortClient, answer

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
        partition = int(context.node_config["partition-id"])
        content = answer(client_of(context), kind, [partition], [message.content], [context.state])[0]
        return Message(content, reply_to=message)

    @app.query()
    def query(message: Message, context: Context) -> Message:
        return reply(MessageType.QUERY, message, context)

    @app.query(PERSONAL)
    def personal(message: Message, context: Context) -> Message:
        return reply(QUERY_PERSONAL, message, context)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return reply(MessageType.TRAIN, message, context)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return reply(MessageType.EVALUATE, message, context)

    return app

"""A Flower ClientApp over a client object: how clients answer in a process that Flower runs, one at a time.

A SuperNode's `--node-config` says its partition. A deployed one also has `data-root`, the folder of its own images:
then it hands out personal parameters only if its owner starts it with `share-personal=true`, whatever the server asks.
"""

import faulthandler
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

from flwr.app import Context, Message, MessageType
from flwr.clientapp import ClientApp

from fedbayes.comm.messages import PARTITION, seconds_for
from fedbayes.errors import ConfigError, FedbayesError
from fedbayes.simulation.client import PERSONAL, QUERY_PERSONAL, QUERY_RESTORE, RESTORE, CohortClient, answer
from fedbayes.simulation.flower_private import client_error

STDERR = 2
PARTITIONS, ROOT, SHARES = "num-partitions", "data-root", "share-personal"
REMEDY = "start the SuperNode with --node-config 'data-root=\"DIR\" partition-id=P num-partitions=CLIENTS'"

ClientOf = Callable[[Context], CohortClient]
"""Gives the process's client object for a node's context; light to send to another process."""


def client_app(client_of: ClientOf) -> ClientApp:
    """Return a ClientApp whose clients are cohorts of one, with their personal parameters in Flower's context.

    Every question, also the first one for a node's partition, builds the client of the process if there is none: so all
    workers are ready before the first round's clock runs.
    """
    app = ClientApp()

    def reply(kind: str, message: Message, context: Context) -> Message:
        if kind == QUERY_PERSONAL and not shares_personal(context.node_config):
            return Message(client_error("this node keeps what is personal"), reply_to=message)
        try:
            partition, client = partition_of(context.node_config), client_of(context)
            with _ended_after(seconds_for(message.content)):
                content = answer(client, kind, [partition], [message.content], [context.state])[0]
        except FedbayesError as error:  # one line for the server; Flower would wrap it
            content = client_error(f"{type(error).__name__}: {error}".removesuffix("."))
        return Message(content, reply_to=message)

    app.query()(partial(reply, MessageType.QUERY))
    app.query(PERSONAL)(partial(reply, QUERY_PERSONAL))
    app.query(RESTORE)(partial(reply, QUERY_RESTORE))
    app.train()(partial(reply, MessageType.TRAIN))
    app.evaluate()(partial(reply, MessageType.EVALUATE))
    return app


def partition_of(node: Mapping[str, object]) -> int:
    """Return the partition of a node, or raise a ConfigError if its configuration does not say."""
    partition = node.get(PARTITION)
    if isinstance(partition, bool) or not isinstance(partition, int) or partition < 0:
        problem = "lacks partition-id" if partition is None else f"has partition-id={partition}, no whole number from 0"
        raise ConfigError(f"a node-config {problem}; {REMEDY}.")
    return partition


def root_of(node: Mapping[str, object], clients: int, *, needed: bool) -> str | None:
    """Return the folder of a node's own images; None for a node with a partition of common ones.

    Args:
        node: the node's configuration.
        clients: partitions of the run.
        needed: whether nodes have their own images in this run (`partition=local_folder`).

    Raises:
        ConfigError: if node and run do not fit each other.
    """
    partition, root, partitions = partition_of(node), node.get(ROOT), node.get(PARTITIONS, clients)
    who = f"the node-config of partition {partition}"
    if partitions != clients or partition >= clients:
        problem = f"says num-partitions={partitions}" if partitions != clients else "counts from 0"
        raise ConfigError(
            f"{who} {problem}, but the run has clients={clients}; set clients to the number of SuperNodes."
        )
    if needed and not root:
        raise ConfigError(f"{who} lacks data-root, which partition=local_folder needs; {REMEDY}.")
    if root and not needed:
        raise ConfigError(
            f"{who} has images of its own (data-root={root}), but the run deals out common ones; set "
            "partition=local_folder data=imagefolder data.root=null data.classes=[...] data.domains=[...]."
        )
    return str(root) if root else None


def shares_personal(node: Mapping[str, object]) -> bool:
    """Whether the node hands out personal parameters: simulated nodes do, others only if told to."""
    return ROOT not in node or node.get(SHARES) is True


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

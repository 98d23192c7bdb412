"""Adapter that makes any message-API strategy of Flower fit the contract of the round loop.

Flower's strategies draw node ids with Python's global generator. Here they see only the clients of the round, as nodes
whose ids are partitions, and are asked for all of them, so nothing is left to draw. Replies reach them in the order of
partitions, so that equal runs give equal bits.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, final

import numpy as np
from flwr.app import ConfigRecord, Message
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedXgbBagging, FedXgbCyclic, QFedAvg, Strategy

from fedbayes.arrays import Arrays
from fedbayes.comm.messages import ARRAYS, CONFIG, ROUND, ClientUpdate, Kind, from_record, to_record, write_reply
from fedbayes.errors import ConfigError
from fedbayes.server.strategy import ServerStrategy
from fedbayes.simulation.flower_private import require_identity

WRAPPED = "strategy"  # attribute under which Flower's wrappers hold another strategy
LOSS = "loss"  # the metric of our clients that Flower's QFedAvg takes as `train_loss`


@final
class FlowerStrategy(ServerStrategy):
    """One of Flower's strategies, wrapped or not.

    Raises:
        ConfigError: if it is made for trees, wraps something else, or relies on clients to follow a setting.
    """

    def __init__(self, strategy: Strategy) -> None:
        self.flower = strategy
        self.shared: Arrays = {}
        self._round, self._messages = 0, dict[int, Message]()  # of the training requests sent last
        for layer in _layers(strategy):
            if isinstance(layer, FedXgbBagging | FedXgbCyclic):
                raise ConfigError(f"method.strategy: {type(layer).__name__} is for trees; choose another strategy.")
            inner = vars(layer).get(WRAPPED)
            if inner is not None and not isinstance(inner, Strategy):
                raise ConfigError(
                    f"method.strategy: {type(layer).__name__} of Flower wraps {type(inner).__name__}, which is not "
                    "Flower's; wrap flwr.serverapp.strategy.FedAvg."
                )

    @property
    def name(self) -> str:
        """Name of Flower's class."""
        return type(self.flower).__name__

    def requests(self, server_round: int, partitions: Sequence[int], kind: Kind) -> dict[int, Arrays]:
        """Return the arrays of the messages that the strategy makes; settings, as FedProx's, are a ConfigError."""
        require_identity()
        configure = self.flower.configure_train if kind == "train" else self.flower.configure_evaluate
        grid = SampledGrid(partitions)
        messages = {
            message.metadata.dst_node_id: message
            for message in configure(server_round, to_record(self.shared), ConfigRecord(), grid)
        }
        if kind == "train":
            self._round, self._messages = server_round, messages
        for message in messages.values():
            if unread := sorted(set(message.content.config_records[CONFIG]) - {ROUND}):
                raise ConfigError(
                    f"method.strategy: {self.name} sends {', '.join(unread)}, which no client here obeys; choose a "
                    "strategy that only combines replies."
                )
        records = {partition: message.content.array_records[ARRAYS] for partition, message in sorted(messages.items())}
        decoded = {key: from_record(record) for key, record in {id(r): r for r in records.values()}.items()}
        return {partition: decoded[id(record)] for partition, record in records.items()}

    def arrays_for(self, server_round: int, partition: int) -> Arrays:  # noqa: ARG002  (the contract's)
        """Return what all clients are sent; Flower's strategies wait for ever for more clients than one."""
        return self.shared

    def aggregate(self, updates: Sequence[ClientUpdate]) -> None:
        """Encode the updates as replies to the strategy's own messages and let it combine them."""
        # Flower refuses replies whose metrics have different names.
        common = set.intersection(*(set(update.metrics) for update in updates))
        replies = []
        for update in updates:
            content = write_reply(update)
            numbers = content.metric_records["metrics"]
            for name in update.metrics.keys() - common:
                del numbers[name]
            if LOSS in common:
                numbers.setdefault("train_loss", numbers[LOSS])
            replies.append(Message(content, reply_to=self._messages[update.partition]))
        record, _ = self.flower.aggregate_train(self._round, replies)
        if record is not None:
            self.shared = from_record(record)

    def rejection_reason(self, update: ClientUpdate) -> str | None:
        """Reject a reply without the training loss that QFedAvg weighs by."""
        for layer in _layers(self.flower):
            if isinstance(layer, QFedAvg) and layer.train_loss_key not in {"train_loss": LOSS, **update.metrics}:
                return f"it lacks the metric {layer.train_loss_key}"
        return None

    def state(self) -> Arrays:
        """Return what the strategy remembers; see `state_of`."""
        return state_of(self.flower)

    def restore(self, state: Arrays) -> None:
        """Take back what `state` returned."""
        restore(self.flower, state)

    def require_sizes(self, trained: int, evaluated: int) -> None:
        """Check that the strategy neither samples a second time nor waits for clients that never come."""
        visible = {"min_train_nodes": trained, "min_available_nodes": min(trained, evaluated)}
        visible["min_evaluate_nodes"] = evaluated
        for layer in _layers(self.flower):
            for name in ("fraction_train", "fraction_evaluate"):
                if (fraction := getattr(layer, name, 1.0)) != 1.0:
                    raise ConfigError(
                        f"method.strategy.{name}={fraction} would sample a second time; leave it at 1.0 and set "
                        "participation or evaluate.participation."
                    )
            too_large = {name: most for name, most in visible.items() if getattr(layer, name, 0) > most}
            if too_large:
                remedy = " ".join(f"+method.strategy.{name}={most}" for name, most in too_large.items())
                raise ConfigError(
                    f"method.strategy: {type(layer).__name__} waits for ever: {' and '.join(too_large)} exceed the "
                    f"{trained} clients of a round or {evaluated} of an evaluation; set {remedy}."
                )


@final
class SampledGrid(Grid):
    """A grid that shows a strategy the clients of a round, as nodes, and can do nothing else."""

    def __init__(self, partitions: Sequence[int]) -> None:
        self._partitions = partitions

    def get_node_ids(self) -> Iterable[int]:
        """Return the partitions of the round, ascending."""
        return list(self._partitions)

    def _unavailable(self, *_: object, **__: object) -> Any:
        raise NotImplementedError("a strategy only sees the ids of nodes; the round loop sends its messages.")

    set_run = create_message = push_messages = pull_messages = send_and_receive = _unavailable
    run = property(_unavailable)


def state_of(strategy: Strategy) -> Arrays:
    """Return all attributes that are arrays, numbers, or mappings or lists of arrays, by name; wrapped ones too."""
    state: Arrays = {}
    for name, value in vars(strategy).items():
        if name == WRAPPED and isinstance(value, Strategy):
            state |= {f"{name}/{key}": array for key, array in state_of(value).items()}
        elif isinstance(value, np.ndarray):
            state[name] = value
        elif isinstance(value, float):  # such as a clipping norm that adapts
            state[f"{name}:number"] = np.asarray(value)
        elif isinstance(value, Mapping) and _are_arrays(value.values()):
            state |= {f"{name}/{key}": array for key, array in value.items()}
        elif isinstance(value, list) and _are_arrays(value):
            state |= {f"{name}[{place:06d}]": array for place, array in enumerate(value)}
    return state


def restore(strategy: Strategy, state: Arrays) -> None:
    """Put back what `state_of` returned for a strategy of the same kind."""
    inner: Arrays = {}
    values: dict[str, Any] = {}
    for name, array in sorted(state.items()):
        attribute, slash, key = name.partition("/")
        if slash and attribute == WRAPPED:
            inner[key] = array
        elif slash:
            values.setdefault(attribute, {})[key] = array
        elif name.endswith(":number"):
            values[name.removesuffix(":number")] = float(array)
        elif name.endswith("]"):
            values.setdefault(name.partition("[")[0], []).append(array)  # in order: states are sorted by name
        else:
            values[name] = array
    vars(strategy).update(values)
    for layer in _layers(strategy)[1:2]:
        restore(layer, inner)


def _layers(strategy: Strategy) -> list[Strategy]:
    """Return a strategy and those that it wraps, outermost first."""
    layers = [strategy]
    while isinstance(inner := vars(layers[-1]).get(WRAPPED), Strategy):
        layers.append(inner)
    return layers


def _are_arrays(values: Iterable[object]) -> bool:
    """Return whether there is at least one value and all are arrays."""
    each = list(values)
    return bool(each) and all(isinstance(value, np.ndarray) for value in each)

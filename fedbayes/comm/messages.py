"""The wire: the only module that knows record keys and how parameters become Flower messages and back.

A request carries one ArrayRecord and one ConfigRecord, a reply one ArrayRecord and one MetricRecord, since Flower's own
strategies and wrappers accept no more. A client's personal parameters stay in its Flower context, in the two last
versions, because a client commits before the server has accepted its reply; each request says which version counts.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, final

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedbayes.arrays import Arrays
from fedbayes.comm.codec import checked, decoded, encoded

Kind = Literal["train", "evaluate"]

ARRAYS, CONFIG, METRICS = "arrays", "config", "metrics"
ROUND, ACCEPTED, SPLIT, WEIGHT = "server-round", "accepted-round", "split", "num-examples"
ADAPT, FAULT, SECONDS = "adapt-steps", "fault", "seconds"
PARTITION, HAS_PERSONAL = "partition-id", "has-personal"
PERSONAL = "personal-round-"
MOST_EXAMPLES = 2**31 - 1


@final
@dataclass(frozen=True, eq=False)
class ClientRequest:
    """What the server asks of one client.

    Attributes:
        server_round: keys the client's random numbers.
        split: the images to evaluate on.
        personal: the personal parameters of the last round that the server accepted; empty if never trained.
        adapt: steps of training before an evaluation; None for the method's number.
        fault: a simulated fault of the client, see `fedbayes.simulation.faults`; empty for none.
    """

    partition: int
    server_round: int
    kind: Kind
    split: str
    arrays: Arrays
    personal: Arrays = field(default_factory=dict)
    adapt: int | None = None
    fault: str = ""


@final
@dataclass(frozen=True, eq=False)
class ClientUpdate:
    """What one client answers, on both sides of the wire.

    Attributes:
        arrays: parameters for the server, or predictions.
        num_examples: images that the answer rests on; its weight in averages.
        personal: the client's personal parameters; they stay with it and are never in the reply.
        has_personal: on the server, whether the client has stored personal parameters with this answer.
        payload: on the server, bytes of the arrays as they came over the wire.
    """

    partition: int
    arrays: Arrays
    num_examples: int
    metrics: dict[str, float]
    personal: Arrays = field(default_factory=dict)
    has_personal: bool = False
    payload: int = 0


def to_record(arrays: Mapping[str, np.ndarray]) -> ArrayRecord:
    """Encode arrays as Flower carries them."""
    return ArrayRecord({name: encoded(np.asarray(value, order="C")) for name, value in arrays.items()})


def from_record(record: ArrayRecord) -> Arrays:
    """Decode a record of our own, in its order."""
    return {name: decoded(array) for name, array in record.items()}


def encode_once(requests: Mapping[int, Arrays]) -> dict[int, ArrayRecord]:
    """Encode the arrays for each partition; clients that are sent the same object share one record."""
    records = {key: to_record(arrays) for key, arrays in {id(a): a for a in requests.values()}.items()}
    return {partition: records[id(arrays)] for partition, arrays in requests.items()}


def write_request(
    record: ArrayRecord,
    server_round: int,
    split: str,
    *,
    accepted: int,
    adapt: int | None = None,
    fault: str = "",
    seconds: float | None = None,
) -> RecordDict:
    """Return the content of a `ClientRequest`.

    `accepted` is the last round in which the server accepted this client's reply, 0 for never; after `seconds` the
    client's process may be ended, see `fedbayes.simulation.app`.
    """
    options = {ADAPT: adapt, FAULT: fault or None, SECONDS: seconds}
    config = {name: value for name, value in options.items() if value is not None}
    return RecordDict(
        {ARRAYS: record, CONFIG: ConfigRecord({ROUND: server_round, ACCEPTED: accepted, SPLIT: split, **config})}
    )


def read_request(
    content: RecordDict, partition: int, kind: Kind, state: RecordDict, known: dict[int, Arrays]
) -> ClientRequest:
    """Decode a request, with the personal parameters in the client's state.

    `known` has arrays that were read before, by the identity of their record: strategies send one to many clients.
    """
    config, record = content[CONFIG], content[ARRAYS]
    if not isinstance(config, ConfigRecord) or not isinstance(record, ArrayRecord):
        raise ValueError(f"request holds {sorted(content)}, expected {ARRAYS} and {CONFIG}")
    personal = state.array_records.get(_version(config.get(ACCEPTED, 0))) if state else None
    if id(record) not in known:
        known[id(record)] = from_record(record)
    return ClientRequest(
        partition=partition,
        server_round=int(config[ROUND]),  # type: ignore[arg-type]
        kind=kind,
        split=str(config.get(SPLIT, "")),
        arrays=known[id(record)],
        personal={} if personal is None else from_record(personal),
        adapt=None if ADAPT not in config else int(config[ADAPT]),  # type: ignore[arg-type]
        fault=str(config.get(FAULT, "")),
    )


def seconds_for(content: RecordDict) -> float | None:
    """Return how long a client may be at work on a request; None for as long as it takes."""
    config = content.get(CONFIG)
    seconds = config.get(SECONDS) if isinstance(config, ConfigRecord) else None
    return None if seconds is None else float(seconds)  # type: ignore[arg-type]


def write_reply(update: ClientUpdate) -> RecordDict:
    """Return the content of a reply; of personal parameters it says only whether there are any."""
    flags = {HAS_PERSONAL: 1} if update.personal else {}
    metrics = MetricRecord({WEIGHT: update.num_examples, **update.metrics, **flags})
    return RecordDict({ARRAYS: to_record(update.arrays), METRICS: metrics})


def keep_personal(state: RecordDict, update: ClientUpdate, request: RecordDict) -> None:
    """Store a client's personal parameters: this round's version beside the accepted one; older ones go."""
    if update.personal:
        config = request.config_records[CONFIG]
        accepted = _version(config.get(ACCEPTED, 0))
        for name in set(state.array_records) - {accepted}:
            del state[name]
        state[_version(config[ROUND])] = to_record(update.personal)


def _version(server_round: object) -> str:
    """Name the personal parameters of a round."""
    return f"{PERSONAL}{server_round}"


def ask_partition() -> RecordDict:
    """Ask a node for its partition."""
    return RecordDict({CONFIG: ConfigRecord()})


def write_partition(partition: int) -> RecordDict:
    """Answer `ask_partition`."""
    return RecordDict({METRICS: MetricRecord({PARTITION: partition})})


def read_partition(content: RecordDict) -> int:
    """Read the answer to `ask_partition`, or raise a ValueError."""
    metrics = content.get(METRICS)
    partition = metrics.get(PARTITION) if isinstance(metrics, MetricRecord) else None
    if not isinstance(partition, int) or partition < 0:
        raise ValueError(f"{PARTITION} is {partition}, expected a whole number from 0")
    return partition


def ask_personal(accepted: int) -> RecordDict:
    """Ask a client for its personal parameters of the round that the server accepted last."""
    return RecordDict({CONFIG: ConfigRecord({ACCEPTED: accepted})})


def write_personal(state: RecordDict, question: RecordDict) -> RecordDict:
    """Answer `ask_personal`; empty if the client stored nothing then."""
    version = _version(question.config_records[CONFIG][ACCEPTED])
    return RecordDict({ARRAYS: state.array_records.get(version, ArrayRecord())})


def read_personal(content: RecordDict) -> Arrays:
    """Read the answer to `ask_personal`, or raise a ValueError."""
    record = content.get(ARRAYS)
    if not isinstance(record, ArrayRecord):
        raise ValueError(f"answer holds {sorted(content)}, expected {ARRAYS}")
    return {name: checked(name, array) for name, array in record.items()}


def give_personal(arrays: Mapping[str, np.ndarray], accepted: int) -> RecordDict:
    """Give a client its personal parameters of the last accepted round back, in a resumed run."""
    return RecordDict({ARRAYS: to_record(arrays), CONFIG: ConfigRecord({ACCEPTED: accepted})})


def take_personal(state: RecordDict, content: RecordDict) -> RecordDict:
    """Store what `give_personal` sent, and answer it."""
    state[_version(content.config_records[CONFIG][ACCEPTED])] = content.array_records[ARRAYS]
    return RecordDict({METRICS: MetricRecord()})


def read_update(partition: int, content: RecordDict) -> ClientUpdate:
    """Decode a reply, or raise a ValueError if a record or the weight is missing, or an array has no numbers."""
    record, numbers = content.get(ARRAYS), content.get(METRICS)  # Flower's views by kind are made anew each time
    if not isinstance(record, ArrayRecord) or not isinstance(numbers, MetricRecord):
        raise ValueError(f"reply holds {sorted(content)}, expected {ARRAYS} and {METRICS}")
    metrics = dict(numbers)
    weight, has_personal = metrics.pop(WEIGHT, None), bool(metrics.pop(HAS_PERSONAL, 0))
    if not isinstance(weight, int) or not 1 <= weight <= MOST_EXAMPLES:
        raise ValueError(f"{WEIGHT} is {weight}, expected a whole number from 1 to {MOST_EXAMPLES}")
    return ClientUpdate(
        partition,
        {name: checked(name, array) for name, array in record.items()},
        weight,
        {name: float(value) for name, value in metrics.items() if isinstance(value, int | float)},
        has_personal=has_personal,
        payload=payload_bytes([content]),
    )


def payload_bytes(contents: Iterable[RecordDict]) -> int:
    """Count the bytes of all arrays as Flower serialises them."""
    records = (record for content in contents for record in content.values() if isinstance(record, ArrayRecord))
    return sum(len(array.data) for record in records for array in record.values())

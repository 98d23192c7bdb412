"""What a run will cost, without running it: bytes from its first messages, time from a few steps of some clients.

Everything is built as for a run. Then one cohort, cut down to a batch per client, trains for two steps and for four
(two models in turn cannot share one), and is evaluated, in this process. With T steps of a cohort in a round, D, V, U
images to hold, validate and test, E validations and F tests,

    train    = rounds x cohorts x (fixed + T step),   step = (t_four - t_two) / 2,   fixed = t_two - 2 step
    evaluate = (E V + F U) x (seconds per image) + (E + F) x cohorts x tuning,   tuning: where a method has it
    setup    = build + D x (seconds per image held)
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, TypeVar, final

import numpy as np
from flwr.app import RecordDict
from omegaconf import DictConfig, open_dict

from fedbayes import build
from fedbayes.arrays import Arrays
from fedbayes.comm.messages import Kind, encode_once, payload_bytes, write_request
from fedbayes.data.federated import FederatedData
from fedbayes.errors import ConfigError, RunError
from fedbayes.parts.clients import client as make_client
from fedbayes.parts.server import partition_sizes
from fedbayes.server.federation import Federation, Replies
from fedbayes.server.sampling import Sampling
from fedbayes.server.strategy import ServerStrategy
from fedbayes.simulation.in_process import InProcessGrid
from fedbayes.tracking.summary import peak_memory_mb

LEFT_OUT = (
    "imports, plots, the report and what strategies compute",
    "test images in rounds that are no best one, where clients keep personal parameters: every evaluation counts them",
    "held-out images, and new clients after steps of their own",
    "what a method sends or answers otherwise after the second round, or to clients that missed one",
    "simulated faults and attacks",
    "other engines' start, workers and parallel clients: all is measured in this process, on one cohort",
)
EPOCHS = (2, 4)
SOME = 32
"""Images of a client that an evaluation is measured on, at most."""

Result = TypeVar("Result")


@final
@dataclass(frozen=True)
class Estimate:
    """What a run will cost.

    Attributes:
        bytes_up: of a round's replies, exact for the first round.
        bytes_down: of the first round's requests, exact.
        bytes_down_later: of the second round's requests, exact, and of all later ones if a method sends no more then.
        rounds: of the run.
        sent: numbers in one client's reply.
        trained: numbers that a client learns.
        memory_mb: largest resident set measured here, with all images, plus the caches of the images left out here.
        emulator_bytes: that each client is sent once, before the first round; 0 where clients have the full ViT.
        setup: seconds.
        train: seconds of all rounds.
        evaluate: seconds of all evaluations.
    """

    bytes_up: int
    bytes_down: int
    bytes_down_later: int
    rounds: int
    sent: int
    trained: int
    memory_mb: float
    emulator_bytes: int
    setup: float
    train: float
    evaluate: float

    @property
    def minutes(self) -> float:
        """Of the whole run."""
        return (self.setup + self.train + self.evaluate) / 60

    def values(self) -> dict[str, Any]:
        """Every field by name, and `minutes`."""
        return {**asdict(self), "minutes": self.minutes}

    def lines(self) -> list[str]:
        """For the reader."""
        up, down = self.bytes_up, self.bytes_down_later
        total = self.bytes_down + (self.rounds - 1) * down
        return [
            f"bytes     {up:,} up and {down:,} down in a round; {up * self.rounds:,} and {total:,} in all",
            f"numbers   {self.trained:,} trained by a client, {self.sent:,} of them sent",
            *([f"emulator  {self.emulator_bytes:,} bytes to each client, once"] if self.emulator_bytes else []),
            f"memory    {self.memory_mb:,.0f} MB (largest measured here, plus caches of the images left out here)",
            f"time      {self.minutes:.1f} minutes (seconds: setup {self.setup:.1f}, train {self.train:.1f}, "
            f"evaluate {self.evaluate:.1f})",
            *(f"left out  {cost}" for cost in LEFT_OUT),
        ]


def estimate(cfg: DictConfig) -> Estimate:
    """Build everything, train a few steps of one cohort, and say what the run would cost.

    Args:
        cfg: the composed configuration.

    Raises:
        FedbayesError: for what a user can mend, as the run would raise it.
    """
    started = time.perf_counter()
    parts = build.assemble(cfg)
    data, model, loop, sampling = parts.data, parts.model, parts.loop, parts.sampling
    if len(data.images) == 0:
        raise ConfigError("dry_run=true needs images, and this configuration leaves them to SuperNodes; set data.")
    cohort = cfg.simulation.get("cohort", 1) or len(data)  # other engines train one client at a time
    cohort_ids = sampling.train(1)[:cohort]
    cut = _cut(data, cohort_ids, cfg.optim.batch_size)
    clients = [
        make_client(_with_epochs(cfg, epochs), cut, model, parts.attack, parts.malicious, parts.tuned)
        for epochs in EPOCHS
    ]
    setup = time.perf_counter() - started
    preparing = [_seconds(client.prepare)[0] for client in clients]
    held, held_here = (_held(federated) for federated in (data, clients[0].data))
    setup += preparing[-1] * held / held_here
    sizes = partition_sizes(cfg, data, parts.attack)
    federations = [
        Federation(InProcessGrid(client, len(data), cohort), len(data), loop.validator, sizes) for client in clients
    ]
    strategy = parts.strategy
    strategy.shared = clients[0].initial()
    seconds = _looking(federations[-1], strategy, cohort_ids, adapt=0)
    tuned = _looking(federations[-1], strategy, cohort_ids, adapt=None) if cfg.optim.finetune_steps else seconds
    training = _train(federations, strategy, sampling, cohort_ids)
    steps = cfg.optim.local_epochs * _steps(cfg, data, cohort_ids)
    cohorts, evaluated = -(-sampling.per_round // cohort), -(-len(sampling.evaluated) // cohort)
    looked_at = sum(len(data.clients[client].validation[:SOME]) for client in cohort_ids)
    validations = -(-cfg.rounds // loop.assessment.every)
    tests = validations if training.keeps_personal else min(2, validations)  # of the last round and of the best
    images = sum(
        validations * len(data.clients[client].validation) + tests * len(data.clients[client].test)
        for client in sampling.evaluated
    )
    tuning = (validations + tests) * max(tuned - seconds, 0.0) * evaluated
    models = 1 if parts.tuned is None else 2
    cache = min((held - held_here) * models * model.entering_bytes / 2**20, models * cfg.simulation.cache_mb)
    return Estimate(
        bytes_up=training.bytes_up,
        bytes_down=training.bytes_down,
        bytes_down_later=training.bytes_down_later,
        rounds=cfg.rounds,
        sent=training.sent,
        trained=sum(int(np.prod(p.shape[1:])) for p in model.trainable().values()),
        memory_mb=peak_memory_mb() + cache,
        emulator_bytes=0 if parts.emulator is None else parts.emulator.emulator.bytes,
        setup=setup,
        train=cfg.rounds * cohorts * (training.fixed + training.step * steps),
        evaluate=images * seconds / max(looked_at, 1) + tuning,
    )


@final
@dataclass(frozen=True)
class _Training:
    """Of one round's training.

    Attributes:
        bytes_up: of all replies.
        bytes_down: of the first round's requests.
        bytes_down_later: of the second round's.
        sent: numbers in one client's reply.
        keeps_personal: whether a client has personal parameters.
        fixed: seconds that a cohort takes whatever it trains.
        step: seconds of a cohort's step.
    """

    bytes_up: int
    bytes_down: int
    bytes_down_later: int
    sent: int
    keeps_personal: bool
    fixed: float
    step: float


def _train(
    federations: Sequence[Federation], strategy: ServerStrategy, sampling: Sampling, cohort_ids: Sequence[int]
) -> _Training:
    """Train a cohort for each number of `EPOCHS`, aggregate once, and look at the second round's requests."""
    times: list[float] = []
    requests = strategy.requests(1, sampling.train(1), "train")
    asked = {client: requests[client] for client in cohort_ids}
    for federation in federations:
        measured = [_seconds(partial(_replies, federation, asked, "train", "train")) for _ in range(2)]
        times.append(min(seconds for seconds, _ in measured))
    updates = measured[-1][1].updates
    if strategy.secure_costs() is None:  # shares of fewer than three clients are never opened
        strategy.aggregate(updates)
    few, many = EPOCHS
    step = max((times[1] - times[0]) / (many - few), 0.1 * times[0] / few)
    return _Training(
        bytes_up=sum(update.payload for update in updates) * sampling.per_round // len(updates),
        bytes_down=_bytes(requests),
        bytes_down_later=_bytes(strategy.requests(2, sampling.train(2), "train")),
        sent=sum(int(np.prod(array.shape)) for array in updates[0].arrays.values()),
        keeps_personal=any(update.has_personal for update in updates),
        fixed=max(times[0] - few * step, 0.0),
        step=step,
    )


def _bytes(requests: Mapping[int, Arrays]) -> int:
    """Return the bytes of requests with these arrays."""
    return payload_bytes(RecordDict({"arrays": record}) for record in encode_once(requests).values())


def _looking(federation: Federation, strategy: ServerStrategy, cohort_ids: Sequence[int], adapt: int | None) -> float:
    """Seconds of a cohort's evaluation after so many steps of its clients' own; None for the method's number."""
    requests = strategy.requests(1, cohort_ids, "evaluate")
    asked = partial(_replies, federation, requests, "evaluate", "validation", adapt)
    return min(_seconds(asked)[0] for _ in range(2))


def _replies(
    federation: Federation, requests: Mapping[int, Arrays], kind: Kind, split: str, adapt: int | None = None
) -> Replies:
    """Ask clients and return the valid replies.

    Raises:
        RunError: if there is none.
    """
    accepted = 0 if kind == "train" else 1
    contents = {
        partition: write_request(record, 1, split, accepted=accepted, adapt=adapt)
        for partition, record in encode_once(requests).items()
    }
    replies = federation.ask(contents, kind, split)
    if not replies.updates:
        raise RunError(f"no client could train or be evaluated: {next(iter(replies.rejected.values())).reason}.")
    return replies


def _with_epochs(cfg: DictConfig, epochs: int) -> DictConfig:
    changed = cfg.copy()
    with open_dict(changed):
        changed.optim.local_epochs = epochs
    return changed


def _cut(data: FederatedData, cohort_ids: Sequence[int], batch_size: int) -> FederatedData:
    """The same federation where some clients hold a batch of images, and the others one."""
    cut = []
    for partition, client in enumerate(data.clients):
        images = len(client.train)
        most = -(-images // -(-images // batch_size)) if partition in cohort_ids else 1
        few = SOME if partition in cohort_ids else 1
        none = np.empty(0, np.int64)
        validation, test = client.validation[:few], client.test[:1]
        cut.append(
            replace(client, train=client.train[:most], validation=validation, test=test, held_out=none, triggered=none)
        )
    return data.with_clients(cut)


def _steps(cfg: DictConfig, data: FederatedData, cohort_ids: Sequence[int]) -> float:
    """Batches in an epoch of a cohort, over those of the same cohort cut down."""
    if cfg.method.client.get("pool", False):
        cut = _cut(data, cohort_ids, cfg.optim.batch_size)
        real, small = (federated.pooled().count_steps(cohort_ids, 1, cfg.optim.batch_size) for federated in (data, cut))
        return float(max(real) / max(small))
    return float(max(data.count_steps(cohort_ids, 1, cfg.optim.batch_size)))


def _held(data: FederatedData) -> int:
    """Images that any client holds."""
    return len(
        np.unique(np.concatenate([[*client.train, *client.validation, *client.test] for client in data.clients]))
    )


def _seconds(work: Callable[[], Result]) -> tuple[float, Result]:
    started = time.perf_counter()
    done = work()
    return time.perf_counter() - started, done

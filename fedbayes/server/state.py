"""What a run has come to between two rounds, and how a checkpoint keeps it."""

import time
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np

from fedbayes.arrays import Arrays, under
from fedbayes.comm.messages import ClientUpdate
from fedbayes.inference.diagnostics import has_collapsed
from fedbayes.inference.thresholds import COLLAPSED, SATURATED
from fedbayes.metrics.evaluation import Evaluation
from fedbayes.storage.checkpoint import Checkpoint

_NEW_CLIENTS = "new-clients-"  # leads the names of evaluations of new clients in a checkpoint
_SNAPSHOT = "best-snapshot/"
_PLAIN = ("best_validation", "best_train", "train", "bytes_up", "bytes_down", "seconds", "images")  # stored as they are


@final
@dataclass(frozen=True, eq=False)
class Snapshot:
    """What clients were evaluated with after a round, to predict with it later.

    Attributes:
        server_round: the round.
        requests: the arrays that each client was sent, by partition; clients with equal ones share the object.
        train: mean training metrics of the round.
        temperature: fitted on its validation images; None where none was asked for.
    """

    server_round: int
    requests: dict[int, Arrays]
    train: dict[str, float]
    temperature: float | None = None

    def stored(self) -> tuple[Arrays, dict[str, Any]]:
        """Return it as arrays and as facts in JSON's types; `restored` takes it back."""
        distinct = {id(arrays): arrays for arrays in self.requests.values()}
        places = {key: str(place) for place, key in enumerate(distinct)}
        arrays = {f"{places[key]}/{name}": array for key, group in distinct.items() for name, array in group.items()}
        requests = {str(partition): places[id(group)] for partition, group in self.requests.items()}
        facts = {"round": self.server_round, "train": self.train, "temperature": self.temperature, "requests": requests}
        return arrays, facts

    @classmethod
    def restored(cls, arrays: Arrays, facts: dict[str, Any]) -> "Snapshot":
        """Return what `stored` gave."""
        distinct = {place: under(f"{place}/", arrays) for place in facts["requests"].values()}
        requests = {int(partition): distinct[place] for partition, place in facts["requests"].items()}
        return cls(facts["round"], requests, facts["train"], facts["temperature"])


@final
@dataclass
class Progress:
    """What a run has come to; everything that the next round needs beside the strategy's own state.

    Attributes:
        arrays: the server's parameters after the last round.
        accepted: by partition, the last round whose reply was used.
        best: the evaluation on test in the round that was best on validation; `best_validation` is its score there.
        best_snapshot: that round's, until its evaluation on test.
        final: the evaluation on test after the last round.
        new_clients: the same of new clients, by steps of adaptation.
        train: mean training metrics of the last round; `best_train` of the best.
        images: trained on, with repetition.
        before: seconds of rounds in earlier processes.
        personal: personal parameters of clients, by partition, as of their last accepted reply but for `uncollected`.
        uncollected: clients that have stored newer personal parameters with their last accepted reply.
    """

    arrays: Arrays
    server_round: int = 0
    accepted: dict[int, int] = field(default_factory=dict)
    best: Evaluation | None = None
    best_snapshot: Snapshot | None = None
    best_validation: float = -np.inf
    final: Evaluation | None = None
    new_clients: dict[int, Evaluation] = field(default_factory=dict)
    best_train: dict[str, float] = field(default_factory=dict)
    train: dict[str, float] = field(default_factory=dict)
    bytes_up: int = 0
    bytes_down: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: {"train": 0.0, "evaluate": 0.0, "aggregate": 0.0})
    images: int = 0
    started: float = field(default_factory=time.perf_counter)
    before: float = 0.0
    personal: dict[int, Arrays] = field(default_factory=dict)
    uncollected: set[int] = field(default_factory=set)

    def accept(self, update: ClientUpdate, server_round: int) -> None:
        """Note that a client's reply was used in a round."""
        self.accepted[update.partition] = server_round
        if update.has_personal:
            self.uncollected.add(update.partition)
        else:
            self.personal.pop(update.partition, None)

    def warnings(self) -> list[str]:
        """Return what the posterior's diagnostics say against the result, a sentence each."""
        warnings = []
        ratio = None if self.final is None else self.final.metrics.get("mixing_ratio")
        if ratio is not None and has_collapsed(ratio):
            warnings.append(
                f"the mixing has collapsed (mixing ratio {ratio:.3f}, below {COLLAPSED}): the posterior is but its "
                "conditional; raise generator.init_mixing, or lower generator.init_scale"
            )
        if (saturation := self.train.get("bound_saturation", 0.0)) > SATURATED:
            warnings.append(
                f"the bound is limited by K (saturation {saturation:.2f}, above {SATURATED}): raise "
                "inference.num_extra, lower generator.noise_dim, or set inference.reverse=gaussian"
            )
        return warnings

    def checkpoint(self, strategy: Arrays) -> Checkpoint:
        """Return what has been learnt, to be stored, with what the strategy remembers."""
        evaluations = {"best": self.best, "final": self.final}
        evaluations |= {f"{_NEW_CLIENTS}{steps}": evaluation for steps, evaluation in self.new_clients.items()}
        records = {name: evaluation.stored() for name, evaluation in evaluations.items() if evaluation is not None}
        history = {
            **{name: getattr(self, name) for name in _PLAIN},
            "accepted": {str(partition): done for partition, done in self.accepted.items()},
            "elapsed": self.before + time.perf_counter() - self.started,
            "complete": not self.uncollected,
            "evaluations": {name: facts for name, (_, facts) in records.items()},
        }
        arrays = {f"{name}/{key}": array for name, (fields, _) in records.items() for key, array in fields.items()}
        if self.best_snapshot is not None:
            fields, history["best_snapshot"] = self.best_snapshot.stored()
            arrays |= {f"{_SNAPSHOT}{name}": array for name, array in fields.items()}
        return Checkpoint(self.server_round, self.arrays, self.personal, strategy, arrays, history)

    @classmethod
    def restored(cls, checkpoint: Checkpoint) -> "Progress":
        """Return what a checkpoint stored; the clock starts now."""
        history = checkpoint.history
        evaluations = {
            name: Evaluation.restored(under(f"{name}/", checkpoint.evaluations), facts)
            for name, facts in history["evaluations"].items()
        }
        accepted = {int(partition): int(done) for partition, done in history["accepted"].items()}
        facts = history.get("best_snapshot")
        snapshot = None if facts is None else Snapshot.restored(under(_SNAPSHOT, checkpoint.evaluations), facts)
        return cls(
            checkpoint.server,
            server_round=checkpoint.server_round,
            accepted=accepted,
            best=evaluations.pop("best", None),
            best_snapshot=snapshot,
            final=evaluations.pop("final", None),
            new_clients={int(name.removeprefix(_NEW_CLIENTS)): evaluation for name, evaluation in evaluations.items()},
            before=history["elapsed"],
            personal=dict(checkpoint.personal),
            **{name: history[name] for name in _PLAIN},
        )

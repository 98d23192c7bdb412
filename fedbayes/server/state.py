"""What a run has come to between two rounds, and how a checkpoint keeps it."""

import time
from dataclasses import dataclass, field
from typing import final

import numpy as np
from flwr.app import ArrayRecord

from fedbayes.arrays import Arrays, under
from fedbayes.comm.messages import from_record, to_record
from fedbayes.inference.diagnostics import has_collapsed
from fedbayes.inference.thresholds import COLLAPSED, SATURATED
from fedbayes.metrics.evaluation import Evaluation
from fedbayes.storage.checkpoint import Checkpoint

_NEWCOMERS = "newcomers-"  # leads the names of evaluations of new clients in a checkpoint
_PLAIN = ("best_validation", "best_train", "train", "bytes_up", "bytes_down", "seconds", "images", "form")
"""What a checkpoint keeps as it is."""


@final
@dataclass
class Progress:
    """What a run has come to; everything that the next round needs beside the strategy's own state.

    Attributes:
        arrays: the strategy's parameters.
        server_round: rounds done.
        accepted: by partition, the last round whose reply was used; 0 for never.
        best: the evaluation on test in the round that was best on validation.
        best_validation: that round's validation score; larger is better.
        final: the evaluation on test after the last round.
        newcomers: the evaluations of new clients on test after the last round, by steps of adaptation.
        best_train: the best round's mean training metrics.
        train: the last round's.
        bytes_up: of all training replies.
        bytes_down: of all training requests.
        seconds: by phase.
        images: trained on, with repetition.
        form: names, shapes and types of the arrays that clients answer with; empty until several of them agree.
        started: when the clients were there and the first round of this process began, by `time.perf_counter`.
        before: seconds of rounds in earlier processes.
        personal: what each trained client keeps to itself, by partition, as far as it was asked for.
        held: by partition, the round whose version `personal` has; also of clients that keep nothing.
    """

    arrays: ArrayRecord
    server_round: int = 0
    accepted: dict[int, int] = field(default_factory=dict)
    best: Evaluation | None = None
    best_validation: float = -np.inf
    final: Evaluation | None = None
    newcomers: dict[int, Evaluation] = field(default_factory=dict)
    best_train: dict[str, float] = field(default_factory=dict)
    train: dict[str, float] = field(default_factory=dict)
    bytes_up: int = 0
    bytes_down: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: {"train": 0.0, "evaluate": 0.0, "aggregate": 0.0})
    images: int = 0
    form: list[list[object]] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)
    before: float = 0.0
    personal: dict[int, Arrays] = field(default_factory=dict)
    held: dict[int, int] = field(default_factory=dict)

    def warnings(self) -> list[str]:
        """What the posterior's diagnostics say against the result, a sentence each."""
        found = []
        ratio = None if self.final is None else self.final.metrics.get("mixing_ratio")
        if ratio is not None and has_collapsed(ratio):
            found.append(
                f"the mixing has collapsed (mixing ratio {ratio:.3f}, below {COLLAPSED}): the posterior is but its "
                "conditional; raise generator.init_mixing, or lower generator.init_scale"
            )
        saturation = self.train.get("bound_saturation")
        if saturation is not None and saturation > SATURATED:
            found.append(
                f"the bound is limited by K (saturation {saturation:.2f}, above {SATURATED}): raise "
                "inference.num_extra, lower generator.noise_dim, or set inference.reverse=gaussian"
            )
        return found

    @property
    def complete(self) -> bool:
        """Whether what clients keep to themselves is known as of the last round that was accepted from each."""
        return self.held == self.accepted

    def checkpoint(self, strategy: Arrays, *, personal: bool) -> Checkpoint:
        """What has been learnt, to be stored.

        Args:
            strategy: what the strategy remembers.
            personal: whether clients keep parameters to themselves.
        """
        evaluations = {"best": self.best, "final": self.final}
        evaluations |= {f"{_NEWCOMERS}{steps}": one for steps, one in self.newcomers.items()}
        stored = {name: one.stored() for name, one in evaluations.items() if one is not None}
        history = {
            **{name: getattr(self, name) for name in _PLAIN},
            "accepted": {str(partition): done for partition, done in self.accepted.items()},
            "elapsed": self.before + time.perf_counter() - self.started,
            "complete": self.complete or not personal,
            "evaluations": {name: facts for name, (_, facts) in stored.items()},
        }
        arrays = {f"{name}/{key}": array for name, (found, _) in stored.items() for key, array in found.items()}
        return Checkpoint(self.server_round, from_record(self.arrays), self.personal, strategy, arrays, history)

    @classmethod
    def restored(cls, stored: Checkpoint) -> "Progress":
        """What a checkpoint kept; the clock starts now."""
        history = stored.history
        evaluations = {
            name: Evaluation.restored(under(f"{name}/", stored.evaluations), facts)
            for name, facts in history["evaluations"].items()
        }
        accepted = {int(partition): int(done) for partition, done in history["accepted"].items()}
        return cls(
            to_record(stored.server),
            server_round=stored.server_round,
            accepted=accepted,
            best=evaluations.pop("best", None),
            final=evaluations.pop("final", None),
            newcomers={int(name.removeprefix(_NEWCOMERS)): one for name, one in evaluations.items()},
            before=history["elapsed"],
            personal=dict(stored.personal),
            held=dict(accepted),
            **{name: history[name] for name in _PLAIN},
        )

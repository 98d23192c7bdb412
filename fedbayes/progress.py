"""What a run has come to between two rounds."""

import time
from dataclasses import dataclass, field
from typing import final

import numpy as np
from flwr.app import ArrayRecord

from fedbayes.checkpoint import Checkpoint
from fedbayes.evaluation import Evaluation
from fedbayes.inference.diagnostics import COLLAPSED, SATURATED, has_collapsed
from fedbayes.messages import Arrays, from_record


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
        best_train: that round's mean training metrics.
        train: the last round's.
        bytes_up: of all training replies.
        bytes_down: of all training requests.
        seconds: by phase.
        images: trained on, with repetition.
        started: when the clients were there and the first round began, by `time.perf_counter`.
        personal: what each trained client keeps to itself, by partition; filled at the end.
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
    started: float = field(default_factory=time.perf_counter)
    personal: dict[int, Arrays] = field(default_factory=dict)

    def warnings(self) -> list[str]:
        """What the posterior's diagnostics say against the result, a sentence each."""
        found = []
        ratio = None if self.final is None else self.final.metrics.get("mixing_ratio")
        if ratio is not None and has_collapsed(ratio):
            found.append(
                f"the mixing has collapsed (mixing ratio {ratio:.3f}, below {COLLAPSED}): the posterior is but its "
                "conditional; raise inference.num_extra or generator.init_mixing, or lower generator.init_scale"
            )
        saturation = self.train.get("bound_saturation")
        if saturation is not None and saturation > SATURATED:
            found.append(
                f"the bound is limited by K (saturation {saturation:.2f}, above {SATURATED}): raise "
                "inference.num_extra, lower generator.noise_dim, or set inference.reverse=gaussian"
            )
        return found

    def checkpoint(self) -> Checkpoint:
        """What has been learnt, to be stored."""
        return Checkpoint(self.server_round, from_record(self.arrays), self.personal)

"""Evaluations of the federation between rounds: on validation, and on test where that is called for."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

from fedbayes.arrays import Arrays, mean_arrays
from fedbayes.errors import ConfigError, StoppedError, require_bool, require_choice, require_whole
from fedbayes.metrics.calibration import fit_temperature
from fedbayes.metrics.evaluation import Evaluation, detection
from fedbayes.server.sampling import Sampling
from fedbayes.server.session import Session
from fedbayes.server.state import Progress, Snapshot
from fedbayes.server.validation import evaluation_problem


@final
@dataclass(kw_only=True, eq=False)
class Assessment:
    """Evaluates the clients, and keeps the best evaluation; `evaluate` in `conf/config.yaml` explains the settings.

    `backdoor` is whether clients have images with the mark of a backdoor, `shares_personal` whether clients that never
    trained are sent the mean personal parameters of those that did.
    """

    sampling: Sampling
    every: int
    best_by: str
    temperature: bool
    held_out: bool
    backdoor: bool
    adapt_steps: Sequence[int]
    timeout: float | None
    shares_personal: bool = True

    def __post_init__(self) -> None:
        require_whole("evaluate.every", self.every, 1)
        require_choice("evaluate.best_by", self.best_by, ("accuracy", "nll"))
        require_bool("evaluate.temperature", self.temperature)
        if not isinstance(self.adapt_steps, list | tuple):
            raise ConfigError(f"evaluate.adapt_steps={self.adapt_steps} is not a list; write e.g. [0,1,5].")
        for steps in self.adapt_steps:
            require_whole("evaluate.adapt_steps", steps, 0)

    def after_round(self, session: Session, *, last: bool) -> None:
        """Evaluate on validation, and at the end of the run on test: with the last round's parameters and the best's.

        Clients with personal parameters hold the last round's alone, so they predict test images in each round that is
        better on validation than all before.

        Raises:
            StoppedError: if no client could be evaluated.
        """
        progress = session.progress
        now = self._snapshot(session, self.sampling.evaluated)
        validation = self._evaluate(session, now, "validation")
        score = validation.accuracy["mean"] if self.best_by == "accuracy" else -validation.nll
        is_best = score > progress.best_validation
        if not (is_best or last):
            return
        if self.temperature:
            now = replace(now, temperature=fit_temperature(validation.pooled.probabilities, validation.labels))
        if is_best:
            progress.best_validation, progress.best_train = score, progress.train
            progress.best, progress.best_snapshot = None, now
        if not (last or progress.personal or progress.uncollected):
            return
        test = self._test(session, now)
        if is_best:
            progress.best, progress.best_snapshot = test, None
        if not last:
            return
        progress.final = test
        if progress.best_snapshot is not None:
            progress.best, progress.best_snapshot = self._test(session, progress.best_snapshot), None
        if not self.sampling.new_clients:
            return
        new = self._snapshot(session, self.sampling.new_clients)
        for steps in dict.fromkeys(self.adapt_steps):
            progress.new_clients[steps] = self._evaluate(session, new, "test", adapt=steps)

    def _snapshot(self, session: Session, clients: Sequence[int]) -> Snapshot:
        """Return what clients are evaluated with now."""
        progress = session.progress
        requests = session.strategy.requests(progress.server_round, clients, "evaluate")
        if self.shares_personal and len(progress.accepted) < len(session.federation.partitions):
            requests = _with_mean_personal(requests, progress)
        return Snapshot(progress.server_round, requests, progress.train)

    def _test(self, session: Session, snapshot: Snapshot) -> Evaluation:
        """Evaluate on test images, and on what is looked at besides."""
        test = self._evaluate(session, snapshot, "test")
        if self.held_out:
            test = replace(test, outside=self._evaluate(session, snapshot, "held_out", inside=test))
        if self.backdoor and any(session.federation.sizes.of("triggered", p) != 0 for p in self.sampling.evaluated):
            test = replace(test, backdoor_success=self._evaluate(session, snapshot, "triggered").accuracy["weighted"])
        return test

    def _evaluate(
        self,
        session: Session,
        snapshot: Snapshot,
        split: str,
        *,
        inside: Evaluation | None = None,
        adapt: int | None = None,
    ) -> Evaluation:
        """Ask clients for predictions.

        Args:
            session: the run.
            snapshot: what they predict with.
            split: the images.
            inside: the evaluation that held-out images are compared with.
            adapt: steps that new clients train before; None to evaluate the clients of any round.
        """
        started, progress, sizes = time.perf_counter(), session.progress, session.federation.sizes
        server_round = snapshot.server_round
        phase = split if adapt is None else f"new_clients_{adapt}"
        requests = {p: arrays for p, arrays in snapshot.requests.items() if sizes.of(split, p) != 0}
        contents = session.messages(requests, server_round, split, self.timeout, adapt=adapt)
        replies = session.federation.ask(contents, "evaluate", split)
        replies = replies.checked(lambda update: evaluation_problem(update, sizes))
        for note in replies.notes(f"{phase} reply"):
            session.log.note(f"round {server_round}: {note}")
        if not replies.updates:
            raise StoppedError(f"no client could be evaluated on {phase} in round {server_round}; see run.log.")
        images = [sizes.of(split, partition) for partition in contents]
        evaluation = replace(
            Evaluation.of(server_round, phase, replies.updates),
            temperature=snapshot.temperature if split == "test" and adapt is None else None,
            clients_expected=len(contents),
            images_expected=None if None in images else sum(count or 0 for count in images),
        )
        if shortfall := evaluation.shortfall:
            session.log.note(f"round {server_round}: {phase} rests on {shortfall}")
        before, after = snapshot.train.get("mixing_ratio_sent"), evaluation.metrics.get("mixing_ratio")
        if before and after is not None and adapt is None:
            evaluation.metrics["mixing_kept"] = after / before  # by averaging, as far as the images are alike
        if inside is not None:
            evaluation = replace(evaluation, detection=detection(inside.pooled, evaluation.pooled))
        seconds = time.perf_counter() - started
        progress.seconds["evaluate"] += seconds
        session.log.log({**evaluation.row(), "seconds": seconds})
        session.log.log_clients(evaluation.client_rows())
        return evaluation


def _with_mean_personal(requests: dict[int, Arrays], progress: Progress) -> dict[int, Arrays]:
    """Add the clients' mean personal parameters to what clients that never trained are sent."""
    mean = mean_arrays([progress.personal[partition] for partition in sorted(progress.personal)])
    merged = {id(arrays): {**arrays, **mean} for arrays in requests.values()}  # equal objects share their bytes
    untrained = {partition for partition in requests if progress.accepted.get(partition, 0) == 0}
    return {
        partition: merged[id(arrays)] if partition in untrained else arrays for partition, arrays in requests.items()
    }

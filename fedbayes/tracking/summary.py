"""The object of `summary.json`: what a run was and what came out."""

import resource
import sys
import time
from typing import Any

import torch
from omegaconf import DictConfig

from fedbayes.build import Parts
from fedbayes.metrics.evaluation import Evaluation
from fedbayes.server.state import Progress
from fedbayes.storage.names import SUBJECT
from fedbayes.tracking.provenance import provenance

DIAGNOSTICS = ("effective_components", "bound_saturation")
"""Training metrics that belong to a result, taken from its round."""
NEW_CLIENTS = (
    "clients",
    "clients_expected",
    "images",
    "images_expected",
    "accuracy",
    "nll",
    "ece",
    "ece_floor",
    "brier",
)
"""What is said of clients that never trained."""


def summarise(cfg: DictConfig, parts: Parts, progress: Progress, started: float) -> dict[str, Any]:
    """Collect everything that `summary.json` says.

    Args:
        cfg: the resolved configuration, with the names of the chosen groups under `names`.
        parts: of the run.
        progress: the finished rounds.
        started: when the run began, by `time.perf_counter`.
    """
    domain_names = parts.data.images.domain_names
    assert progress.final is not None, "a finished run has been evaluated"
    assert progress.best is not None, "on validation, too"
    final = {**_result(progress.final, domain_names), **_diagnostics(progress.train)}
    best = {**_result(progress.best, domain_names), **_diagnostics(progress.best_train)}
    busy = progress.seconds["train"]
    return {
        **{name: cfg.names[name] for name in SUBJECT},
        "attack": {"name": cfg.names.attack, "malicious": list(parts.malicious)},
        "emulator": _emulator(cfg, parts, progress.final),
        "sparse": None
        if cfg.names.sparse == "none"
        else {"name": cfg.names.sparse, "fraction": cfg.sparse.fraction, **parts.strategy.facts()},
        "seed": cfg.seed,
        "rounds": progress.server_round,
        "clients": cfg.clients,
        **provenance(),
        "device": torch.cuda.get_device_name() if parts.engine.device == "cuda" else parts.engine.device,
        "final": final,
        "best": best,
        "new_clients": _new_clients(progress),
        "train": progress.train,
        "privacy": parts.strategy.privacy_spent(cfg.rounds),
        "secure": parts.strategy.secure_costs(),
        "per_client": progress.final.group_rows(progress.final.partitions, "partition"),
        "per_domain": {
            domain_names[row.pop("domain")]: row for row in progress.final.group_rows(progress.final.domains, "domain")
        },
        "bytes": {"up": progress.bytes_up, "down": progress.bytes_down},
        "seconds": {
            "total": time.perf_counter() - started + progress.before,
            "setup": progress.started - started,
            **progress.seconds,
        },
        "images_per_second": progress.images / busy if busy > 0 else None,
        "peak_memory_mb": peak_memory_mb(),
    }


def _emulator(cfg: DictConfig, parts: Parts, final: Evaluation) -> dict[str, Any] | None:
    """Return what clients trained in the place of the ViT, if so, and which of the two predicted the test images."""
    if parts.emulator is None:
        return None
    predicts = "emulator" if final.emulator_probabilities is None else "full"
    return {"name": cfg.names.emulator, "predicts": predicts, **parts.emulator.summary()}


def peak_memory_mb() -> float:
    """The largest resident set of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _result(evaluation: Evaluation, domain_names: tuple[str, ...]) -> dict[str, Any]:
    """An evaluation on test, with the names of held-out domains."""
    scores = evaluation.summary()
    if scores["ood"] is not None:
        scores["ood"]["domains"] = [domain_names[index] for index in scores["ood"]["domains"]]
    return scores


def _new_clients(progress: Progress) -> dict[str, Any] | None:
    """How clients that never trained do, by steps of adaptation; None without such clients."""
    rows = {
        str(steps): {name: value for name, value in scores.summary().items() if name in NEW_CLIENTS}
        for steps, scores in progress.new_clients.items()
    }
    return rows or None


def _diagnostics(train: dict[str, float]) -> dict[str, float]:
    return {name: train[name] for name in DIAGNOSTICS if name in train}

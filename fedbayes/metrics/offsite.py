"""What an emulator is worth: its own results, and what plugging into the full ViT changes, image by image."""

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import torch

from fedbayes.metrics.calibration import reliability
from fedbayes.metrics.paired import bootstrap
from fedbayes.metrics.predictive import Predictive

if TYPE_CHECKING:
    from fedbayes.metrics.evaluation import Evaluation

EMULATED = "emulator_probabilities"
"""Name of the emulator's own predictions in a reply to an evaluation, beside those of the full ViT."""


def offsite(evaluation: "Evaluation") -> dict[str, Any]:
    """Return the emulator's results, and plug-in minus emulator with intervals; both None without an emulator."""
    if evaluation.emulator_probabilities is None:
        return {"emulator": None, "gap": None}
    predicted = Predictive(evaluation.emulator_probabilities, evaluation.pooled.expected_entropy)
    emulator = replace(evaluation, pooled=predicted, emulator_probabilities=None)
    bins = reliability(predicted.probabilities, evaluation.labels)
    return {
        "emulator": {"accuracy": emulator.accuracy, "nll": emulator.nll, "ece": bins.ece},
        "gap": {
            "accuracy": _paired(evaluation.hits - emulator.hits, evaluation.partitions),
            "nll": _paired(evaluation.nll_per_image - emulator.nll_per_image, evaluation.partitions),
        },
    }


def _paired(difference: torch.Tensor, partitions: torch.Tensor) -> dict[str, float | None]:
    """Return the mean over clients of their images' mean difference, and its 95 % interval, None for one client."""
    clients = [difference[partitions == client].numpy() for client in partitions.unique()]
    if len(clients) < 2:
        return {"mean": float(difference.mean()), "low": None, "high": None}
    return asdict(bootstrap([clients]))

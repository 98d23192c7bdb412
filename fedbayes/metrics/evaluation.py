"""The clients' predictions on one split, pooled: the numbers of `metrics.jsonl` and `summary.json`.

Calibration is measured on all clients' predictions together, because on a single client's few test images the expected
calibration error is mostly bias: a perfectly calibrated ten-class model shows 0.11 on 100 images. A client's own error
therefore comes with its floor, what such a model would show on its images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch

from fedbayes.arrays import under
from fedbayes.comm.messages import ClientUpdate
from fedbayes.inference.diagnostics import mixing_ratio
from fedbayes.metrics.calibration import adaptive_reliability, reliability, scale
from fedbayes.metrics.detection import aurc, auroc, fpr95
from fedbayes.metrics.offsite import EMULATED, offsite
from fedbayes.metrics.predictive import Predictive, brier, negative_log_likelihood

RESOLUTION = 1e-5
"""Scores that differ by less are equal: nats, where clients compute entropies in float32."""

_PER_IMAGE = ("labels", "domains", "partitions")
_FACTS = (
    *("server_round", "split", "metrics", "temperature", "detection", "backdoor_success"),
    *("clients_expected", "images_expected"),
)
"""Attributes of an evaluation that are not arrays."""


@final
@dataclass(frozen=True, eq=False)
class Evaluation:
    """One evaluation of the federation.

    Attributes:
        pooled: predictions of all clients' images, clients in the order of their partitions.
        metrics: means over images of what clients reported beside their predictions, and the mixing ratio of those.
        temperature: fitted on other images; None if none was.
        detection: how well scores tell these images from those of the test; see `detection`. None on other splits.
        clients_expected: clients that were asked; fewer may have replied. None where nobody counted.
        images_expected: images of those clients, None where they alone know.
        backdoor_success: fraction of marked images of other classes that are seen as the attack wants, if there is one.
        emulator_probabilities: of the images, by the emulator that clients train in the place of the full ViT, if any.
        outside: beside an evaluation on test, that on images of held-out domains; None if there are none.
    """

    server_round: int
    split: str
    pooled: Predictive
    labels: torch.Tensor
    domains: torch.Tensor
    partitions: torch.Tensor
    metrics: dict[str, float]
    temperature: float | None = None
    detection: dict[str, dict[str, float | None]] | None = None
    backdoor_success: float | None = None
    clients_expected: int | None = None
    images_expected: int | None = None
    outside: "Evaluation | None" = None
    emulator_probabilities: torch.Tensor | None = None

    @classmethod
    def of(cls, server_round: int, split: str, updates: Sequence[ClientUpdate]) -> "Evaluation":
        """Pool the answers of clients, which are in the order of their partitions."""

        def pooled(name: str) -> torch.Tensor:
            return torch.from_numpy(np.concatenate([update.arrays[name] for update in updates]))

        metrics = {name: value for name, value in over_images(updates).items() if name not in ("accuracy", "nll")}
        if {"mixing_variance", "conditional_variance"} <= metrics.keys():
            metrics["mixing_ratio"] = mixing_ratio(metrics["mixing_variance"], metrics["conditional_variance"])
        return cls(
            server_round,
            split,
            Predictive(pooled("probabilities"), pooled("expected_entropy")),
            pooled("labels"),
            pooled("domains"),
            torch.from_numpy(np.repeat([u.partition for u in updates], [u.num_examples for u in updates])),
            metrics,
            emulator_probabilities=pooled(EMULATED) if all(EMULATED in update.arrays for update in updates) else None,
        )

    @property
    def shortfall(self) -> str | None:
        """What the evaluation rests on where replies are missing, such as "1 of 4 clients, 14 of 56 images"."""
        clients, images = len(self.partitions.unique()), len(self.labels)
        if self.clients_expected in (None, clients):
            return None
        of_images = "" if self.images_expected is None else f" of {self.images_expected}"
        return f"{clients} of {self.clients_expected} clients, {images}{of_images} images"

    @property
    def hits(self) -> torch.Tensor:
        """1 for each image that was classified right, else 0; float64."""
        return (self.pooled.predicted == self.labels).double()

    @property
    def nll_per_image(self) -> torch.Tensor:
        """Nats, float64."""
        return negative_log_likelihood(self.pooled.probabilities.double(), self.labels)

    @property
    def nll(self) -> float:
        """Mean over images, nats."""
        return float(self.nll_per_image.mean())

    @property
    def accuracy(self) -> dict[str, float]:
        """Over clients: mean, mean weighted by images, standard deviation, worst decile (at least one client)."""
        each = self.per_group(self.partitions)[1]
        worst = each.sort().values[: max(1, len(each) // 10)]
        return {
            "mean": float(each.mean()),
            "weighted": float(self.hits.mean()),
            "std": float(each.std(correction=0)),
            "worst_decile": float(worst.mean()),
        }

    def per_group(self, groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Groups that occur, and for each the accuracy, the NLL (nats) and the number of images."""
        values, place, count = groups.unique(return_inverse=True, return_counts=True)
        hits = torch.zeros(len(values), dtype=torch.float64).index_add_(0, place, self.hits)
        nll = torch.zeros(len(values), dtype=torch.float64).index_add_(0, place, self.nll_per_image)
        return values, hits / count, nll / count, count

    def row(self) -> dict[str, Any]:
        """The row of `metrics.jsonl`."""
        accuracy = self.accuracy
        return {
            **self.metrics,  # first, so that no client writes the columns below
            "round": self.server_round,
            "phase": self.split,
            "accuracy": accuracy["mean"],
            "accuracy_weighted": accuracy["weighted"],
            **self._pooled_numbers(),
            **{name: value for name, value in self._scaled_numbers().items() if value is not None},
            **{
                f"ood_{measure}_{score}": value
                for measure, values in (self.detection or {}).items()
                for score, value in values.items()
            },
        }

    def arrays(self) -> dict[str, np.ndarray]:
        """Predictions image by image, clients in order: what paired comparisons of runs are made from."""
        tensors = {**vars(self.pooled), **{name: getattr(self, name) for name in _PER_IMAGE}}
        tensors |= {} if self.emulator_probabilities is None else {EMULATED: self.emulator_probabilities}
        return {name: tensor.numpy() for name, tensor in tensors.items()}

    def stored(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return all of it, as arrays and as facts in JSON's types; `restored` takes it back."""
        facts: dict[str, Any] = {name: getattr(self, name) for name in _FACTS}
        arrays = self.arrays()
        if self.outside is not None:
            outside, facts["outside"] = self.outside.stored()
            arrays |= {f"outside/{name}": array for name, array in outside.items()}
        return arrays, facts

    @classmethod
    def restored(cls, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> "Evaluation":
        """Make an evaluation of what `stored` returned."""
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        outside = facts.get("outside")
        values: dict[str, Any] = {name: facts.get(name) for name in _FACTS}
        values |= {name: tensors[name] for name in _PER_IMAGE}
        return cls(
            pooled=Predictive(tensors["probabilities"], tensors["expected_entropy"]),
            emulator_probabilities=tensors.get(EMULATED),
            outside=None if outside is None else cls.restored(under("outside/", arrays), outside),
            **values,
        )

    def group_rows(self, groups: torch.Tensor, name: str) -> list[dict[str, Any]]:
        """One row per group that occurs: the group under `name`, images, accuracy, NLL (nats), ECE and its floor."""
        rows = []
        for group, accuracy, nll, images in zip(*(column.tolist() for column in self.per_group(groups)), strict=True):
            bins = reliability(self.pooled.probabilities[groups == group], self.labels[groups == group])
            row = {"images": images, "accuracy": accuracy, "nll": nll, "ece": bins.ece, "ece_floor": bins.ece_floor}
            rows.append({name: group, **row})
        return rows

    def client_rows(self) -> list[dict[str, Any]]:
        """The rows of `clients.jsonl`."""
        where = {"round": self.server_round, "phase": self.split}
        return [{**where, **row} for row in self.group_rows(self.partitions, "partition")]

    def summary(self) -> dict[str, Any]:
        """The entry of `summary.json`."""
        bins = reliability(self.pooled.probabilities, self.labels)
        return {
            "effective_components": None,
            "mixing_ratio": None,
            **self.metrics,
            "round": self.server_round,
            "clients": len(self.partitions.unique()),
            "clients_expected": self.clients_expected,
            "images": len(self.labels),
            "images_expected": self.images_expected,
            "accuracy": self.accuracy,
            **self._pooled_numbers(),
            **self._scaled_numbers(),
            "backdoor_success": self.backdoor_success,
            **offsite(self),
            "ood": None if self.outside is None else self.outside.as_outside(),
            "reliability": {name: getattr(bins, name).tolist() for name in ("confidence", "accuracy", "count")},
        }

    def as_outside(self) -> dict[str, Any]:
        """The entry of `summary.json` for held-out domains; accuracy and NLL (nats) are means over images."""
        return {
            "domains": self.domains.unique().tolist(),
            "images": len(self.labels),
            "accuracy": float(self.hits.mean()),
            "nll": self.nll,
            **(self.detection or {}),
        }

    def _pooled_numbers(self) -> dict[str, float]:
        probabilities = self.pooled.probabilities.double()
        bins, adaptive = reliability(probabilities, self.labels), adaptive_reliability(probabilities, self.labels)
        return {
            "nll": self.nll,
            "ece": bins.ece,
            "ece_floor": bins.ece_floor,
            "adaptive_ece": adaptive.ece,
            "adaptive_ece_floor": adaptive.ece_floor,
            "brier": float(brier(probabilities, self.labels).mean()),
            "aurc": aurc(self.pooled.confidence, self.pooled.predicted == self.labels),
            "entropy": float(self.pooled.entropy.double().mean()),
            "expected_entropy": float(self.pooled.expected_entropy.double().mean()),
            "prompt_uncertainty": float(self.pooled.prompt_uncertainty.double().mean()),
        }

    def _scaled_numbers(self) -> dict[str, float | None]:
        """NLL (nats) and ECE at the temperature; all None without one."""
        if self.temperature is None:
            return dict.fromkeys(("temperature", "nll_temperature", "ece_temperature"))
        scaled = scale(self.pooled.probabilities.double(), self.temperature)
        return {
            "temperature": self.temperature,
            "nll_temperature": float(negative_log_likelihood(scaled, self.labels).mean()),
            "ece_temperature": reliability(scaled, self.labels).ece,
        }


def detection(inside: Predictive, outside: Predictive) -> dict[str, dict[str, float | None]]:
    """`auroc` and `fpr95` of three scores that should be higher outside: prompt uncertainty, entropy, confidence.

    The score of confidence is 1 - the largest probability. A score that is the same for all images gives None, as
    prompt uncertainty is without a posterior.
    """
    pairs = {
        "prompt_uncertainty": (inside.prompt_uncertainty, outside.prompt_uncertainty),
        "entropy": (inside.entropy, outside.entropy),
        "confidence": (1 - inside.confidence, 1 - outside.confidence),
    }
    differs = {name: float(torch.cat(pair).max() - torch.cat(pair).min()) > RESOLUTION for name, pair in pairs.items()}
    return {
        "auroc": {name: auroc(*pair) if differs[name] else None for name, pair in pairs.items()},
        "fpr95": {name: fpr95(*pair) if differs[name] else None for name, pair in pairs.items()},
    }


def over_images(updates: Sequence[ClientUpdate]) -> dict[str, float]:
    """Each metric averaged over the images of those clients that report it."""
    means: dict[str, float] = {}
    for name in dict.fromkeys(name for update in updates for name in update.metrics):
        pairs = [(update.metrics[name], update.num_examples) for update in updates if name in update.metrics]
        means[name] = sum(value * count for value, count in pairs) / sum(count for _, count in pairs)
    return means

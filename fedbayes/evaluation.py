"""The clients' predictions on one split, pooled: the numbers of `metrics.jsonl` and `summary.json`.

Calibration is measured on all clients' predictions together, because on a single client's few test images the expected
calibration error is mostly bias: a perfectly calibrated ten-class model shows 0.11 on 100 images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch

from fedbayes.inference.predictive import Predictive, brier, negative_log_likelihood, pool, reliability
from fedbayes.inference.semi_implicit import mixing_ratio
from fedbayes.messages import ClientUpdate


@final
@dataclass(frozen=True, eq=False)
class Evaluation:
    """One evaluation of the federation.

    Attributes:
        server_round: the round whose parameters were evaluated.
        split: the images it was on.
        pooled: predictions of all clients' images, clients in the order of their partitions.
        labels: of those images.
        domains: of those images.
        partitions: of those images.
        metrics: means over images of what clients reported beside their predictions, and the mixing ratio of those.
    """

    server_round: int
    split: str
    pooled: Predictive
    labels: torch.Tensor
    domains: torch.Tensor
    partitions: torch.Tensor
    metrics: dict[str, float]

    @classmethod
    def of(cls, server_round: int, split: str, updates: Sequence[ClientUpdate]) -> "Evaluation":
        """Pool the answers of clients, given in the order of their partitions."""
        said = [
            Predictive(torch.from_numpy(u.arrays["probabilities"]), torch.from_numpy(u.arrays["expected_entropy"]))
            for u in updates
        ]
        total = sum(u.num_examples for u in updates)
        names = [name for name in updates[0].metrics if name not in ("accuracy", "nll")]
        metrics = {name: sum(u.metrics[name] * u.num_examples for u in updates) / total for name in names}
        if "mixing_variance" in metrics:
            metrics["mixing_ratio"] = mixing_ratio(metrics["mixing_variance"], metrics["conditional_variance"])
        return cls(
            server_round,
            split,
            pool(said),
            torch.from_numpy(np.concatenate([u.arrays["labels"] for u in updates])),
            torch.from_numpy(np.concatenate([u.arrays["domains"] for u in updates])),
            torch.from_numpy(np.concatenate([np.full(u.num_examples, u.partition) for u in updates])),
            metrics,
        )

    @property
    def hits(self) -> torch.Tensor:
        """Whether each image was classified right, float64."""
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
        """Over clients: mean, mean weighted by images, standard deviation, mean of the worst tenth (at least one)."""
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
        found, place, count = groups.unique(return_inverse=True, return_counts=True)
        hits = torch.zeros(len(found), dtype=torch.float64).index_add_(0, place, self.hits)
        nll = torch.zeros(len(found), dtype=torch.float64).index_add_(0, place, self.nll_per_image)
        return found, hits / count, nll / count, count

    def row(self) -> dict[str, Any]:
        """The row of `metrics.jsonl`."""
        accuracy = self.accuracy
        return {
            "round": self.server_round,
            "phase": self.split,
            "accuracy": accuracy["mean"],
            "accuracy_weighted": accuracy["weighted"],
            **self._pooled_numbers(),
            **self.metrics,
        }

    def group_rows(self, groups: torch.Tensor, name: str) -> list[dict[str, Any]]:
        """One row per group that occurs: the group under `name`, its images, accuracy and NLL (nats)."""
        columns = zip(*(values.tolist() for values in self.per_group(groups)), strict=True)
        return [
            {name: group, "images": images, "accuracy": accuracy, "nll": nll}
            for group, accuracy, nll, images in columns
        ]

    def client_rows(self) -> list[dict[str, Any]]:
        """The rows of `clients.jsonl`."""
        where = {"round": self.server_round, "phase": self.split}
        return [{**where, **row} for row in self.group_rows(self.partitions, "partition")]

    def summary(self) -> dict[str, Any]:
        """What `summary.json` says of it."""
        bins = reliability(self.pooled.probabilities, self.labels)
        return {
            "round": self.server_round,
            "images": len(self.labels),
            "accuracy": self.accuracy,
            **self._pooled_numbers(),
            "effective_components": None,
            "mixing_ratio": None,
            **self.metrics,
            "reliability": {name: getattr(bins, name).tolist() for name in ("confidence", "accuracy", "count")},
        }

    def _pooled_numbers(self) -> dict[str, float]:
        probabilities = self.pooled.probabilities.double()
        return {
            "nll": self.nll,
            "ece": reliability(probabilities, self.labels).ece,
            "brier": float(brier(probabilities, self.labels).mean()),
            "prompt_uncertainty": float(self.pooled.prompt_uncertainty.double().mean()),
        }

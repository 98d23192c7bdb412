r"""FedNCM: nearest class mean on frozen features, training-free (Legate et al., NeurIPS 2023, arXiv 2402.01862).

A client sends sums per class once; the server's means are those of a pooled data set, exactly. The paper classifies by
the nearest mean. For probabilities, classes are taken as Gaussians with those means and one common variance, estimated
from the same sums: `log p(y = c | z) = -|z - mu_c|^2 / (2 v) + const`. That choice is ours.
"""

from collections.abc import Sequence
from typing import final

import numpy as np
import torch

from clients.base import AbstractClient, Draws
from clients.inputs import Inputs
from fedbayes.messages import Arrays, ClientRequest, ClientUpdate
from fedbayes.seeding import Streams


@final
class FedNCMClient(AbstractClient):
    """Sums its images' features per class; predicts by the server's means."""

    def initial(self) -> Arrays:
        """No class seen yet."""
        width = self.model.backbone.dim
        return {
            "means": np.zeros((self.model.classes, width)),
            "counts": np.zeros(self.model.classes),
            "variance": np.ones(1),
        }

    def train(self, requests: Sequence[ClientRequest]) -> list[ClientUpdate]:
        """Per class, the sum of features and their number; and the sum of their squared lengths, all in float64."""
        updates = []
        for request in requests:
            batch = self.data.whole([request.partition], "train")
            z = self.inputs.plain(batch).z[0].double()
            hits = torch.nn.functional.one_hot(batch.labels[0].to(z.device), self.model.classes).double()
            arrays = {
                "sums": (hits.T @ z).cpu().numpy(),
                "counts": hits.sum(0).cpu().numpy(),
                "squares": z.square().sum().reshape(1).cpu().numpy(),
            }
            updates.append(ClientUpdate(request.partition, arrays, len(z), {}))
        return updates

    def draw(self, inputs: Inputs, parameters: Sequence[Arrays], streams: Streams) -> Draws:  # noqa: ARG002
        """One draw: nothing is random here."""
        z = inputs.z.double()
        means = torch.from_numpy(np.stack([one["means"] for one in parameters])).to(z)
        variance = torch.from_numpy(np.stack([one["variance"] for one in parameters])).to(z)
        seen = torch.from_numpy(np.stack([one["counts"] for one in parameters])).to(z) > 0
        logits = -torch.cdist(z, means).square() / (2 * variance[:, None])  # (C, B, classes)
        none_seen = ~seen.any(1, keepdim=True)  # before the first round every class is equally likely
        logits = torch.where((seen | none_seen)[:, None], logits, torch.full_like(logits, -torch.inf))
        return Draws(logits.unsqueeze(0), {})

r"""Training-free classification of frozen features: clients send sums per class, the server makes a linear classifier.

What is sent per class c is `sum z` and `n_c`, which is the class mean and count of FedNCM (Legate et al., NeurIPS 2023,
arXiv 2306.03937) and of FedCOF (Goswami et al., NeurIPS 2025, arXiv 2412.14326) in a form that adds up exactly. The
classifier that comes back is `p(y = c | z) = softmax_c(w_c . z + b_c)`, with w and b of the strategy.
"""

from collections.abc import Sequence
from typing import final

import numpy as np
import torch
from torch import Tensor

from clients.base import AbstractClient, LinearScores, Scores
from clients.inputs import Inputs
from fedbayes.arrays import Arrays
from fedbayes.comm.messages import ClientRequest, ClientUpdate
from fedbayes.errors import ConfigError
from fedbayes.seeding import Streams
from fedbayes.simulation.client import ClientSetup


@final
class ClassSumsClient(AbstractClient):
    """Sums its images' features per class; predicts by the server's linear classifier.

    Args:
        setup: images, model and seed; sums are of the images without augmentation.
        personal: must be empty: these clients have no parameters.
        squares: also send the sum of the features' squared lengths, which a variance needs.
        gram: also send `sum z z^T`, which a ridge regression needs.

    Raises:
        ConfigError: if a part is to be personal, or a head is to have a class prior.
    """

    def __init__(
        self, *, setup: ClientSetup, personal: Sequence[str], squares: bool = False, gram: bool = False
    ) -> None:
        if personal:
            raise ConfigError(
                f"method.client.personal={list(personal)}: clients send sums and have no parameters; leave it []."
            )
        if setup.priors.kind != "none":
            raise ConfigError(f"head.prior={setup.priors.kind}: this method has no head that is trained; choose none.")
        super().__init__(setup=setup, personal=personal)
        self.squares, self.gram = squares, gram

    def initial(self) -> Arrays:
        """Return a classifier that has seen no class."""
        classes, width = self.model.classes, self.model.backbone.dim
        return {"weights": np.zeros((classes, width)), "bias": np.zeros(classes), "counts": np.zeros(classes)}

    def train(self, requests: Sequence[ClientRequest]) -> list[ClientUpdate]:
        """Return, per class, the sum of features and their number, in float64."""
        updates = []
        for request in requests:
            batch = self.data.batch([request.partition], "train")
            z = self.inputs.features(batch)[0][0].double()
            arrays = class_sums(z, batch.labels[0], self.model.classes)
            if self.squares:
                arrays["squares"] = z.square().sum().reshape(1).cpu().numpy()
            if self.gram:
                arrays["gram"] = (z.T @ z).cpu().numpy()
            updates.append(ClientUpdate(request.partition, arrays, len(z), {}))
        return updates

    def score(self, inputs: Inputs, parameters: Sequence[Arrays], streams: Streams) -> Scores:  # noqa: ARG002
        """Return scores without randomness; a class that no client has is never predicted."""
        z = inputs.z.double()
        weights, bias, counts = (
            torch.from_numpy(np.stack([state[name] for state in parameters])).to(z)
            for name in ("weights", "bias", "counts")
        )
        logits = z @ weights.mT + bias[:, None]  # (C, B, classes)
        is_seen = counts > 0
        none_seen = ~is_seen.any(1, keepdim=True)  # before the first round every class is equally likely
        return Scores(logits.masked_fill(~(is_seen | none_seen)[:, None], -torch.inf).unsqueeze(0), {})

    def linear_scores(self, inputs: Inputs, parameters: Arrays) -> LinearScores:
        """Return features and the server's classifier; a class that no client has is ruled out."""
        weights, bias, counts = (torch.from_numpy(parameters[name]) for name in ("weights", "bias", "counts"))
        return LinearScores(
            inputs.z[0].cpu(), weights.mT, bias.masked_fill((counts == 0) & (counts > 0).any(), -torch.inf)
        )


def class_sums(z: Tensor, labels: Tensor, classes: int) -> Arrays:
    """Return, per class, the sum of features z `(n, d)` and their number, in the precision of z."""
    hits = torch.nn.functional.one_hot(labels.to(z.device), classes).to(z)
    return {"sums": (hits.T @ z).cpu().numpy(), "counts": hits.sum(0).cpu().numpy()}

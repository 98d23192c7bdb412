"""Clients of offsite tuning: they tune an emulator, and what they learnt is plugged into the full ViT to predict.

Nothing of the full ViT is in what a client trains with or sends. Predictions of clients' images by the full ViT are a
simulation's privilege: in a deployment the owner has the ViT and the clients have the images.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, final

from fedbayes.arrays import Arrays
from fedbayes.comm.messages import ClientRequest, ClientUpdate
from fedbayes.errors import ConfigError
from fedbayes.metrics.offsite import EMULATED


@final
class OffsiteClient:
    """Joins two clients of one method, one on the emulator and one on the full ViT.

    Args:
        tuned: trains, and adapts to images before an evaluation.
        plugged: predicts, and never trains.

    Raises:
        ConfigError: if the method's clients keep features of the ViT that they predict with.
    """

    def __init__(self, tuned: Any, plugged: Any) -> None:
        if getattr(tuned, "keeps_features", True):
            raise ConfigError(
                f"emulator: {type(tuned).__name__} predicts from features of the client's images by the full ViT, "
                "which a client does not have; choose emulator=none."
            )
        self._tuned, self._plugged = tuned, plugged
        self.data, self.inputs = plugged.data, plugged.inputs
        self.predict, self.linear_scores = plugged.predict, plugged.linear_scores
        self.initial, self.train = tuned.initial, tuned.train
        self.adapt, self.for_new_clients = tuned.adapt, tuned.for_new_clients

    def prepare(self) -> None:
        """Compute what depends on nothing learnt, for both."""
        self._tuned.prepare()
        self._plugged.prepare()

    def evaluate(self, requests: Sequence[ClientRequest]) -> list[ClientUpdate]:
        """Predict with the full ViT; replies also carry the emulator's predictions, accuracy and NLL (nats)."""
        received: list[Arrays] = [{**request.arrays, **request.personal} for request in requests]
        adapted = self.adapt(received, requests)
        pairs = zip(
            *(client.evaluate_with(adapted, requests) for client in (self._plugged, self._tuned)),
            strict=True,
        )
        return [
            replace(
                plugged,
                arrays={**plugged.arrays, EMULATED: tuned.arrays["probabilities"]},
                metrics={
                    **plugged.metrics,
                    **{f"emulator_{name}": tuned.metrics[name] for name in ("accuracy", "nll")},
                },
            )
            for plugged, tuned in pairs
        ]

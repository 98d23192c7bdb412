"""A client around `PromptTuningClient`, for methods that tell their prompts of the client, or hear from them."""

from collections.abc import Sequence

from clients.base import AbstractClient, Draws
from clients.inputs import Inputs
from clients.prompt_tuning import PromptTuningClient
from fedbayes.arrays import Arrays
from fedbayes.comm.messages import ClientRequest
from fedbayes.inference.settings import InferenceSettings
from fedbayes.optim.local_training import LocalTraining
from fedbayes.seeding import Streams
from fedbayes.simulation.client import ClientSetup


class AbstractWrappingClient(AbstractClient):
    """Has a client that tunes prompts; what is sent to that one and what it answers is the method's business.

    Args:
        setup: images, model and seed.
        personal: parts that never leave the client.
        inference: see `PromptTuningClient`.
        optim: the local training.

    Attributes:
        inner: tunes the prompts.
    """

    def __init__(
        self,
        *,
        setup: ClientSetup,
        personal: Sequence[str],
        inference: InferenceSettings,
        optim: LocalTraining,
    ) -> None:
        self.inner = PromptTuningClient(setup=setup, personal=personal, inference=inference, optim=optim)
        super().__init__(setup=setup, personal=personal, inputs=self.inner.inputs)

    def adapt(self, parameters: Sequence[Arrays], requests: Sequence[ClientRequest]) -> Sequence[Arrays]:
        """The parameters after the steps that are asked for, if any."""
        return self.inner.adapt(parameters, requests)

    def draw(self, inputs: Inputs, parameters: Sequence[Arrays], streams: Streams) -> Draws:
        """Prompts of each image."""
        return self.inner.draw(inputs, parameters, streams)

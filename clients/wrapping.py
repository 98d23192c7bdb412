"""A client around `PromptTuningClient`, for methods whose prompts depend on the client or tell the server something."""

from collections.abc import Sequence

from torch import Tensor

from clients.base import AbstractClient, Scores
from clients.inputs import Inputs
from clients.prompt_tuning import PromptTuningClient
from fedbayes.arrays import Arrays
from fedbayes.comm.messages import ClientRequest, ClientUpdate
from fedbayes.errors import ConfigError
from fedbayes.inference.settings import InferenceSettings
from fedbayes.models.prompts.base import AbstractPrompts
from fedbayes.models.prompts.coded import AbstractPosteriorPrompts
from fedbayes.optim.local_training import LocalTraining
from fedbayes.seeding import Streams
from fedbayes.simulation.client import ClientSetup


class AbstractWrappingClient(AbstractClient):
    """Has an `inner` client that tunes prompts; a method changes its requests and its replies.

    Args:
        setup: images, model and seed.
        personal: first parts of parameter names that never leave the client.
        inference: see `PromptTuningClient`.
        optim: the local training.
    """

    def __init__(
        self, *, setup: ClientSetup, personal: Sequence[str], inference: InferenceSettings, optim: LocalTraining
    ) -> None:
        self.inner = PromptTuningClient(setup=setup, personal=personal, inference=inference, optim=optim)
        super().__init__(setup=setup, personal=personal, inputs=self.inner.inputs)

    def train(self, requests: Sequence[ClientRequest]) -> list[ClientUpdate]:
        """Train as the inner client does."""
        return self.inner.train(requests)

    def adapt(self, parameters: Sequence[Arrays], requests: Sequence[ClientRequest]) -> Sequence[Arrays]:
        """Return the parameters after the inner client's steps, if there are any."""
        return self.inner.adapt(parameters, requests)

    def score(self, inputs: Inputs, parameters: Sequence[Arrays], streams: Streams) -> Scores:
        """Score as the inner client does."""
        return self.inner.score(inputs, parameters, streams)

    def _features(self, inputs: Inputs, part: slice = slice(None)) -> Tensor:
        """Return features of some images, `(C, B, d)`, by the plain prompts that the model holds."""
        prompts = self.model.generator.plain(inputs.z)
        prompts = prompts if prompts.shape[1] == 1 else prompts[:, part]
        return self.model.features(inputs.tokens[:, part], prompts)


def require_plain(generator: AbstractPrompts) -> None:
    """Raise ConfigError if prompts have a posterior."""
    if isinstance(generator, AbstractPosteriorPrompts):
        raise ConfigError(
            f"generator.kind={generator.kind} has a posterior over prompts, which this method does not learn; "
            "use fixed or deterministic."
        )

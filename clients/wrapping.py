"""A client around `PromptTuningClient`, for methods that tell their prompts of the client, or hear from them."""

from collections.abc import Sequence

from clients.base import AbstractClient
from clients.prompt_tuning import PromptTuningClient
from fedbayes.inference.fit import LocalTraining
from fedbayes.inference.settings import InferenceSettings
from fedbayes.site import Site


class AbstractWrappingClient(AbstractClient):
    """Has a client that tunes prompts; what is sent to that one and what it answers is the method's business.

    Args:
        site: images, model and seed.
        personal: parts that never leave the client.
        inference: see `PromptTuningClient`.
        optim: the local training.

    Attributes:
        inner: tunes the prompts.
    """

    def __init__(
        self,
        *,
        site: Site,
        personal: Sequence[str],
        inference: InferenceSettings,
        optim: LocalTraining,
    ) -> None:
        self.inner = PromptTuningClient(site=site, personal=personal, inference=inference, optim=optim)
        super().__init__(site=site, personal=personal, inputs=self.inner.inputs)

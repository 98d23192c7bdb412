"""A client around `PromptTuningClient`, for methods that tell their prompts of the client, or hear from them."""

from collections.abc import Sequence

from clients.base import AbstractClient
from clients.prompt_tuning import PromptTuningClient
from fedbayes.data.augment import Augment
from fedbayes.data.federated import FederatedData
from fedbayes.inference.fit import LocalTraining
from fedbayes.inference.settings import InferenceSettings
from fedbayes.models.prompted import PromptedViT


class AbstractWrappingClient(AbstractClient):
    """Has a client that tunes prompts; what is sent to that one and what it answers is the method's business.

    Args:
        data: see `AbstractClient`, like the arguments down to `personal`.
        model: the prompted ViT.
        augment: changes of training images.
        cache_mb: bound of the token cache.
        seed: of the run.
        personal: parts that never leave the client.
        inference: see `PromptTuningClient`.
        optim: the local training.

    Attributes:
        inner: tunes the prompts.
    """

    def __init__(
        self,
        *,
        data: FederatedData,
        model: PromptedViT,
        augment: Augment,
        cache_mb: float,
        seed: int,
        personal: Sequence[str],
        inference: InferenceSettings,
        optim: LocalTraining,
    ) -> None:
        super().__init__(data=data, model=model, augment=augment, cache_mb=cache_mb, seed=seed, personal=personal)
        self.inner = PromptTuningClient(
            data=data,
            model=model,
            augment=augment,
            cache_mb=cache_mb,
            seed=seed,
            personal=personal,
            inference=inference,
            optim=optim,
        )
        self.inputs = self.inner.inputs  # one cache for both

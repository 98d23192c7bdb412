"""What every client object is built on."""

from dataclasses import dataclass
from typing import final

from fedbayes.data.augment import Augment
from fedbayes.data.federated import FederatedData
from fedbayes.models.prompted import PromptedViT


@final
@dataclass(frozen=True, eq=False)
class Site:
    """Images, model and seed of the clients that one object plays.

    Attributes:
        data: everybody's images; a request says whose to use.
        model: the prompted ViT, whose trainable part is filled anew for each cohort.
        augment: random changes of training images.
        cache_mb: largest size of the cache of tokens, megabytes.
        seed: of the run; all draws are keyed by it.
    """

    data: FederatedData
    model: PromptedViT
    augment: Augment
    cache_mb: float
    seed: int

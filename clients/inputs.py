"""What goes into a cohort's forward pass: tokens and class features of its images, looked up or computed."""

import logging
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from fedbayes.data.augment import Augment
from fedbayes.data.federated import SPLITS, Batch, FederatedData
from fedbayes.errors import require_number
from fedbayes.inference.class_prior import ClassPriors
from fedbayes.models.prompted import PromptedViT
from fedbayes.seeding import Streams

log = logging.getLogger("fedbayes")
CHUNK = 256  # images per pass when many are computed at once


@final
@dataclass(frozen=True, eq=False)
class Inputs:
    """One padded batch of C clients, on the model's device."""

    tokens: Tensor  # as `PromptedViT.entering` gives them, (C, B, t, d)
    z: Tensor  # normalised class features, (C, B, d)
    labels: Tensor  # (C, B)
    mask: Tensor  # True where there is an image, (C, B)
    log_prior: Tensor | None = None  # of each client's classes, (C, 1, classes)

    @property
    def counts(self) -> list[int]:
        """Number of images of each client."""
        return self.mask.sum(1).tolist()

    def with_prior(self, scores: Tensor) -> Tensor:
        """Add the clients' log priors to class scores `(..., C, B, classes)`, if priors are used."""
        return scores if self.log_prior is None else scores + self.log_prior

    @property
    def weights(self) -> Tensor:
        """Weights of the images, see `image_weights`."""
        return image_weights(self.mask)


def image_weights(mask: Tensor) -> Tensor:
    """Return 1 / (the client's images), `(C, B)`, 0 in the padding; sums over B to 1, or to 0 without images."""
    return mask / mask.sum(1, keepdim=True).clamp(min=1)


@final
class InputSource:
    """Gives a batch its inputs; what depends on nothing learnt is computed once.

    Features, and tokens if they fit into `cache_mb` megabytes, are cached for all images of clients. With augmentation
    switched on, training images are new each time, so both are computed in each step.

    Raises:
        ConfigError: if `cache_mb` is out of range.
    """

    def __init__(
        self, data: FederatedData, model: PromptedViT, augment: Augment, cache_mb: float, priors: ClassPriors
    ) -> None:
        require_number("simulation.cache_mb", cache_mb, 0)
        self._data, self._model, self._augment, self.priors = data, model, augment, priors
        self._device = model.backbone.mean.device
        indices = [data.indices(partition, split) for partition in range(len(data)) for split in SPLITS]
        self._held = torch.cat(indices).unique()
        self._row = torch.zeros(len(data.images), dtype=torch.long)  # of an image in the caches
        self._row[self._held] = torch.arange(len(self._held))
        size = len(self._held) * model.entering_bytes / 2**20
        self._keep_tokens = size <= cache_mb
        if not self._keep_tokens:
            log.info("token cache of %.0f MB exceeds simulation.cache_mb=%g: tokens are computed again", size, cache_mb)
        self._tokens: Tensor | None = None
        self._z: Tensor | None = None

    def prepare(self) -> None:
        """Fill the caches: features of all clients' images, and their tokens if there is room."""
        if self._z is not None:
            return
        tokens, features = [], []
        for part in self._held.split(CHUNK):
            part_tokens, z = self._model.precompute(self._pixels(part))
            features.append(z)
            if self._keep_tokens:
                tokens.append(part_tokens)
        self._z = torch.cat(features)
        self._tokens = torch.cat(tokens) if self._keep_tokens else None

    def train(self, batch: Batch, streams: Streams) -> Inputs:
        """Return the inputs of a training batch, augmented at random if that is switched on."""
        if not self._augment.active:
            return self.plain(batch, training=True)
        pixels = self._pixels(batch.index).to(self._model.backbone.dtype)
        augmented = self._augment(pixels, batch.counts.tolist(), streams)
        return self._inputs(batch, *self._compute(augmented.flatten(0, 1)), training=True)

    def plain(self, batch: Batch, *, training: bool = False) -> Inputs:
        """Return the inputs of a batch without augmentation."""
        self.prepare()
        assert self._z is not None, "prepare has filled it"
        index = batch.index.flatten()
        rows = self._row[index]
        if self._tokens is None:
            tokens = torch.cat([self._model.entering(self._pixels(part)) for part in index.split(CHUNK)])
        else:
            tokens = self._tokens[rows]
        return self._inputs(batch, tokens, self._z[rows], training=training)

    def features(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the class features alone, `(C, B, d)`, and the images' weights."""
        self.prepare()
        assert self._z is not None, "prepare has filled it"
        z = self._z[self._row[batch.index.flatten()]].unflatten(0, batch.mask.shape)
        return z, image_weights(batch.mask).to(z)

    def of_images(self, images: Tensor, partition: int | None = None) -> Inputs:
        """Return the inputs of images outside the federation; labels are 0, the prior a client's or uniform."""
        zeros = torch.zeros(1, len(images), dtype=torch.long)
        counts = self._data.class_counts
        counts = torch.zeros_like(counts[:1]) if partition is None else counts[[partition]]
        batch = Batch(zeros, torch.ones(1, len(images), dtype=torch.bool), zeros, counts)
        return self._inputs(batch, *self._compute(images.to(self._device)))

    def _pixels(self, index: Tensor) -> Tensor:
        return self._data.images.images[index].to(self._device)

    def _compute(self, images: Tensor) -> tuple[Tensor, Tensor]:
        parts = [self._model.precompute(images[i : i + CHUNK]) for i in range(0, len(images), CHUNK)]
        return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])

    def _inputs(self, batch: Batch, tokens: Tensor, z: Tensor, *, training: bool = False) -> Inputs:
        shape = batch.mask.shape
        device = self._device
        log_prior = self.priors.of_counts(batch.class_counts, training=training)
        return Inputs(
            tokens.unflatten(0, shape),
            z.unflatten(0, shape),
            batch.labels.to(device),
            batch.mask.to(device),
            None if log_prior is None else log_prior.to(device),
        )

"""ScaleOT: the least important blocks give way to harmonizers [1].

As far as it is published, importance is learnt by a policy gradient while harmonizers are trained, and attention of the
blocks that stay may lose rank (selective rank compression). Details that the abstract leaves out follow an independent
reproduction: groups of four blocks, three sampled emulators for an update, harmonizers `x + U ReLU(D x)`.
`importance=leave_one_out` and `harmonizers=closed_form` are ours: nothing is trained.

[1] Yao, Zhang, Gao, Guan, Zheng, Wang. ScaleOT: Privacy-utility-scalable Offsite-tuning with Dynamic LayerReplace and
    Selective Rank Compression. AAAI 2025, arXiv 2412.09812.
"""

from collections.abc import Sequence
from typing import Any, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from fedbayes.errors import require_choice, require_number, require_whole
from fedbayes.models.backbone import FrozenViT
from fedbayes.models.emulators.base import Owner, require_keep, require_plain, set_low_rank
from fedbayes.models.emulators.compression import rank_of
from fedbayes.models.emulators.harmonizers import Harmonizer, closed_form
from fedbayes.models.emulators.importance import leave_one_out, policy_step, sample_kept
from fedbayes.models.emulators.statistics import LEAST, PIECE, fit_probe, normalised_features
from fedbayes.models.emulators.uniform import kept_blocks
from fedbayes.seeding import generator

IMAGES = 128  # of the owner, that leave-one-out looks at
SAMPLED = 3  # emulators for an update of the importance


@final
class ScaleOT:
    """Replaces the least important blocks below `start` by harmonizers.

    Args:
        keep: share of the blocks that stay; harmonizers come on top.
        importance: `leave_one_out` (the error of the tokens at `start` without a block) or `policy`, as published.
        harmonizers: `closed_form` (a linear regression of each block) or `trained`, as published.
        rank: of a harmonizer.
        ridge: of the regressions, in units of the mean square of the tokens.
        attention: share of the numbers of attention's matrices that stay in the other blocks, by SVD; 1 for all.
        steps: of training, where something is trained.
        lr: of harmonizers, by AdamW.
        rate: of the importance.

    Raises:
        ConfigError: if a value is out of range.
    """

    def __init__(
        self,
        *,
        keep: float,
        importance: str,
        harmonizers: str,
        rank: int,
        ridge: float,
        attention: float,
        steps: int,
        lr: float,
        rate: float,
    ) -> None:
        self._keep = require_keep(keep)
        self._by_policy = require_choice("emulator.importance", importance, ("leave_one_out", "policy")) == "policy"
        forms = ("closed_form", "trained")
        self._is_trained = require_choice("emulator.harmonizers", harmonizers, forms) == "trained"
        self._rank = require_whole("emulator.rank", rank, 1)
        self._ridge = require_number("emulator.ridge", ridge, 0, open_low=True)
        self._attention = require_number("emulator.attention", attention, 0, 1, open_low=True)
        self._steps = require_whole("emulator.steps", steps, 1)
        self._lr = require_number("emulator.lr", lr, 0, open_low=True)
        self._rate = require_number("emulator.rate", rate, 0, open_low=True)

    def __call__(self, *, backbone: FrozenViT, start: int, owner: Owner) -> Sequence[nn.Module]:
        """Return the blocks that stay, and harmonizers in the place of the others."""
        blocks: list[nn.Module] = list(backbone.blocks[:start])
        if count := start - kept_blocks(self._keep, start):
            for index, harmonizer in self._harmonizers(backbone, start, owner, count).items():
                blocks[index] = harmonizer
        if self._attention < 1:
            require_plain(backbone, start, "scaleot")
            for block in blocks:
                if not isinstance(block, Harmonizer):
                    self._truncate(block)
        return blocks

    def _harmonizers(self, backbone: FrozenViT, start: int, owner: Owner, count: int) -> dict[int, nn.Module]:
        """Return what stands in the place of the `count` blocks that matter least, by their indices."""
        training = None
        if self._by_policy or self._is_trained:
            owner.require("scaleot", LEAST)
            training = _Training(backbone, start, owner, self._rank, self._lr)
        owner.require("scaleot")
        images = owner.images[:IMAGES].to(backbone.mean.device)
        if self._by_policy and training is not None:
            importance = training.importance(self._steps, self._rate)
        else:
            importance = leave_one_out(backbone, images, start)
        dropped = sorted(importance.argsort(stable=True)[:count].tolist())
        if training is None or not self._is_trained:
            return _regressed(backbone, images, start, dropped, self._rank, self._ridge)
        if not self._by_policy:
            stays = torch.tensor([index not in dropped for index in range(start)])
            for _ in range(self._steps):
                training.step(stays)
        return {index: training.harmonizers[index] for index in dropped}

    @torch.no_grad()
    def _truncate(self, block: Any) -> None:
        """Compress the attention of a block by plain SVD, in place."""
        for linear in (block.attn.qkv, block.attn.proj):
            rank = rank_of(linear.weight.shape, self._attention)
            u, sigma, vh = torch.linalg.svd(linear.weight.double(), full_matrices=False)
            set_low_rank(linear, u[:, :rank] * sigma[:rank], vh[:rank])


@torch.no_grad()
def _regressed(
    backbone: FrozenViT, images: Tensor, start: int, dropped: Sequence[int], rank: int, ridge: float
) -> dict[int, nn.Module]:
    """Return a regression of each dropped block of the full ViT on the emulator's tokens, block after block."""
    harmonizers: dict[int, nn.Module] = {}
    x = full = backbone.embed(images, 0)
    for index, block in enumerate(backbone.blocks[:start]):
        full = block(full)
        if index in dropped:
            harmonizers[index] = closed_form(x.flatten(0, 1), full.flatten(0, 1), rank, ridge)
        x = harmonizers.get(index, block)(x)
    return harmonizers


@final
class _Training:
    """Trains a harmonizer for each block, in whatever emulator is sampled, by the owner's labels through a probe."""

    def __init__(self, backbone: FrozenViT, start: int, owner: Owner, rank: int, lr: float) -> None:
        device = backbone.mean.device
        self._backbone, self._start = backbone, start
        self._images, self._labels = owner.images.to(device), owner.labels.to(device)
        z = torch.cat([normalised_features(backbone, part) for part in self._images.split(PIECE)])
        self._probe = fit_probe(z, self._labels, owner.classes, owner.seed)
        self._rng = generator(owner.seed, "owner's batches")
        self.harmonizers = nn.ModuleList(
            Harmonizer(backbone.dim, rank, is_linear=False, rng=self._rng) for _ in range(start)
        ).to(device)
        self._optimiser = torch.optim.AdamW(self.harmonizers.parameters(), lr=lr)

    def batch(self) -> tuple[Tensor, Tensor]:
        """Return images and labels, sampled anew."""
        ids = torch.randperm(len(self._images), generator=self._rng)[:PIECE]
        return self._images[ids], self._labels[ids]

    def loss(self, stays: Bool[Tensor, " blocks"], images: Tensor, labels: Tensor) -> Tensor:
        """Return the probe's NLL of the emulator in which these blocks stay."""
        x = self._backbone.embed(images, 0)
        for index in range(self._backbone.depth - 1):
            is_raw = index >= self._start or bool(stays[index])
            x = self._backbone.block(index, x) if is_raw else self.harmonizers[index](x)
        feature = self._backbone.last(x)
        return F.cross_entropy(self._probe.scores(F.layer_norm(feature, feature.shape[-1:])), labels)

    def importance(self, steps: int, rate: float) -> Float[Tensor, " blocks"]:
        """Return the importance of blocks after so many updates; harmonizers are trained along."""
        importance = torch.zeros(self._start, dtype=torch.float64)
        for _ in range(steps):
            self.step(sample_kept(importance, self._rng))
            sampled = [sample_kept(importance, self._rng) for _ in range(SAMPLED)]
            batch = self.batch()
            with torch.no_grad():
                losses = [float(self.loss(stays, *batch)) for stays in sampled]
            importance = policy_step(importance, sampled, losses, rate)
        return importance

    @torch.enable_grad()
    def step(self, stays: Bool[Tensor, " blocks"]) -> None:
        """Train the harmonizers of the blocks that do not stay, for one batch."""
        self._optimiser.zero_grad()
        self.loss(stays, *self.batch()).backward()
        self._optimiser.step()

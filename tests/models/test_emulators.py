"""Emulators: blocks in the place of the lower ones of a ViT, and their sizes."""

import pytest
import torch
from torch import nn

from fedbayes.errors import ConfigError
from fedbayes.models.emulators.base import Owner, emulate, set_low_rank, size
from fedbayes.models.emulators.uniform import UniformEmulator, kept_blocks, spread
from fedbayes.models.zoo import shipped

NOBODY = Owner(torch.zeros(0, 3, 32, 32, dtype=torch.uint8), torch.zeros(0, dtype=torch.long), 10, 0)
IMAGES = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("blocks", "count", "chosen"),
    [(8, 6, {0, 1, 3, 4, 6, 7}), (8, 4, {0, 2, 5, 7}), (2, 1, {0}), (8, 8, set(range(8)))],
)
def test_an_even_choice_is_that_of_offsite_tuning(blocks, count, chosen):
    assert spread(blocks, count) == chosen


@pytest.mark.parametrize(("keep", "blocks", "count"), [(0.75, 8, 6), (0.75, 2, 1), (1.0, 8, 8), (0.7, 10, 7)])
def test_no_more_is_kept_than_asked_for(keep, blocks, count):
    assert kept_blocks(keep, blocks) == count


def test_nothing_kept_is_rejected():
    with pytest.raises(ConfigError, match=r"emulator\.keep"):
        kept_blocks(0.3, 2)


def test_dropped_blocks_are_passed_over_and_nothing_is_shared_with_the_full_vit():
    backbone = shipped(32)
    emulator = emulate(UniformEmulator(keep=0.75, distil_steps=0, distil_lr=1e-4), backbone, 2, NOBODY)
    blocks = backbone.vit.blocks
    torch.testing.assert_close(emulator.backbone.embed(IMAGES, 2), backbone.embed(IMAGES, 1), rtol=0, atol=0)
    assert emulator.full_size == 2 * emulator.size == sum(p.numel() for p in blocks[:2].parameters())
    assert emulator.total == sum(p.numel() for p in backbone.vit.parameters()) - emulator.size
    pointers = {parameter.data_ptr() for parameter in backbone.parameters()}
    assert not pointers & {parameter.data_ptr() for parameter in emulator.backbone.parameters()}


def test_a_matrix_of_low_rank_counts_its_factors_where_they_are_smaller():
    linear = nn.Linear(8, 6)
    set_low_rank(linear, torch.randn(6, 2), torch.randn(2, 8))
    assert torch.linalg.matrix_rank(linear.weight) == 2
    assert size(linear) == 2 * (8 + 6) + 6
    set_low_rank(linear, torch.randn(6, 4), torch.randn(4, 8))  # 4 (8 + 6) = 56 > 48
    assert size(linear) == 8 * 6 + 6

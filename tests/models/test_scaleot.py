"""ScaleOT: which blocks matter, harmonizers in their place, and distillation, against numbers by hand."""

import pytest
import torch
from torch import nn

from fedbayes.errors import ConfigError
from fedbayes.models.backbone import FrozenViT
from fedbayes.models.emulators.base import Owner, emulate, size
from fedbayes.models.emulators.harmonizers import Harmonizer, closed_form
from fedbayes.models.emulators.importance import leave_one_out, policy_step, sample_kept
from fedbayes.models.emulators.scaleot import ScaleOT
from fedbayes.models.emulators.uniform import UniformEmulator, distillation_loss
from fedbayes.models.zoo import shipped

DEFAULTS = {
    "keep": 0.75,
    "importance": "leave_one_out",
    "harmonizers": "closed_form",
    "rank": 16,
    "ridge": 1e-3,
    "attention": 1.0,
    "steps": 3,
    "lr": 1e-3,
    "rate": 10.0,
}


def owner(count=48):
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 10
    patterns = 128 * torch.rand(10, 3, 32, 32, generator=rng)
    images = torch.randint(0, 100, (count, 3, 32, 32), generator=rng) + patterns[labels]
    return Owner(images.to(torch.uint8), labels, 10, 0)


def test_a_fresh_harmonizer_drops_the_block_to_the_bit_and_can_learn():
    harmonizer = Harmonizer(8, 4, is_linear=False)
    x = torch.randn(2, 3, 8)
    assert torch.equal(harmonizer(x), x)
    harmonizer(x).square().sum().backward()
    assert float(harmonizer.up.weight.grad.abs().sum()) > 0


def test_a_linear_block_of_that_rank_is_recovered():
    x, c = torch.randn(200, 6), torch.randn(6)
    b = torch.randn(6, 2) @ torch.randn(2, 6)
    harmonizer = closed_form(x, x + x @ b + c, 2, 1e-12)
    torch.testing.assert_close(harmonizer(x), x + x @ b + c, rtol=1e-5, atol=1e-5)


def test_the_residual_is_the_tail_of_the_regression():
    x, difference = torch.randn(100, 5).double(), torch.randn(100, 5).double()
    difference = difference - difference.mean(0)
    x = x - x.mean(0)
    fitted = x @ torch.linalg.lstsq(x, difference).solution
    singular = torch.linalg.svdvals(fitted)
    for rank in range(1, 6):
        harmonizer = closed_form(x, x + difference, rank, 1e-13).double()
        residual = float((harmonizer(x) - x - difference).detach().square().sum())
        expected = float((difference - fitted).square().sum() + singular[rank:].square().sum())
        assert residual == pytest.approx(expected, rel=1e-5)


def test_sampling_keeps_half_of_each_group():
    rng = torch.Generator().manual_seed(0)
    for blocks, halves in ((8, (2, 2)), (6, (2, 1)), (5, (2, 1)), (3, (2,))):
        stays = [part.sum().item() for part in sample_kept(torch.zeros(blocks).double(), rng).split(4)]
        assert tuple(stays) == halves


def test_an_important_block_stays_more_often():
    rng = torch.Generator().manual_seed(0)
    importance = torch.tensor([4.0, 0, 0, 0]).double()
    stays = torch.stack([sample_kept(importance, rng) for _ in range(500)]).double().mean(0)
    assert float(stays[0]) > 0.65 > float(stays[1:].max())


def test_an_update_by_hand():
    importance = torch.tensor([0.0, 0.0]).double()
    stays = [torch.tensor([True, False]), torch.tensor([False, True])]
    losses = [0.0, float(torch.tensor(2.0).log())]  # exp(-L): 1 and 1/2, rewards 1/4 and -1/4
    updated = policy_step(importance, stays, losses, rate=8.0)
    torch.testing.assert_close(updated, torch.tensor([0.5, -0.5]).double())


def identities_but(index):
    """A ViT of ten blocks; of the lower eight all but one give back what they get."""
    from timm.models.vision_transformer import VisionTransformer

    vit = VisionTransformer(img_size=8, patch_size=4, embed_dim=16, depth=10, num_heads=2, num_classes=0)
    with torch.no_grad():
        for i, block in enumerate(vit.blocks[:8]):
            for layer in (block.attn.proj, block.mlp.fc2):
                layer.weight.mul_(20) if i == index else layer.weight.zero_()
                layer.bias.zero_()
    return FrozenViT(vit, "small", (0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize("seed", range(20))
def test_the_one_block_that_does_something_matters_most(seed):
    torch.manual_seed(seed)
    index = seed % 8
    images = torch.randint(0, 256, (16, 3, 8, 8), dtype=torch.uint8)
    errors = leave_one_out(identities_but(index), images, 8)
    assert int(errors.argmax()) == index
    assert float(errors.sort().values[-2]) == 0
    rng, importance = torch.Generator().manual_seed(seed), torch.zeros(8).double()
    for _ in range(40):
        stays = [sample_kept(importance, rng) for _ in range(3)]
        importance = policy_step(importance, stays, [0.1 if k[index] else 1.0 for k in stays], rate=10.0)
    assert int(importance.argmax()) == index


def test_a_block_that_does_nothing_is_dropped_first_and_costs_nothing():
    torch.manual_seed(0)
    backbone = identities_but(3)
    images = torch.randint(0, 256, (16, 3, 8, 8), dtype=torch.uint8)
    nobody = Owner(images, torch.zeros(16, dtype=torch.long), 2, 0)
    emulator = emulate(ScaleOT(**{**DEFAULTS, "keep": 0.5, "rank": 2}), backbone, 8, nobody)
    assert [isinstance(block, Harmonizer) for block in emulator.backbone.vit.blocks[:8]].count(True) == 4
    assert not isinstance(emulator.backbone.vit.blocks[3], Harmonizer)
    torch.testing.assert_close(emulator.backbone.features(images), backbone.features(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("importance", ["leave_one_out", "policy"])
@pytest.mark.parametrize("harmonizers", ["closed_form", "trained"])
def test_every_form_has_the_size_that_is_counted_and_is_the_same_each_time(importance, harmonizers):
    backbone = shipped(32)
    make = ScaleOT(**{**DEFAULTS, "importance": importance, "harmonizers": harmonizers})
    emulator, again = (emulate(make, backbone, 2, owner()) for _ in range(2))
    assert emulator.size == emulator.full_size // 2 + 16 * 2 * 96 + 96
    for parameter, other in zip(emulator.backbone.parameters(), again.backbone.parameters(), strict=True):
        assert torch.equal(parameter, other)
        assert not parameter.requires_grad


def test_trained_harmonizers_have_learnt_and_blocks_that_stay_have_not():
    backbone = shipped(32)
    make = ScaleOT(**{**DEFAULTS, "harmonizers": "trained"})
    blocks = emulate(make, backbone, 2, owner()).backbone.vit.blocks
    (index,) = (i for i in range(2) if isinstance(blocks[i], Harmonizer))
    assert float(blocks[index].up.weight.abs().sum()) > 0
    assert torch.equal(blocks[1 - index].attn.qkv.weight, backbone.vit.blocks[1 - index].attn.qkv.weight)


def test_attention_of_the_blocks_that_stay_loses_rank():
    backbone = shipped(32)
    emulator = emulate(ScaleOT(**{**DEFAULTS, "attention": 0.5}), backbone, 2, owner())
    (block,) = (b for b in emulator.backbone.vit.blocks[:2] if not isinstance(b, Harmonizer))
    weight = block.attn.proj.weight
    assert torch.linalg.matrix_rank(weight.double(), rtol=1e-5) == 24  # half of 96 x 96 in two factors
    assert size(block) == size(backbone.vit.blocks[0]) - 96 * 96 // 2 - (288 * 96 - 36 * 384)


def test_distillation_by_hand():
    teacher, student = torch.tensor([[1.0, 1.0], [1.0, 1.0]]), torch.tensor([[1.0, 0.0], [1.0, 3.0]])
    assert float(distillation_loss(teacher, student)) == 1.25
    assert float(distillation_loss(3 * teacher, 3 * student)) == pytest.approx(1.25)
    assert float(distillation_loss(teacher, teacher)) == 0


def test_a_distilled_emulator_is_nearer_to_the_full_vit():
    backbone, images = shipped(32), owner()
    errors = []
    for steps in (0, 10):
        make = UniformEmulator(keep=0.75, distil_steps=steps, distil_lr=1e-3)
        tokens = emulate(make, backbone, 2, images).backbone.embed(images.images, 2)
        errors.append(float(distillation_loss(backbone.embed(images.images, 2), tokens)))
    assert errors[1] < 0.9 * errors[0]


@pytest.mark.parametrize(
    ("count", "changes", "place"),
    [
        (0, {}, r"owner\.images=0"),
        (20, {"harmonizers": "trained"}, r"owner\.images=20"),
        (48, {"rank": 0}, r"emulator\.rank"),
        (48, {"importance": "magic"}, r"emulator\.importance"),
    ],
)
def test_what_cannot_work_is_rejected_by_name(count, changes, place):
    with pytest.raises(ConfigError, match=place):
        emulate(ScaleOT(**{**DEFAULTS, **changes}), shipped(32), 2, owner(count))


def test_with_everything_kept_nothing_is_replaced():
    backbone = shipped(32)
    emulator = emulate(ScaleOT(**{**DEFAULTS, "keep": 1}), backbone, 2, owner())
    assert not any(isinstance(block, Harmonizer) for block in emulator.backbone.vit.blocks)
    assert isinstance(emulator.backbone.vit, nn.Module)
    assert emulator.size == emulator.full_size

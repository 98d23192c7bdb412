"""Frozen means frozen: without prompts timm's own features, with prompts what whole timm blocks would give."""

import pytest
import timm
import torch
from torch import Tensor, nn

from fedbayes.errors import BackboneError
from fedbayes.models.backbone import FrozenViT
from fedbayes.models.zoo import load_weights, shipped

MEAN, STD = (0.375, 0.5, 0.625), (0.25, 0.375, 0.5)
VARIANTS = {
    "plain": {},
    "layer scale": {"init_values": 0.5},
    "normed queries and keys": {"qk_norm": True},
    "no qkv bias": {"qkv_bias": False},
    "normed attention and mlp": {"scale_attn_norm": True, "scale_mlp_norm": True},
    "norm after pooling": {"fc_norm": True},
    "norm before the blocks": {"pre_norm": True},
    "no position for the class token": {"no_embed_class": True},
    "dropout everywhere": {"drop_rate": 0.5, "attn_drop_rate": 0.5, "proj_drop_rate": 0.5, "drop_path_rate": 0.5},
}


def normalised(images: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    mean, std = (torch.tensor(v, dtype=dtype).view(1, 3, 1, 1) for v in (MEAN, STD))
    return (images.to(dtype) / 255 - mean) / std


def pre_head(vit: nn.Module, pixels: Tensor) -> Tensor:
    """What timm calls the features of an image."""
    with torch.no_grad():
        return vit.forward_head(vit.forward_features(pixels), pre_logits=True)


def by_whole_blocks(vit: nn.Module, pixels: Tensor, prompts: Tensor, start: int) -> Tensor:
    """VPT written down plainly: all tokens through all of every block, prompts put in and replaced behind the class."""
    x = vit.norm_pre(vit._pos_embed(vit.patch_embed(pixels)))
    patches = x.shape[1] - 1
    for b, block in enumerate(vit.blocks):
        if 0 <= b - start < prompts.shape[1]:
            x = torch.cat([x[:, :1], prompts[:, b - start], x[:, -patches:]], dim=1)
        x = block(x)
    return vit.fc_norm(vit.norm(x)[:, 0])


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_without_prompts_it_gives_timms_features(random_vit, images, options):
    vit = random_vit(**options)
    frozen = FrozenViT(vit, "small", MEAN, STD).double().train()
    expected = pre_head(vit, normalised(images(4, 16)))
    torch.testing.assert_close(frozen.features(images(4, 16)), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_the_shipped_backbone_and_a_vit_of_timms_give_timms_features(images, dtype, tolerance):
    frozen = shipped(32).to(dtype)
    pixels = (images(4, 32).to(dtype) / 255 - frozen.mean) / frozen.std
    torch.testing.assert_close(frozen.features(images(4, 32)), pre_head(frozen.vit, pixels), rtol=0, atol=tolerance)
    assert frozen.dtype == dtype
    vit = timm.create_model("vit_tiny_patch16_224", pretrained=False, img_size=64, num_classes=7)
    frozen = FrozenViT(vit, "tiny", MEAN, STD).to(dtype)
    expected = pre_head(vit, normalised(images(2, 64), dtype))
    torch.testing.assert_close(frozen.features(images(2, 64)), expected, rtol=0, atol=tolerance)
    assert (frozen.dim, frozen.depth, frozen.image_size, frozen.num_tokens) == (192, 12, 64, 17)


@pytest.mark.parametrize("piece", [1, 17 * 24 * 3, 2**30])
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_images_in_pieces_are_as_all_at_once(random_vit, images, monkeypatch, options, piece):
    frozen = FrozenViT(random_vit(**options), "small", MEAN, STD).double()
    prompts = torch.randn(4, 1, 2, 24, dtype=torch.float64, requires_grad=True)
    tokens, probe = frozen.embed(images(4, 16), 1), torch.randn(4, 24, dtype=torch.float64)
    whole = by_whole_blocks(frozen.vit, normalised(images(4, 16)), prompts, 1)
    monkeypatch.setattr("fedbayes.models.backbone.PIECE", piece)
    got = frozen(tokens, prompts, 1)
    torch.testing.assert_close(got, whole, rtol=0, atol=1e-10)
    gradients = [torch.autograd.grad((out * probe).sum(), prompts)[0] for out in (got, whole)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-9)


def test_weights_that_change_are_folded_anew(random_vit, images):
    frozen = FrozenViT(random_vit(), "small", MEAN, STD).double()
    before = frozen.features(images(2, 16))
    load_weights(frozen.vit, {k: 1.5 * v for k, v in frozen.vit.state_dict().items()}, "file.pth")
    after = frozen.features(images(2, 16))
    torch.testing.assert_close(after, pre_head(frozen.vit, normalised(images(2, 16))), rtol=0, atol=1e-10)
    assert not torch.allclose(after, before)
    frozen.float()
    expected = pre_head(frozen.vit, normalised(images(2, 16), torch.float32))
    torch.testing.assert_close(frozen.features(images(2, 16)), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("start", [0, 1, 2])
@pytest.mark.parametrize("depth", ["shallow", "deep"])
@pytest.mark.parametrize("options", [{}, {"init_values": 0.5, "qk_norm": True}], ids=["plain", "scaled and normed"])
def test_prompts_enter_as_through_whole_blocks(random_vit, images, start, depth, options):
    vit = random_vit(**options)
    frozen = FrozenViT(vit, "small", MEAN, STD).double()
    blocks = 3 - start if depth == "deep" else 1
    prompts = torch.randn(4, blocks, 2, 24, dtype=torch.float64, requires_grad=True)
    cached = frozen.embed(images(4, 16), start)
    got = frozen(cached, prompts, start)
    expected = by_whole_blocks(vit, normalised(images(4, 16)), prompts, start)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)
    probe = torch.randn_like(got)
    gradients = [torch.autograd.grad((out * probe).sum(), prompts)[0] for out in (got, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-9)
    assert gradients[0].flatten(2).norm(dim=2).min() > 0


def test_neither_cached_tokens_nor_floating_pixels_change_a_feature(random_vit, images):
    frozen = FrozenViT(random_vit(), "small", MEAN, STD).double()
    for start in range(4):
        feature = frozen(frozen.embed(images(4, 16), start), None, start)
        torch.testing.assert_close(feature, frozen.features(images(4, 16)), rtol=0, atol=1e-10)
    torch.testing.assert_close(frozen.features(images(2, 16).double()), frozen.features(images(2, 16)))


def test_no_backbone_parameter_learns_and_the_mode_stays(random_vit, images):
    frozen = FrozenViT(random_vit(drop_path_rate=0.5), "small", MEAN, STD).double()
    assert frozen.train() is frozen
    nn.Sequential(frozen).train()
    assert not any(module.training for module in frozen.modules())
    before = {name: value.clone() for name, value in frozen.state_dict().items()}
    prompts = torch.randn(2, 1, 2, 24, dtype=torch.float64, requires_grad=True)
    frozen(frozen.embed(images(2, 16), 0), prompts, 0).square().sum().backward()
    assert prompts.grad.abs().amin(dim=-1).gt(0).all()  # every prompt of every image learns
    assert all(p.grad is None and not p.requires_grad for p in frozen.parameters())
    assert all(torch.equal(value, before[name]) for name, value in frozen.state_dict().items())


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"global_pool": ""}, "no pooling"),
        ({"img_size": 18}, "data.image_size=18 is not a multiple of 4"),
    ],
)
def test_a_vit_that_prompts_would_not_fit_is_refused_by_name(random_vit, options, reason):
    with pytest.raises(BackboneError, match=reason) as error:
        FrozenViT(random_vit(**options), "my_vit", MEAN, STD)
    assert "backbone.name=my_vit" in str(error.value)


def test_other_architectures_are_refused_by_name():
    with pytest.raises(BackboneError, match=r"backbone\.name=net is a Linear"):
        FrozenViT(nn.Linear(2, 2), "net", MEAN, STD)


def test_a_checkpoint_of_the_same_size_is_taken_over_exactly_and_its_head_ignored(random_vit):
    saved = random_vit(num_classes=5).state_dict()
    vit = random_vit(init_values=None)
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.zero_()
    load_weights(vit, saved, "file.pth")
    assert all(torch.equal(value, saved[name]) for name, value in vit.state_dict().items())


def test_position_embeddings_of_another_size_are_resampled(random_vit):
    saved = random_vit().state_dict()
    larger = random_vit(img_size=24)
    load_weights(larger, saved, "file.pth")
    assert larger.pos_embed.shape == (1, 37, 24)
    torch.testing.assert_close(larger.pos_embed[:, 0], saved["pos_embed"][:, 0])
    # Bicubic with antialiasing, over the 4 x 4 grid of patches; the class token has no place in it.
    grid = saved["pos_embed"][:, 1:].view(1, 4, 4, 24).permute(0, 3, 1, 2)
    resampled = nn.functional.interpolate(grid.float(), (6, 6), mode="bicubic", antialias=True).double()
    torch.testing.assert_close(larger.pos_embed[:, 1:], resampled.flatten(2).transpose(1, 2), rtol=0, atol=1e-5)
    flat = {**saved, "pos_embed": torch.full_like(saved["pos_embed"], 0.5)}
    load_weights(larger, flat, "file.pth")
    torch.testing.assert_close(larger.pos_embed, torch.full_like(larger.pos_embed, 0.5), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda state: {**state, "norm.weight": torch.ones(7)},
        lambda state: {name: value for name, value in state.items() if name != "norm.weight"},
        lambda state: {**state, "surplus": torch.ones(1)},
        lambda state: {**state, "norm.weight": "text"},
        lambda state: {"model": "text"},
        lambda state: {},
    ],
    ids=["shape", "missing", "surplus", "no tensor", "text", "empty"],
)
def test_a_checkpoint_that_does_not_fit_is_refused(random_vit, spoil):
    vit = random_vit()
    with pytest.raises(BackboneError, match=r"backbone\.checkpoint=file\.pth does not fit VisionTransformer"):
        load_weights(vit, spoil(vit.state_dict()), "file.pth")

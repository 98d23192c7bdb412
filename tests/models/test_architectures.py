"""Every family of ViTs: without prompts timm's own features, with prompts what its attention gives, written down."""

import pytest
import timm
import torch
from timm.models.beit import Beit
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import ParallelScalingBlock, ResPostBlock, VisionTransformer
from torch import Tensor, nn

from fedbayes.errors import BackboneError
from fedbayes.models.backbone import FrozenViT
from fedbayes.models.zoo import from_timm, load_weights, require_model

SIZES = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": 0}
MEAN, STD = (0.5,) * 3, (0.25,) * 3
ROTARY = {"use_rot_pos_emb": True}
FAMILIES = {
    "registers": (VisionTransformer, {"reg_tokens": 4, "init_values": 0.5, "no_embed_class": True}),
    "mean": (VisionTransformer, {"class_token": False, "global_pool": "avg"}),
    "mean beside a class token": (VisionTransformer, {"global_pool": "avg", "fc_norm": True}),
    "attention pooling": (VisionTransformer, {"class_token": False, "global_pool": "map"}),
    "registers and maximum": (VisionTransformer, {"class_token": False, "reg_tokens": 2, "global_pool": "max"}),
    "post-norm": (VisionTransformer, {"block_fn": ResPostBlock, "init_values": 0.5}),
    "parallel": (VisionTransformer, {"block_fn": ParallelScalingBlock}),
    "distilled": (VisionTransformerDistilled, {}),
    "EVA": (Eva, {"global_pool": "avg"}),
    "EVA-02": (Eva, {"swiglu_mlp": True, "scale_mlp": True, "qkv_fused": False, **ROTARY}),
    "DINOv3": (Eva, {"rope_type": "dinov3", "num_reg_tokens": 4, "dynamic_img_size": True, "use_abs_pos_emb": False,
                     "attn_type": "rope", "rope_rotate_half": True, **ROTARY}),
    "rotation of each block": (Eva, {"rope_type": "mixed", "global_pool": "token", **ROTARY}),
    "rotary, pooled by attention": (Eva, {"global_pool": "map", "class_token": False, **ROTARY}),
    "rotary, post-norm": (Eva, {"use_post_norm": True, **ROTARY}),
    "BEiT": (Beit, {"use_rel_pos_bias": True, "use_abs_pos_emb": False, "init_values": 0.1, "qkv_bias": True}),
    "BEiT, shared positions": (Beit, {"use_shared_rel_pos_bias": True, "global_pool": "token"}),
}  # fmt: skip


def small(family: str, **options: object) -> nn.Module:
    kind, settings = FAMILIES[family]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        vit = kind(**{**SIZES, **settings, **options}).eval()
        with torch.no_grad():
            for parameter in vit.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return vit


def pre_head(frozen: FrozenViT, vit: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return vit.forward_head(vit.forward_features(frozen.normalised(images)), pre_logits=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_without_prompts_it_gives_timms_features(images, family):
    vit, pixels = small(family), images(4, 16)
    frozen = FrozenViT(vit, "small", MEAN, STD)
    expected = pre_head(frozen, vit, pixels)
    for start in range(4):
        got = frozen(frozen.embed(pixels, start), None, start)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(frozen.from_pixels(pixels, {}), expected, rtol=0, atol=1e-5)
    assert expected.std(0).min() > 1e-3, "images differ, so features that ignore them would not pass"


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_enter_behind_the_prefix_and_learn(images, family):
    vit = small(family).double()
    frozen = FrozenViT(vit, "small", MEAN, STD).double()
    pixels = images(2, 16)
    prompts = torch.randn(2, 2, 2, 24, dtype=torch.float64, requires_grad=True)
    tokens = frozen.embed(pixels, 1)
    got = frozen(tokens, prompts, 1)
    x, prefix = tokens, frozen.prefix
    for index in (1, 2):
        x = torch.cat([x[:, :prefix], prompts[:, index - 1], x[:, -16:]], 1)
        x = frozen.architecture.block(vit, index, x, 2)
    expected = vit.forward_head(vit.norm(torch.cat([x[:, :prefix], x[:, -16:]], 1)), pre_logits=True)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)
    probe = torch.randn_like(got)
    gradients = [torch.autograd.grad((out * probe).sum(), prompts)[0] for out in (got, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-10)
    assert gradients[0].norm(dim=-1).min() > 0


@pytest.mark.parametrize("family", [name for name, (_, options) in FAMILIES.items() if "use_rot_pos_emb" in options])
def test_rotary_blocks_rotate_patches_alone(family):
    """timm itself leaves the first `num_prefix_tokens` of a sequence as they are."""
    vit = small(family)
    frozen = FrozenViT(vit, "small", MEAN, STD)
    x = torch.randn(2, frozen.num_tokens + 3, 24, generator=torch.Generator().manual_seed(0))
    got = frozen.architecture.block(vit, 1, x, 3)
    longer = small(family)
    for block in longer.blocks:
        block.attn.num_prefix_tokens += 3
    expected = frozen.architecture.block(longer, 1, x, 0)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["BEiT", "BEiT, shared positions"])
def test_a_prompt_like_the_class_token_stands_where_it_does(family):
    """Two copies of the class token beside it: every row is as if its attention to the class token were threefold."""
    vit = small(family)
    frozen = FrozenViT(vit, "small", MEAN, STD)
    x = torch.randn(2, 17, 24, generator=torch.Generator().manual_seed(0))
    doubled = torch.cat([x[:, :1].expand(-1, 3, -1), x[:, 1:]], 1)
    got = frozen.architecture.block(vit, 1, doubled, 2)
    torch.testing.assert_close(got[:, 0], got[:, 1])
    torch.testing.assert_close(got[:, 0], got[:, 2])
    table = vit.rel_pos_bias if vit.rel_pos_bias is not None else vit.blocks[1].attn
    with torch.no_grad():  # the last three entries: class to patch, patch to class, class to class
        table.relative_position_bias_table[-2:] += torch.tensor(3.0).log()
    expected = frozen.architecture.block(vit, 1, x, 0)
    torch.testing.assert_close(got[:, 2:], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["registers", "attention pooling", "EVA-02", "DINOv3", "BEiT"])
def test_weights_of_a_file_are_taken_over_also_at_another_size(images, family):
    saved = small(family)
    vit = small(family, depth=3)
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.zero_()
    load_weights(vit, saved.state_dict(), "file.pth")
    frozen = FrozenViT(vit, "small", MEAN, STD)
    torch.testing.assert_close(
        frozen.features(images(2, 16)), pre_head(frozen, saved, images(2, 16)), rtol=0, atol=1e-5
    )
    larger = small(family, img_size=24)
    load_weights(larger, saved.state_dict(), "file.pth")
    assert FrozenViT(larger, "large", MEAN, STD).features(images(2, 24)).shape == (2, 24)


@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224", "convnext_tiny"])
def test_other_architectures_are_refused_before_weights_are_asked_for(monkeypatch, name):
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: pytest.fail("it is built"))
    with pytest.raises(BackboneError, match=rf"backbone\.name={name} is of timm's family"):
        require_model(name, 32)


def test_random_weights_are_the_same_each_time_and_move_no_global_state(images):
    torch.manual_seed(5)
    first = from_timm("vit_tiny_patch16_224", 32, random=True)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    torch.testing.assert_close(torch.rand(3), drawn)
    second = from_timm("vit_tiny_patch16_224", 32, random=True)
    assert torch.equal(first.features(images(1, 32)), second.features(images(1, 32)))
    with pytest.raises(BackboneError, match=r"backbone\.random=true"):
        from_timm("vit_tiny_patch16_224", 32, "file.pth", random=True)

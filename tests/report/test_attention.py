"""Where prompts attend: known weights give known maps, and the tokens go on as through the backbone itself."""

import pytest
import torch
from generators import maker

from fedbayes.models.backbone import FrozenViT
from fedbayes.models.prompted import PromptedViT
from fedbayes.report.attention import prompt_attention

LENGTH = 2


@pytest.fixture
def make(random_vit):
    def make(length=LENGTH, start_layer=1, depth="shallow", **options):
        backbone = FrozenViT(random_vit(**options).float(), "small", (0.5,) * 3, (0.25,) * 3)
        options = {"length": length, "depth": depth, "start_layer": start_layer, "seed": 0}
        return PromptedViT(backbone, 5, generator=maker(), **options)

    return make


def seen(model, pixels):
    tokens, z = model.precompute(pixels)
    return prompt_attention(model, tokens, model.generator.plain(z.unsqueeze(0))[0])


@pytest.mark.parametrize("depth", ["shallow", "deep"])
def test_equal_scores_spread_attention_evenly(make, images, depth):
    model = make(depth=depth)
    for block in model.backbone.vit.blocks:
        block.attn.qkv.weight.zero_()
        block.attn.qkv.bias.zero_()
    # 16 patches, a class token and two prompts.
    torch.testing.assert_close(seen(model, images(3, 16)), torch.full((3, 4, 4), 1 / 19))


def test_attention_is_what_the_last_block_weighs_patches_with(make, images):
    model = make(start_layer=2)  # the last of three blocks is the only one
    pixels = images(2, 16)
    tokens, _ = model.precompute(pixels)
    prompts = torch.randn(2, 1, LENGTH, 24)
    block = model.backbone.vit.blocks[2]
    x = block.norm1(torch.cat([tokens[:, :1], prompts[:, 0], tokens[:, 1:]], dim=1))
    weights = []
    for head in range(3):
        q, k = (block.attn.qkv(x)[..., part * 24 + 8 * head : part * 24 + 8 * head + 8] for part in (0, 1))
        weights.append((q @ k.mT / 8**0.5).softmax(-1)[:, 1 : 1 + LENGTH, 1 + LENGTH :])
    expected = torch.stack(weights).mean((0, 2)).view(2, 4, 4)
    torch.testing.assert_close(prompt_attention(model, tokens, prompts), expected)


def test_patches_never_get_more_than_everything_and_images_differ(make, images):
    found = seen(make(depth="deep"), images(4, 16))
    assert (found > 0).all()
    assert (found.sum((1, 2)) < 1).all()
    assert (found[0] - found[1]).abs().max() > 1e-4


def test_without_prompts_or_with_other_blocks_there_is_no_map(make, images):
    assert seen(make(length=0), images(1, 16)) is None
    assert seen(make(qk_norm=True), images(1, 16)) is None

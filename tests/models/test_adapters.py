"""Clients' weights of the ViT: they start as the frozen ones, merge as LoRA says, and leave the backbone alone."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from generators import maker
from torch.nn import functional as F

from fedbayes.errors import ConfigError
from fedbayes.models.adapters import AllWeights, LowRankWeights
from fedbayes.models.backbone import FrozenViT
from fedbayes.models.prompted import PromptedViT

SETTINGS = {"rank": 2, "alpha": 6.0, "start_layer": 1, "targets": ["attn.qkv", "attn.proj"], "freeze_a": False}
KINDS = {
    "low_rank": partial(LowRankWeights, **SETTINGS),
    "frozen_a": partial(LowRankWeights, **SETTINGS | {"freeze_a": True}),
    "mlp from block 2": partial(LowRankWeights, **SETTINGS | {"start_layer": 2, "targets": ["mlp.fc2"]}),
    "all": AllWeights,
}
CLASSES, IMAGES = 5, 4


@pytest.fixture(scope="module")
def backbone(random_vit):
    return FrozenViT(random_vit(), "small", (0.5,) * 3, (0.25,) * 3).double()


def prompted(backbone, kind, **options):
    sizes = {"length": 0, "depth": "shallow", "start_layer": 1, "seed": 0, **options}
    return PromptedViT(backbone, CLASSES, generator=maker(), weights=KINDS[kind], **sizes).double()


def states(model, count):
    """Parameters of clients that have gone different ways."""
    rng = np.random.default_rng(0)
    return [
        {name: value + 0.1 * rng.standard_normal(value.shape) for name, value in model.initial.items()}
        for _ in range(count)
    ]


def entering(model, images, clients=3):
    return model.precompute(images(clients * IMAGES, 16))[0].unflatten(0, (clients, IMAGES))


def scores(model, tokens):
    return model.logits(tokens, model.generator.base[:, None].unsqueeze(0))[0]


def losses(model, tokens):
    labels = torch.arange(IMAGES).expand(len(tokens), IMAGES) % CLASSES
    return F.cross_entropy(scores(model, tokens).mT, labels, reduction="none").mean(1)


@pytest.mark.parametrize("options", [{}, {"init_values": 0.5}, {"pre_norm": True}, {"qk_norm": True}], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_untrained_weights_give_the_frozen_feature(random_vit, images, kind, options):
    backbone = FrozenViT(random_vit(**options), "small", (0.5,) * 3, (0.25,) * 3).double()
    model = prompted(backbone, kind)
    model.stack([model.initial] * 3)
    features = model.weights.features(backbone, entering(model, images))[0]
    expected = backbone.features(images(3 * IMAGES, 16))
    torch.testing.assert_close(features.flatten(0, 1), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("kind", ["low_rank", "frozen_a", "mlp from block 2"])
def test_low_rank_weights_are_w_plus_alpha_over_r_b_a(backbone, images, kind):
    model = prompted(backbone, kind)
    model.stack(states(model, 3))
    tokens = entering(model, images)
    features = model.weights.features(backbone, tokens)[0]
    state = model.weights.state_dict()
    names = [name.removeprefix("b.") for name in state if name.startswith("b.")]
    for c in range(3):
        merged = copy.deepcopy(backbone)
        for name in names:
            a, b = state[f"a.{name}"].expand(3, -1, -1)[c], state[f"b.{name}"][c]
            assert (a.shape[0], b.shape[1]) == (2, 2), "the rank"
            merged.vit.get_submodule(name).weight += 6.0 / 2 * b @ a
        expected = merged.features(images(3 * IMAGES, 16)[c * IMAGES : (c + 1) * IMAGES])
        torch.testing.assert_close(features[c], expected, rtol=0, atol=1e-12)
        assert (expected - backbone(tokens[c], None, model.start_layer)).abs().max() > 0.01


def prompts_of(length=3, blocks=1, samples=2, dtype=torch.float64):
    rng = torch.Generator().manual_seed(1)
    return torch.randn(samples, 3, IMAGES, blocks, length, 24, generator=rng, dtype=dtype)


@pytest.mark.parametrize(("depth", "blocks"), [("shallow", 1), ("deep", 2)])
@pytest.mark.parametrize("options", [{}, {"qk_norm": True}], ids=["written out", "timm's"])
@pytest.mark.parametrize("lowest", [0, 1, 2], ids="low-rank changes from block {}".format)
def test_prompts_on_changed_weights_are_prompts_of_the_merged_vit(random_vit, images, lowest, options, depth, blocks):
    backbone = FrozenViT(random_vit(**options), "small", (0.5,) * 3, (0.25,) * 3).double()
    weights = partial(LowRankWeights, **SETTINGS | {"start_layer": lowest})
    sizes = {"length": 3, "depth": depth, "start_layer": 1, "seed": 0}
    model = PromptedViT(backbone, CLASSES, generator=maker(), weights=weights, **sizes).double()
    model.stack(states(model, 3))
    prompts = prompts_of(blocks=blocks)
    scores = model.logits(entering(model, images), prompts)
    for c in range(3):
        merged = copy.deepcopy(backbone)
        for name, weight in model.weights.changed(backbone).items():
            merged.vit.get_parameter(name).copy_(weight[c].detach())
        tokens = merged.embed(images(3 * IMAGES, 16)[c * IMAGES : (c + 1) * IMAGES], 1)
        for s in range(2):
            expected = merged(tokens, prompts[s, c], 1) @ model.head.weight[c] + model.head.bias[c]
            torch.testing.assert_close(scores[s, c], expected, rtol=0, atol=1e-11)
    gradients = torch.autograd.grad(scores.square().sum(), list(model.weights.parameters()))
    assert all(gradient.flatten(1).abs().amax(1).min() > 0 for gradient in gradients)


def test_untrained_low_rank_changes_leave_prompts_alone_to_the_last_bit(random_vit, images):
    backbone = FrozenViT(random_vit().float(), "small", (0.5,) * 3, (0.25,) * 3)
    sizes = {"length": 3, "depth": "shallow", "start_layer": 1, "seed": 0}
    prompts, scores = prompts_of(dtype=torch.float32), []
    for weights in (None, KINDS["low_rank"]):
        model = PromptedViT(backbone, CLASSES, generator=maker(), weights=weights, head_std=0.1, **sizes)
        model.stack([model.initial] * 3)
        scores.append(model.logits(entering(model, images), prompts))
    assert torch.equal(*scores)


def test_a_vit_that_is_changed_from_its_pixels_on_takes_no_prompts(backbone):
    with pytest.raises(ConfigError, match=r"prompts\.length=3"):
        prompted(backbone, "all", length=3)


def test_all_weights_are_those_of_a_vit_that_holds_them(backbone, images):
    model = prompted(backbone, "all")
    model.stack(states(model, 3))
    features = model.weights.features(backbone, entering(model, images))[0]
    names = {name for name, _ in backbone.vit.named_parameters()}
    assert {name for name, _ in model.weights.named_parameters()} == names, "patches, positions and norms included"
    for c in range(3):
        vit = copy.deepcopy(backbone.vit)
        vit.load_state_dict({name: weight[c] for name, weight in model.weights.state_dict().items()})
        pixels = (images(3 * IMAGES, 16)[c * IMAGES : (c + 1) * IMAGES].double() / 255 - 0.5) / 0.25
        torch.testing.assert_close(features[c], vit(pixels), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_learns_each_client_for_itself_and_the_backbone_does_not(backbone, images, kind):
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    model = prompted(backbone, kind)
    clients = states(model, 3)
    tokens = entering(model, images)
    model.stack(clients)
    together = losses(model, tokens)
    parameters = {name: p for name, p in model.trainable().items() if p.numel()}
    gradients = torch.autograd.grad(together.sum(), parameters.values(), retain_graph=True)
    gradients = dict(zip(parameters, gradients, strict=True))
    for name, gradient in gradients.items():
        assert gradient.flatten(1).abs().amax(1).min() > 1e-6, name
    for gradient in torch.autograd.grad(together[0], parameters.values()):
        assert not gradient[1:].any(), "of another client's weights"
    assert not any(p.requires_grad for p in backbone.parameters())
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, before[name]), name
    for c in range(3):
        model.stack(clients[c : c + 1])
        alone = losses(model, tokens[c : c + 1])
        parameters = {name: p for name, p in model.trainable().items() if p.numel()}
        torch.testing.assert_close(alone[0], together[c], rtol=0, atol=1e-12)
        for name, gradient in zip(parameters, torch.autograd.grad(alone.sum(), parameters.values()), strict=True):
            torch.testing.assert_close(gradients[name][c], gradient[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_clients_nan_stays_its_own(backbone, images, kind):
    model = prompted(backbone, kind)
    clients = states(model, 3)
    tokens = entering(model, images)
    results = []
    for middle in (clients[1], {name: np.full_like(value, np.nan) for name, value in clients[1].items()}):
        model.stack([clients[0], middle, clients[2]])
        loss = losses(model, tokens)
        parameters = {name: p for name, p in model.trainable().items() if p.numel()}
        results.append((loss, torch.autograd.grad(loss.sum(), parameters.values())))
    (healthy, gradients), (spoilt, others) = results
    assert spoilt[1].isnan()
    assert torch.equal(spoilt[[0, 2]], healthy[[0, 2]])
    for expected, actual in zip(gradients, others, strict=True):
        assert torch.equal(actual[[0, 2]], expected[[0, 2]])


def test_one_frozen_a_makes_the_average_of_changes_the_change_of_averages(backbone):
    gaps = {}
    for kind in ("low_rank", "frozen_a"):
        model = prompted(backbone, kind)
        clients = states(model, 3)
        model.stack(clients)
        changed = {name: weight.mean(0) for name, weight in model.weights.changed(backbone).items()}
        model.stack([{name: np.mean([client[name] for client in clients], axis=0) for name in clients[0]}])
        averaged = model.weights.changed(backbone)
        gaps[kind] = max((averaged[name][0] - mean).abs().max().item() for name, mean in changed.items())
    assert gaps["frozen_a"] < 1e-15 < 0.01 < gaps["low_rank"]


def test_a_frozen_a_follows_from_the_seed_and_is_no_parameter(backbone):
    first, second, other = (prompted(backbone, "frozen_a", seed=seed) for seed in (0, 0, 1))
    assert not any(name.startswith("weights.a") for name in first.initial)
    a = [model.weights.get_buffer("a.blocks.1.attn.qkv") for model in (first, second, other)]
    assert torch.equal(a[0], a[1])
    assert not torch.equal(a[0], a[2])
    trained = prompted(backbone, "low_rank")
    np.testing.assert_array_equal(trained.initial["weights.a.blocks.1.attn.qkv"], a[0][0].numpy())


def test_a_starts_with_columns_of_unit_length_on_average_and_b_at_zero(random_vit):
    wide = FrozenViT(random_vit(embed_dim=240), "wide", (0.5,) * 3, (0.25,) * 3)
    weights = LowRankWeights(backbone=wide, rng=torch.Generator().manual_seed(0), **SETTINGS | {"rank": 50})
    state = weights.state_dict()
    assert state["a.blocks.2.attn.proj"].std().item() == pytest.approx(240**-0.5, rel=0.03)
    assert not any(value.any() for name, value in state.items() if name.startswith("b."))


def test_what_enters_is_tokens_below_the_first_changed_block_or_pixels(backbone, images):
    pixels = images(3, 16)
    for kind, start in (("low_rank", 1), ("mlp from block 2", 2)):
        model = prompted(backbone, kind)
        assert torch.equal(model.precompute(pixels)[0], backbone.embed(pixels, start))
        assert model.entering_bytes == 17 * 24 * 8, "tokens, width, float64"
    model = prompted(backbone, "all")
    tokens, z = model.precompute(pixels)
    assert torch.equal(tokens, pixels)
    assert model.entering_bytes == 3 * 16 * 16
    torch.testing.assert_close(z, F.layer_norm(backbone.features(pixels), (24,)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["low_rank", "all"])
def test_bf16_features_are_close_and_learn_in_float32(random_vit, images, kind):
    features = []
    for precision in ("float32", "bf16"):
        vit = random_vit().float()
        backbone = FrozenViT(vit, "small", (0.5,) * 3, (0.25,) * 3).cast(precision)
        model = prompted(backbone, kind).float()
        model.stack([model.initial] * 3)
        assert {p.dtype for p in model.trainable().values()} == {torch.float32}
        features.append(model.weights.features(backbone, entering(model, images))[0])
    (gradient,) = torch.autograd.grad(features[1].sum(), [model.trainable()[LEAF[kind]]])
    assert gradient.dtype == torch.float32
    assert gradient.abs().max() > 0
    torch.testing.assert_close(features[1], features[0], rtol=0, atol=0.15)


@pytest.mark.parametrize(("precision", "fused"), [("float32", True), ("bf16", False)])
def test_on_a_cpu_attention_is_fused_in_float32_alone(random_vit, images, precision, fused):
    backbone = FrozenViT(random_vit().float(), "small", (0.5,) * 3, (0.25,) * 3).cast(precision)
    model = prompted(backbone, "all").float()
    model.stack([model.initial] * 3)
    ahead, seen = [model.weights.features(backbone, entering(model, images))[0].grad_fn], set()
    while ahead:
        node = ahead.pop()
        if node is not None and node not in seen:
            seen.add(node)
            ahead += [before for before, _ in node.next_functions]
    assert any("ScaledDotProduct" in node.name() for node in seen) == fused
    assert all(block.attn.fused_attn for block in backbone.vit.blocks), "as it was"


LEAF = {"low_rank": "weights.b.blocks.1.attn.qkv", "all": "weights.blocks.1.attn.qkv.weight"}


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"rank": 0}, r"method\.weights\.rank=0"),
        ({"alpha": 0}, r"method\.weights\.alpha=0"),
        ({"start_layer": 3}, r"method\.weights\.start_layer=3"),
        ({"start_layer": -1}, r"method\.weights\.start_layer=-1"),
        ({"targets": ["attn.q"]}, r"method\.weights\.targets=attn\.q is unknown"),
        ({"targets": "attn.qkv"}, r"method\.weights\.targets=attn\.qkv is no list"),
        ({"targets": []}, r"method\.weights\.targets=\[\]"),
    ],
)
def test_values_out_of_range_are_refused_by_name(backbone, changes, key):
    with pytest.raises(ConfigError, match=key):
        LowRankWeights(backbone=backbone, rng=torch.Generator(), **SETTINGS | changes)


def test_prompts_beside_weights_are_refused(backbone):
    with pytest.raises(ConfigError, match=r"prompts\.length=2: .* set prompts\.length=0"):
        prompted(backbone, "all", length=2)

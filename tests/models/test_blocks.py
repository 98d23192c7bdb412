"""What is written out by hand against timm's own blocks: values, gradients, and nothing of one image in another."""

import pytest
import torch
from timm.models.vision_transformer import Block, ResPostBlock
from torch import nn
from torch.func import functional_call

from fedbayes.models.blocks import class_row, fold, is_plain, run_folded, with_prompts

PLAIN = {
    "plain": {},
    "layer scale": {"init_values": 0.5},
    "no qkv bias": {"qkv_bias": False},
    "no bias": {"proj_bias": False},
}
OTHERS = {
    "normed queries and keys": {"qk_norm": True},
    "normed attention": {"scale_attn_norm": True},
    "normed mlp": {"scale_mlp_norm": True},
    "another activation": {"act_layer": nn.ReLU},
    "approximate gelu": {"act_layer": lambda: nn.GELU("tanh")},
    "another block": {"block_fn": ResPostBlock},
}


def leaf(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.fixture
def block(random_vit):
    def make(**options) -> Block:
        return random_vit(**options).eval().requires_grad_(False).blocks[1]

    return make


@pytest.mark.parametrize("learns", ["prompts", "tokens", "both"])
@pytest.mark.parametrize("replaced", [0, 3])
@pytest.mark.parametrize("options", PLAIN.values(), ids=PLAIN)
def test_values_and_gradients_are_those_of_timms_block(block, options, replaced, learns):
    whole = block(**options)
    folded = fold(whole, torch.float64)
    tokens, prompts = leaf(2, 9, 24), leaf(2, 3, 24)
    tokens.requires_grad_(learns != "prompts")
    prompts.requires_grad_(learns != "tokens")
    inputs = [tensor for tensor in (tokens, prompts) if tensor.requires_grad]
    got, expected = run_folded(tokens, prompts, replaced, folded), whole(with_prompts(tokens, prompts, replaced))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    probe = torch.randn_like(got)
    gradients = [torch.autograd.grad((out * probe).sum(), inputs) for out in (got, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-11)


def test_gradients_are_those_of_finite_differences(block):
    folded = fold(block(init_values=0.5), torch.float64)
    assert torch.autograd.gradcheck(lambda x, p: run_folded(x, p, 1, folded), (leaf(1, 4, 24), leaf(1, 2, 24)))


@pytest.mark.parametrize("function", ["without prompts", "class row"])
@pytest.mark.parametrize("options", PLAIN.values(), ids=PLAIN)
def test_without_prompts_and_the_class_row_alone(block, options, function):
    whole, tokens = block(**options), leaf(2, 9, 24)
    if function == "class row":
        outputs = class_row(whole, tokens), whole(tokens)[:, :1]
    else:
        outputs = run_folded(tokens, None, 0, fold(whole, torch.float64)), whole(tokens)
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-12)
    gradients = [torch.autograd.grad(out.square().sum(), tokens)[0] for out in outputs]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-10)


@pytest.mark.parametrize("options", OTHERS.values(), ids=OTHERS)
def test_only_plain_blocks_are_taken_for_plain(block, options):
    gated = block()
    assert is_plain(gated)
    assert not is_plain(block(**options))
    gated.attn.gate = nn.Linear(24, 24)
    assert not is_plain(gated)


def test_block_inputs_output_and_the_gradient_it_receives_stay_as_they_were(block):
    whole = block(init_values=0.5)
    before = {name: value.clone() for name, value in whole.state_dict().items()}
    folded = fold(whole, torch.float64)
    assert all(torch.equal(value, before[name]) for name, value in whole.state_dict().items())
    tokens, prompts, probe = leaf(2, 9, 24), leaf(2, 3, 24), torch.randn(2, 12, 24, dtype=torch.float64)
    out = run_folded(tokens, prompts, 0, folded)
    copies = [tensor.detach().clone() for tensor in (tokens, prompts, out, probe)]
    torch.autograd.grad(out, (tokens, prompts), probe, retain_graph=True)
    first = torch.autograd.grad(out, tokens, probe, retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(out, tokens, probe)[0])
    assert all(torch.equal(tensor, copy) for tensor, copy in zip((tokens, prompts, out, probe), copies, strict=True))


@pytest.mark.parametrize("learns", [False, True])
def test_a_nan_stays_in_its_image(block, learns):
    folded = fold(block(), torch.float64)
    tokens, prompts = leaf(3, 9, 24), leaf(3, 3, 24)
    tokens.requires_grad_(learns)
    outputs = []
    for bad in (False, True):
        with torch.no_grad():
            prompts[1] = torch.nan if bad else 0.5
        out = run_folded(tokens, prompts, 0, folded)
        outputs.append(
            (out.detach(), *torch.autograd.grad(out.square().sum(), [tokens, prompts][0 if learns else 1 :]))
        )
    for clean, spoilt in zip(*outputs, strict=True):
        assert spoilt[1].isnan().any()
        assert torch.equal(clean[[0, 2]], spoilt[[0, 2]])


LINEARS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


@pytest.mark.parametrize("names", [*zip(LINEARS), LINEARS], ids=str)
@pytest.mark.parametrize("learns", ["tokens and prompts", "prompts", "nothing else"])
@pytest.mark.parametrize("options", PLAIN.values(), ids=PLAIN)
def test_gradients_of_changed_weights_are_those_of_timms_block(block, options, learns, names):
    whole = block(**options)
    changed = {f"{name}.weight": leaf(*whole.get_submodule(name).weight.shape) for name in names}
    tokens, prompts = leaf(2, 9, 24), leaf(2, 3, 24)
    tokens.requires_grad_("tokens" in learns)
    prompts.requires_grad_("prompts" in learns)
    inputs = [tensor for tensor in (tokens, prompts, *changed.values()) if tensor.requires_grad]
    got = run_folded(tokens, prompts, 1, fold(whole, torch.float64, changed))
    expected = functional_call(whole, changed, (with_prompts(tokens, prompts, 1),))
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-10)
    probe = torch.randn_like(got)
    gradients = [torch.autograd.grad((out * probe).sum(), inputs) for out in (got, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)

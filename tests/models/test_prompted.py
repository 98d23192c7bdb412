"""A cohort is its clients side by side: nothing of one reaches another, and everything that can learn does."""

import numpy as np
import pytest
import torch
from generators import SETTINGS, maker
from torch.nn import functional as F

from fedbayes.errors import ConfigError
from fedbayes.models.backbone import FrozenViT
from fedbayes.models.prompted import PromptedViT
from fedbayes.models.prompts.coded import KINDS

OPTIONS = {"length": 2, "depth": "shallow", "start_layer": 1, "seed": 0}
CLASSES, IMAGES = 5, 4


@pytest.fixture(scope="module")
def backbone(random_vit):
    return FrozenViT(random_vit(), "small", (0.5,) * 3, (0.25,) * 3).double()


@pytest.fixture
def make(backbone):
    def make(kind, **options):
        return prompted(backbone, kind=kind, **options).double()

    return make


def prompted(backbone, **options):
    settings = {name: options.pop(name) for name in ("kind", *SETTINGS) if name in options}
    return PromptedViT(backbone, CLASSES, generator=maker(**settings), **{**OPTIONS, **options})


@pytest.fixture
def inputs(images, make):
    """Tokens, z, labels and noise of three clients."""
    tokens, z = make("fixed").precompute(images(3 * IMAGES, 16))
    labels = torch.arange(3 * IMAGES).view(3, IMAGES) % CLASSES
    eps, noise = (torch.randn(2, 3, IMAGES, size, dtype=torch.float64) for size in (4, 6))
    return tokens.unflatten(0, (3, IMAGES)), z.unflatten(0, (3, IMAGES)), labels, eps, noise


def states(model, count):
    """Parameters of clients that have gone different ways."""
    rng = np.random.default_rng(0)
    return [
        {name: value + 0.3 * rng.standard_normal(value.shape) for name, value in model.initial.items()}
        for _ in range(count)
    ]


def loss_of(model, tokens, z, labels, eps, noise):
    """A loss with a prior term, one per client, and the logits."""
    generator = model.generator
    if generator.kind in ("fixed", "deterministic"):
        prompts, prior = generator.plain(z).unsqueeze(0), torch.zeros(())
    else:
        code = generator.mixing(z, eps if generator.noise_dim else None) + generator.scale(z) * noise
        prompts = generator.decode(code)
        prior = 0.05 * (code.square().sum(-1) - 2 * generator.scale(z).log().sum(-1))
    logits = model.logits(tokens, prompts)
    likelihood = logits.log_softmax(-1).gather(-1, labels.expand(len(logits), *labels.shape).unsqueeze(-1))
    return (prior - likelihood.squeeze(-1)).mean(0).sum(-1), logits


def gradients_of(model, loss):
    return dict(zip(model.trainable(), torch.autograd.grad(loss.sum(), list(model.trainable().values())), strict=True))


@pytest.mark.parametrize("depth", ["shallow", "deep"])
@pytest.mark.parametrize("kind", KINDS)
def test_each_client_of_a_cohort_is_as_alone(make, inputs, kind, depth):
    model = make(kind, depth=depth)
    clients = states(model, 3)
    model.stack(clients)
    loss, logits = loss_of(model, *inputs)
    gradients = gradients_of(model, loss)
    tokens, z, labels, eps, noise = inputs
    for c in range(3):
        model.stack(clients[c : c + 1])
        client = slice(c, c + 1)
        batch = (tokens[client], z[client], labels[client], eps[:, client], noise[:, client])
        alone, alone_logits = loss_of(model, *batch)
        torch.testing.assert_close(loss[client], alone, rtol=0, atol=1e-10)
        torch.testing.assert_close(logits[:, client], alone_logits, rtol=0, atol=1e-10)
        for name, gradient in gradients_of(model, alone).items():
            torch.testing.assert_close(gradients[name][client], gradient, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_a_clients_nan_stays_its_own(make, inputs, kind):
    model = make(kind)
    clients = states(model, 3)
    model.stack(clients)
    loss, logits = loss_of(model, *inputs)
    gradients = gradients_of(model, loss)
    clients[1] = {name: np.full_like(value, np.nan) for name, value in clients[1].items()}
    model.stack(clients)
    spoilt, spoilt_logits = loss_of(model, *inputs)
    assert spoilt[1].isnan()
    assert spoilt_logits[:, 1].isnan().all()
    for c in (0, 2):
        torch.testing.assert_close(spoilt[c], loss[c], rtol=0, atol=1e-10)
        torch.testing.assert_close(spoilt_logits[:, c], logits[:, c], rtol=0, atol=1e-10)
    for name, gradient in gradients_of(model, spoilt).items():
        torch.testing.assert_close(gradient[[0, 2]], gradients[name][[0, 2]], rtol=0, atol=1e-10)


@pytest.mark.parametrize("depth", ["shallow", "deep"])
@pytest.mark.parametrize("code_dim", [6, "full"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_learns_and_no_other_does(make, inputs, kind, code_dim, depth):
    model = make(kind, code_dim=code_dim, depth=depth)
    tokens, z, labels, eps, noise = (*(x[:1] for x in inputs[:3]), *(x[:, :1] for x in inputs[3:]))
    noise = torch.randn(2, 1, IMAGES, getattr(model.generator, "code_dim", 1), dtype=torch.float64)
    names = {name.split(".")[0] for name in model.trainable()}
    assert names == {"generator", "head"}
    optimiser = torch.optim.SGD(model.trainable().values(), lr=0.1)
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    for step in range(3):  # the head starts at zero, and so does f_phi's last layer: gradients reach down step by step
        optimiser.zero_grad()
        loss_of(model, tokens, z, labels, eps, noise)[0].sum().backward()
        if step < 2:
            optimiser.step()
    for name, parameter in model.trainable().items():
        assert parameter.grad is not None, name
        assert parameter.grad.flatten(1).norm() > 1e-9, name
    assert all(p.grad is None for p in model.backbone.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.backbone.state_dict().items())


def test_an_untrained_head_knows_nothing(make, inputs):
    model = make("semi_implicit")
    model.stack([{}] * 3)
    assert not loss_of(model, *inputs)[1].any()


@pytest.mark.parametrize("kind", ["fixed", "semi_implicit"])
def test_draws_go_through_the_backbone_each_on_its_own(make, inputs, kind):
    model = make(kind)
    model.stack(states(model, 3))
    tokens, z, _, eps, noise = inputs
    generator = model.generator
    if kind == "fixed":
        prompts = generator.plain(z).unsqueeze(0)
    else:
        prompts = generator.decode(generator.mixing(z, eps) + generator.scale(z) * noise)
    logits = model.logits(tokens, prompts)
    for s in range(len(prompts)):
        torch.testing.assert_close(logits[s], model.logits(tokens, prompts[s]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("start_layer", [0, 1, 2])
def test_precompute_gives_the_normalised_class_feature(make, images, start_layer):
    model = make("fixed", start_layer=start_layer)
    tokens, z = model.precompute(images(3, 16))
    assert tokens.shape == (3, 17, 24)
    torch.testing.assert_close(z, F.layer_norm(model.backbone.features(images(3, 16)), (24,)))
    torch.testing.assert_close(z.mean(1), torch.zeros(3, dtype=torch.float64))
    assert not tokens.requires_grad
    assert not z.requires_grad


def test_without_prompts_it_is_a_linear_head_on_the_features(make, images):
    model = make("fixed", length=0)
    model.stack(states(model, 1))
    tokens, _ = model.precompute(images(3, 16))
    logits = model.logits(tokens.unsqueeze(0), model.generator.base[:, None])
    expected = model.backbone.features(images(3, 16)) @ model.head.weight[0] + model.head.bias[0]
    torch.testing.assert_close(logits[0], expected, rtol=0, atol=1e-10)


def test_states_survive_stacking(make):
    model = make("semi_implicit")
    clients = states(model, 3)
    model.stack(clients)
    for state, back in zip(clients, model.unstack(), strict=True):
        assert state.keys() == back.keys()
        assert all(np.array_equal(state[name], back[name]) for name in state)
    before = model.unstack()[1]["head.weight"].copy()
    model.head.weight.data.add_(1.0)
    assert np.array_equal(clients[1]["head.weight"], before)  # states and parameters share no memory
    model.stack([{"head.bias": clients[0]["head.bias"]}])
    back = model.unstack()[0]
    assert np.array_equal(back["head.bias"], clients[0]["head.bias"])
    others = [name for name in back if name != "head.bias"]
    assert all(np.array_equal(back[name], model.initial[name]) for name in others)


def test_the_seed_alone_decides_the_start(make):
    torch.manual_seed(5)
    first = make("semi_implicit").initial
    torch.manual_seed(6)
    second, other = make("semi_implicit").initial, make("semi_implicit", seed=1).initial
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert not np.array_equal(first["generator.base"], other["generator.base"])


def test_a_cohort_of_another_size_fits_while_the_last_ones_graph_is_alive(make, inputs):
    model = make("fixed")
    model.stack(states(model, 3))
    alive = loss_of(model, *inputs)
    model.stack(states(model, 1))
    loss = loss_of(model, *(x[:1] for x in inputs[:3]), *inputs[3:])[0]
    assert gradients_of(model, loss)["head.bias"].shape == (1, 1, CLASSES)
    assert alive[0].shape == (3,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": "middle"}, r"prompts\.depth=middle"),
        ({"start_layer": 3}, r"prompts\.start_layer=3"),
        ({"start_layer": -1}, r"prompts\.start_layer=-1"),
        ({"kind": "magic"}, r"generator\.kind=magic"),
    ],
)
def test_what_the_backbone_cannot_do_is_refused_by_name(backbone, options, message):
    with pytest.raises(ConfigError, match=message):
        prompted(backbone, **options)

"""What methods that are one configuration of prompt tuning compute, against a ViT walked through by hand.

Plain gradient steps on all of a client's images at once, so that each step is `w - rate * gradient of the mean
cross-entropy`; the gradient is torch's own, of timm's blocks with the prompts put in by `torch.cat`.
"""

from copy import deepcopy

import numpy as np
import pytest
import torch
from smoke import play_rounds, smoke
from torch.nn import functional as F

from fedbayes.comm.messages import ClientRequest

BASE, WEIGHT, BIAS = "generator.base", "head.weight", "head.bias"
HEAD = (WEIGHT, BIAS)
PROMPT_RATE, HEAD_RATE = 0.5, 0.2
PLAIN_STEPS = (
    *("optim.name=sgd", "optim.momentum=0", "optim.clip=null", "optim.batch_size=64", "optim.local_epochs=1"),
    *(f"optim.lr={PROMPT_RATE}", f"optim.head_lr={HEAD_RATE}", "head.init_std=0.1"),
)
UNEQUAL = ("clients=4", "partition.quantity=2", "partition.max_train=24")


def make(method, *overrides):
    return smoke(f"method={method}", *PLAIN_STEPS, *overrides)


def start_of(client):
    """The initial state, moved off its zeros so that every gradient counts."""
    rng = np.random.default_rng(0)
    moved = {name: array + 0.1 * rng.normal(size=array.shape) for name, array in client.model.initial.items()}
    return {name: array.astype(np.float32) for name, array in moved.items()}


def trained(client, partition, arrays, personal=None):
    (update,) = client.train([ClientRequest(partition, 1, "train", "", arrays, personal or {})])
    return {**update.arrays, **update.personal}


def indices(client, partition):
    return client.data.indices(partition, "train")


def prompts_of(client, index, state):
    """P_base, or P_base + U f(z) where the generator has an f; `(images or 1, blocks, length, d)`."""
    base = state[BASE][None]
    if "generator.location.weight" not in state:
        return base
    feature = client.model.backbone.features(client.data.images.images[index])
    z = (feature - feature.mean(1, keepdim=True)) / (feature.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    hidden = F.gelu(z @ state["generator.hidden.weight"] + state["generator.hidden.bias"])
    code = hidden @ state["generator.location.weight"] + state["generator.location.bias"]
    return base + (code @ state["generator.decoder.weight"]).view(-1, *base.shape[1:])


def loss_of(client, index, state):
    """Mean cross-entropy of some images, nats."""
    backbone, labels = client.model.backbone, client.data.images.labels[index]
    x = backbone.embed(client.data.images.images[index], client.model.start_layer)
    sets = prompts_of(client, index, state)
    for place, block in enumerate(backbone.vit.blocks[client.model.start_layer :]):
        if place < sets.shape[1]:  # the next set takes the place of the prompts before it
            patches = x[:, 1:] if place == 0 else x[:, 1 + sets.shape[2] :]
            x = torch.cat([x[:, :1], sets[:, place].expand(len(x), -1, -1), patches], dim=1)
        x = block(x)
    return F.cross_entropy(backbone.vit.norm(x)[:, 0] @ state[WEIGHT] + state[BIAS], labels)


def stepped(client, index, state, learning=None, near=None, mu=0.0):
    """One gradient step of `loss + mu / 2 |w - near|^2` in the parts that learn; None for all that hold anything."""
    learning = [name for name in (learning or state) if state[name].size]  # a head alone has prompts of no length
    leaves = {name: torch.tensor(array).requires_grad_(name in learning) for name, array in state.items()}
    loss_of(client, index, leaves).backward()
    moved = dict(state)
    for name in learning:
        rate = HEAD_RATE if name in HEAD else PROMPT_RATE
        pull = 0 if near is None else mu * (state[name] - near[name])
        moved[name] = state[name] - rate * (leaves[name].grad.numpy() + pull)
    return moved


def assert_same(actual, expected):
    assert set(actual) == set(expected)
    for name, array in expected.items():
        np.testing.assert_allclose(actual[name], array, rtol=1e-4, atol=2e-6, err_msg=name)


@pytest.mark.parametrize(("method", "sets"), [("fedvpt", 1), ("fedvpt_deep", 3)])
def test_vpt_puts_prompts_before_its_first_block_and_vpt_deep_puts_new_ones_before_each(method, sets):
    _, client = make(method, "prompts.start_layer=1")
    start = start_of(client)
    assert len(start[BASE]) == sets
    expected = stepped(client, indices(client, 2), start)
    assert all(np.abs(expected[name] - start[name]).max() > 1e-4 for name in start)
    assert_same(trained(client, 2, start), expected)


def test_deterministic_prompts_are_p_base_and_what_a_network_says_of_the_image():
    _, client = make("deterministic_prompts")
    start = start_of(client)
    expected = stepped(client, indices(client, 1), start)
    assert all(np.abs(expected[name] - start[name]).max() > 1e-4 for name in start)
    assert_same(trained(client, 1, start), expected)


def test_fedprox_pulls_each_step_towards_what_was_sent():
    _, client = make("fedprox", "optim.local_epochs=3", "optim.proximal=0.7")
    start = state = plain = start_of(client)
    for _ in range(3):
        state = stepped(client, indices(client, 0), state, near=start, mu=0.7)
        plain = stepped(client, indices(client, 0), plain)
    assert np.abs(plain[BASE] - state[BASE]).max() > 1e-3
    assert_same(trained(client, 0, start), state)


def test_ditto_steps_the_global_model_plainly_and_the_own_one_towards_what_was_sent():
    _, client = make("ditto", "optim.local_epochs=2", "method.client.strength=0.7")
    received, personal = client.model.initial, start_of(client)
    actual = trained(client, 0, received, {f"personal.{name}": array for name, array in personal.items()})
    index = indices(client, 0)
    pulled = stepped(client, index, personal, near=received, mu=0.7)
    expected = {f"personal.{name}": array for name, array in pulled.items()}
    assert_same(actual, {**stepped(client, index, received), **expected})


def test_fedrep_steps_the_head_and_then_the_prompts_against_it():
    _, client = make("fedrep")
    start, index = start_of(client), indices(client, 2)
    assert_same(trained(client, 2, start), stepped(client, index, stepped(client, index, start, HEAD), (BASE,)))


def test_fedbabu_steps_the_prompts_in_training_and_head_and_prompts_before_an_evaluation():
    _, client = make("fedbabu")
    start, index = start_of(client), indices(client, 1)
    body = stepped(client, index, start, (BASE,))
    assert_same(trained(client, 1, start), body)
    (tuned,) = client.adapt([body], [ClientRequest(1, 1, "evaluate", "test", body, adapt=2)])
    assert_same(tuned, stepped(client, index, stepped(client, index, body)))


def after_two_rounds(method, *overrides):
    cfg, client = make(method, *overrides)
    progress = play_rounds(cfg, client)
    return client, range(cfg.clients), progress.arrays, progress.personal


def by_images(client, states):
    images = [len(indices(client, p)) for p in range(len(states))]
    assert len(set(images)) > 1, "otherwise any mean would do"
    return {
        name: sum(n * state[name] for n, state in zip(images, states, strict=True)) / sum(images) for name in states[0]
    }


@pytest.mark.parametrize(
    ("method", "personal"),
    [
        ("fedvpt", ()),
        ("fedvpt_deep", ()),
        ("fedavg_head", ()),
        ("fedprox", ()),
        ("deterministic_prompts", ()),
        ("fedper", HEAD),
        ("deterministic_prompts_personal", HEAD),
        ("local_head", HEAD),
        ("local_vpt", (BASE, *HEAD)),
    ],
)
def test_two_rounds_average_what_is_shared_by_images_and_go_on_from_what_is_personal(method, personal):
    client, clients, arrays, personal_arrays = after_two_rounds(method, *UNEQUAL)
    states = [client.model.initial] * len(clients)
    for _ in range(2):
        # One step from what was sent: FedProx's pull is zero there.
        states = [stepped(client, indices(client, p), states[p]) for p in clients]
        mean = by_images(client, states)
        states = [{name: state[name] if name in personal else mean[name] for name in state} for state in states]
    assert personal == () or np.abs(states[0][WEIGHT] - states[1][WEIGHT]).max() > 1e-3
    for partition, state in enumerate(states):
        assert_same({**arrays, **personal_arrays.get(partition, {})}, state)


def test_fedrep_averages_the_prompts_that_its_clients_stepped_against_heads_of_their_own():
    client, clients, arrays, heads_after = after_two_rounds("fedrep", *UNEQUAL)
    states = [client.model.initial] * len(clients)
    for _ in range(2):
        heads = [stepped(client, indices(client, p), states[p], HEAD) for p in clients]
        ends = [stepped(client, indices(client, p), heads[p], (BASE,)) for p in clients]
        states = [{**end, BASE: by_images(client, ends)[BASE]} for end in ends]
    for partition, state in enumerate(states):
        assert_same({**arrays, **heads_after[partition]}, state)


@pytest.mark.parametrize("method", ["pfedbayespt_personal", "gaussian_prompts_personal"])
def test_posteriors_with_personal_heads_average_their_generators_by_images(method):
    client, clients, arrays, personal = after_two_rounds(method, *UNEQUAL)
    shared, heads = client.initial(), [{}] * len(clients)
    for server_round in (1, 2):
        requests = [ClientRequest(p, server_round, "train", "", shared, heads[p]) for p in clients]
        updates = client.train(requests)
        shared = by_images(client, [update.arrays for update in updates])
        heads = [update.personal for update in updates]
    assert_same(arrays, shared)
    for partition, head in enumerate(heads):
        assert_same(personal[partition], head)


def test_centralised_training_steps_on_everybodys_images_and_keeps_that_step():
    client, clients, arrays, _ = after_two_rounds("centralised", *UNEQUAL, "optim.batch_size=128")
    everybody = torch.cat([indices(client, p) for p in clients]).sort().values
    start = client.model.initial
    assert_same(arrays, stepped(client, everybody, stepped(client, everybody, start)))


def test_local_head_is_softmax_regression_on_frozen_features():
    """Without torch's gradient: W - rate X^T (p - y) / n."""
    _, client = make("local_head")
    start, index = client.model.initial, indices(client, 0)
    x = client.model.backbone.features(client.data.images.images[index]).numpy()
    y = np.eye(client.data.num_classes)[client.data.images.labels[index]]
    scores = np.exp(x @ start[WEIGHT] + start[BIAS])
    error = (scores / scores.sum(1, keepdims=True) - y) / len(y)
    actual = trained(client, 0, start)
    np.testing.assert_allclose(actual[WEIGHT], start[WEIGHT] - HEAD_RATE * x.T @ error, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(actual[BIAS], start[BIAS] - HEAD_RATE * error.sum(0), rtol=1e-4, atol=1e-6)


def test_the_first_step_of_fedlora_moves_b_along_the_merged_matrixs_gradient_times_a():
    """From B = 0: A stays where it is, and B becomes -rate (alpha / r) dL/dW A^T."""
    _, client = make("fedlora", "method.weights.rank=2", "method.weights.alpha=6")
    start, index, backbone = client.model.initial, indices(client, 0), client.model.backbone
    vit = deepcopy(backbone.vit).requires_grad_(True)
    pixels = (client.data.images.images[index].float() / 255 - backbone.mean) / backbone.std
    features = vit.forward_head(vit.forward_features(pixels), pre_logits=True)
    scores = features @ torch.tensor(start[WEIGHT]) + torch.tensor(start[BIAS])
    F.cross_entropy(scores, client.data.images.labels[index]).backward()
    names = [name.removeprefix("weights.a.") for name in start if name.startswith("weights.a.")]
    assert len(names) == 2 * backbone.depth
    actual = trained(client, 0, start)
    for name in names:
        a = start[f"weights.a.{name}"]
        np.testing.assert_array_equal(actual[f"weights.a.{name}"], a)
        expected = -PROMPT_RATE * (6 / 2) * vit.get_submodule(name).weight.grad.numpy() @ a.T
        assert np.abs(expected).max() > 1e-5
        np.testing.assert_allclose(actual[f"weights.b.{name}"], expected, rtol=1e-3, atol=2e-6)

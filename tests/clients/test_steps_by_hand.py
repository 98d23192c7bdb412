"""What methods that are one configuration of prompt tuning compute, against a ViT walked through by hand.

Plain gradient steps on all of a client's images at once, so that each step is `w - rate * gradient of the mean
cross-entropy`; the gradient is torch's own, of timm's blocks with the prompts put in by `torch.cat`.
"""

import numpy as np
import pytest
import torch
from journal import Journal
from smoke import smoke
from torch.nn import functional as F

from fedbayes import build
from fedbayes.messages import ClientRequest, from_record
from fedbayes.simulation.in_process import InProcessGrid

BASE, WEIGHT, BIAS = "generator.base", "head.weight", "head.bias"
PROMPT_RATE, HEAD_RATE = 0.5, 0.2
PLAIN_STEPS = (
    *("optim.name=sgd", "optim.momentum=0", "optim.clip=null", "optim.batch_size=64", "optim.local_epochs=1"),
    *(f"optim.prompt_lr={PROMPT_RATE}", f"optim.head_lr={HEAD_RATE}", "head.init_std=0.1"),
)


def made(method, *overrides):
    return smoke(f"method={method}", *PLAIN_STEPS, *overrides)


def parts(state, learning):
    """Names of the parts that learn and hold anything: a head alone has prompts of no length."""
    return [name for name in learning if state[name].size]


def trained(client, partition, arrays, personal=None):
    (update,) = client.train([ClientRequest(partition, 1, "train", "", arrays, personal or {})])
    return {**update.arrays, **update.personal}


def loss_of(client, partition, state):
    """Mean cross-entropy of a client's training images, nats."""
    index = client.data.indices(partition, "train")
    backbone, labels = client.model.backbone, client.data.images.labels[index]
    x = backbone.embed(client.data.images.images[index], client.model.start_layer)
    sets = state[BASE]  # (blocks, length, d)
    for place, block in enumerate(backbone.vit.blocks[client.model.start_layer :]):
        if place < len(sets):  # the next set takes the place of the prompts before it
            patches = x[:, 1:] if place == 0 else x[:, 1 + sets.shape[1] :]
            x = torch.cat([x[:, :1], sets[place].expand(len(x), -1, -1), patches], dim=1)
        x = block(x)
    return F.cross_entropy(backbone.vit.norm(x)[:, 0] @ state[WEIGHT] + state[BIAS], labels)


def stepped(client, partition, state, learning=(BASE, WEIGHT, BIAS), near=None, mu=0.0):
    """One gradient step of `loss + mu / 2 |w - near|^2` in the parts that learn."""
    learning = parts(state, learning)
    leaves = {name: torch.tensor(array).requires_grad_(name in learning) for name, array in state.items()}
    loss_of(client, partition, leaves).backward()
    moved = {}
    for name, leaf in leaves.items():
        rate = PROMPT_RATE if name == BASE else HEAD_RATE
        pull = 0 if near is None else mu * (state[name] - near[name])
        moved[name] = state[name] - rate * (leaf.grad.numpy() + pull) if name in learning else state[name]
    return moved


def same(found, expected):
    assert set(found) == set(expected)
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-6, err_msg=name)


def moved_by_more_than_rounding(state, start):
    assert all(np.abs(state[name] - start[name]).max() > 1e-4 for name in start)


@pytest.mark.parametrize(("method", "sets"), [("fedvpt", 1), ("fedvpt_deep", 3)])
def test_vpt_puts_prompts_before_its_first_block_and_vpt_deep_puts_new_ones_before_each(method, sets):
    _, client = made(method, "prompts.start_layer=1")
    start = client.model.initial
    assert len(start[BASE]) == sets
    expected = stepped(client, 2, start)
    moved_by_more_than_rounding(expected, start)
    same(trained(client, 2, start), expected)


def test_fedprox_pulls_each_step_towards_what_was_sent():
    _, client = made("fedprox", "optim.local_epochs=3", "optim.proximal=0.7")
    start = state = client.model.initial
    for _ in range(3):
        state = stepped(client, 0, state, near=start, mu=0.7)
    plain = start
    for _ in range(3):
        plain = stepped(client, 0, plain)
    assert np.abs(plain[BASE] - state[BASE]).max() > 1e-3
    same(trained(client, 0, start), state)


def test_fedbabu_steps_the_prompts_in_training_and_head_and_prompts_before_an_evaluation():
    _, client = made("fedbabu")
    start = client.model.initial
    body = stepped(client, 1, start, learning=(BASE,))
    same(trained(client, 1, start), body)
    (tuned,) = client.adapt([body], [ClientRequest(1, 1, "evaluate", "test", body, adapt=2)])
    same(tuned, stepped(client, 1, stepped(client, 1, body)))


@pytest.mark.parametrize(
    ("method", "personal"),
    [("fedper", (WEIGHT, BIAS)), ("local_vpt", (BASE, WEIGHT, BIAS)), ("local_head", (WEIGHT, BIAS))],
)
def test_two_rounds_average_what_is_shared_by_images_and_go_on_from_what_is_personal(method, personal):
    cfg, client = made(method, "clients=4", "partition.quantity=2", "partition.max_train=24")
    loop = build.loop(cfg)
    strategy = build.strategy(cfg, loop)
    progress = loop.run(InProcessGrid(client, cfg.clients), strategy, client.initial(), Journal())
    start = client.model.initial
    clients = range(cfg.clients)
    images = [len(client.data.indices(p, "train")) for p in clients]
    states = [start] * cfg.clients
    for _ in range(2):
        states = [stepped(client, p, states[p]) for p in clients]
        mean = {name: sum(n * one[name] for n, one in zip(images, states, strict=True)) / sum(images) for name in start}
        states = [{name: one[name] if name in personal else mean[name] for name in one} for one in states]
    assert len(set(images)) > 1
    assert np.abs(states[0][WEIGHT] - states[1][WEIGHT]).max() > 1e-3
    for partition, state in enumerate(states):
        same({**from_record(progress.arrays), **progress.personal[partition]}, state)


def test_local_head_is_softmax_regression_on_frozen_features():
    """Without torch's gradient: W - rate X^T (p - y) / n."""
    _, client = made("local_head")
    start, index = client.model.initial, client.data.indices(0, "train")
    x = client.model.backbone.features(client.data.images.images[index]).numpy()
    y = np.eye(client.data.num_classes)[client.data.images.labels[index]]
    scores = np.exp(x @ start[WEIGHT] + start[BIAS])
    error = (scores / scores.sum(1, keepdims=True) - y) / len(y)
    found = trained(client, 0, start)
    np.testing.assert_allclose(found[WEIGHT], start[WEIGHT] - HEAD_RATE * x.T @ error, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found[BIAS], start[BIAS] - HEAD_RATE * error.sum(0), rtol=1e-4, atol=1e-6)

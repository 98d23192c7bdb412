"""The one batch loop: every client as if it had trained alone, on its own batches."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from fedbayes.errors import ConfigError
from fedbayes.inference.elbo import Objective
from fedbayes.optim.local_training import LocalTraining

DEFAULTS = {
    "name": "sgd",
    "lr": 0.1,
    "head_lr": 0.2,
    "local_epochs": 1,
    "batch_size": 4,
    "momentum": 0.9,
    "weight_decay": 0.0,
    "clip": None,
}


@dataclass
class Batch:
    """Targets of images, `(C, B)`, and where there is one."""

    target: Tensor
    mask: Tensor


def batches_of(counts: list[list[int]]) -> list[Batch]:
    """For each step, images of each client; padded."""
    masks = [torch.arange(max(step))[None] < torch.tensor(step)[:, None] for step in counts]
    return [Batch(torch.randn(mask.shape), mask) for mask in masks]


def problem(clients: int) -> dict[str, Tensor]:
    return {
        "generator.base": torch.ones(clients, 2).requires_grad_(),
        "head.bias": torch.zeros(clients, 1).requires_grad_(),
    }


def quadratic(parameters):
    """`(sum(base) + bias - target)^2` and its mean over a client's images."""

    def objective(batch: Batch) -> Objective:
        guess = parameters["generator.base"].sum(1, keepdim=True) + parameters["head.bias"]
        squares = (guess - batch.target).square() * batch.mask
        loss = squares.sum(1) / batch.mask.sum(1)  # NaN for a client without images
        return Objective(loss=loss, log_likelihood=-loss)

    return objective


COUNTS = [[3, 2], [3, 0], [2, 2], [1, 0]]
STEPS = [4, 2]


def test_each_client_trains_as_alone_with_torch():
    batches, parameters = batches_of(COUNTS), problem(2)
    metrics = LocalTraining(**DEFAULTS).fit(parameters, batches, quadratic(parameters), STEPS)
    for c in range(2):
        base, bias = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.zeros(1))
        optimiser = torch.optim.SGD([{"params": [base], "lr": 0.1}, {"params": [bias], "lr": 0.2}], momentum=0.9)
        total, images = 0.0, 0
        for batch in batches:
            targets = batch.target[c][batch.mask[c]]
            if len(targets):
                loss = (base.sum() + bias - targets).square().mean()
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                total, images = total + loss.item() * len(targets), images + len(targets)
        torch.testing.assert_close(parameters["generator.base"][c], base)
        torch.testing.assert_close(parameters["head.bias"][c], bias)
        assert metrics["loss"][c].item() == pytest.approx(total / images, rel=1e-5)
        assert metrics["log_likelihood"][c].item() == pytest.approx(-total / images, rel=1e-5)


def test_a_clients_nan_stays_its_own():
    batches = batches_of(COUNTS)
    results = []
    for spoil in (False, True):
        parameters = problem(2)
        if spoil:
            parameters["head.bias"].data[1] = torch.nan
        metrics = LocalTraining(**DEFAULTS).fit(parameters, batches, quadratic(parameters), STEPS)
        results.append((parameters["generator.base"][0], metrics["loss"][0]))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_a_loss_without_images_reaches_neither_parameters_nor_averages(name):
    batches, parameters = batches_of(COUNTS), problem(2)
    assert quadratic(parameters)(batches[1]).loss[1].isnan()
    metrics = LocalTraining(**{**DEFAULTS, "name": name}).fit(parameters, batches, quadratic(parameters), STEPS)
    assert metrics["loss"].isfinite().all()
    assert all(p.isfinite().all() for p in parameters.values())


@pytest.mark.parametrize(("rate", "still"), [("head_lr", "head.bias"), ("lr", "generator.base")])
def test_a_learning_rate_of_zero_leaves_its_part_alone(rate, still):
    parameters = problem(2)
    before = {key: p.detach().clone() for key, p in parameters.items()}
    options = {**DEFAULTS, "name": "adamw", "weight_decay": 0.1, rate: 0}
    LocalTraining(**options).fit(parameters, batches_of(COUNTS), quadratic(parameters), STEPS)
    assert {key for key, p in parameters.items() if torch.equal(p, before[key])} == {still}


def test_a_part_of_no_size_is_passed_over():
    parameters = {**problem(2), "generator.empty": torch.zeros(2, 0, requires_grad=True)}
    LocalTraining(**DEFAULTS).fit(parameters, batches_of(COUNTS), quadratic(parameters), STEPS)
    assert parameters["generator.empty"].shape == (2, 0)


SHAPES = {
    "constant": lambda _: 1.0,
    "linear": lambda share: 1 - share,
    "cosine": lambda share: (1 + math.cos(math.pi * share)) / 2,
}


@pytest.mark.parametrize("schedule", SHAPES)
@pytest.mark.parametrize("proximal", [0.0, 3.0])
@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_each_client_has_its_own_schedule_and_proximal_term(schedule, proximal, name):
    batches, parameters = batches_of(COUNTS), problem(2)
    training = LocalTraining(**{**DEFAULTS, "name": name, "schedule": schedule, "proximal": proximal, "clip": 0.7})
    training.fit(parameters, batches, quadratic(parameters), STEPS)
    optimisers = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name]
    more = {"momentum": 0.9} if name == "sgd" else {"weight_decay": 0.0}
    for c in range(2):
        base, bias = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.zeros(1))
        optimiser = optimisers([{"params": [base], "lr": 0.1}, {"params": [bias], "lr": 0.2}], **more)
        falling = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda t, c=c: SHAPES[schedule](t / STEPS[c]))
        for batch in batches:
            targets = batch.target[c][batch.mask[c]]
            if len(targets):
                loss = (base.sum() + bias - targets).square().mean()
                loss = loss + proximal / 2 * ((base - 1).square().sum() + bias.square().sum())
                optimiser.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_([base, bias], 0.7)
                optimiser.step()
                falling.step()
        torch.testing.assert_close(parameters["generator.base"][c], base, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(parameters["head.bias"][c], bias, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", "lbfgs"),
        ("lr", -0.1),
        ("head_lr", math.inf),
        ("head_lr", "high"),
        ("local_epochs", 0),
        ("batch_size", 0),
        ("batch_size", 2.5),
        ("momentum", -1),
        ("weight_decay", math.nan),
        ("clip", 0),
        ("schedule", "step"),
        ("proximal", -1),
        ("finetune_steps", -1),
    ],
)
def test_values_out_of_range_are_refused_by_name(key, value):
    with pytest.raises(ConfigError, match=rf"optim\.{key}={value}"):
        LocalTraining(**{**DEFAULTS, key: value})


def test_blocks_are_trained_one_after_another_and_the_rest_stays():
    training = LocalTraining(**{**DEFAULTS, "blocks": [["head"], ["generator.base"]]})
    parameters = problem(2)
    assert training.passes == 2 * DEFAULTS["local_epochs"]
    start = {name: p.detach().clone() for name, p in parameters.items()}
    for parts, moved in zip(training.blocks, ("head.bias", "generator.base"), strict=True):
        before = {name: p.detach().clone() for name, p in parameters.items()}
        training.fit(training.block(parameters, parts), batches_of(COUNTS), quadratic(parameters), STEPS)
        assert [name for name, p in parameters.items() if not torch.equal(p, before[name])] == [moved]
    assert all(not torch.equal(p, start[name]) for name, p in parameters.items())


def test_rates_that_leave_nothing_to_train_are_rejected():
    with pytest.raises(ConfigError, match=r"optim\.lr=0 and optim\.head_lr=0"):
        LocalTraining(**{**DEFAULTS, "lr": 0, "head_lr": 0})
    training = LocalTraining(**{**DEFAULTS, "head_lr": 0.0})
    head = {name: p for name, p in problem(2).items() if name.startswith("head.")}
    with pytest.raises(ConfigError, match=r"optim\.head_lr=0\.0 leave nothing to train of head"):
        training.fit(head, batches_of(COUNTS), quadratic(head), STEPS)


def test_a_part_is_a_whole_name_and_not_its_beginning():
    training = LocalTraining(**DEFAULTS)
    parameters = {name: torch.zeros(1) for name in ("generator.base", "generator.base_two", "generator.keys.weight")}
    assert list(training.block(parameters, ["generator.base"])) == ["generator.base"]
    assert list(training.block(parameters, ["generator.keys"])) == ["generator.keys.weight"]
    assert list(training.block(parameters, ["generator"])) == list(parameters)
    assert list(training.block(parameters, ())) == list(parameters)
    with pytest.raises(ConfigError, match=r"optim\.blocks names tail"):
        training.block(parameters, ["tail"])


@pytest.mark.parametrize("blocks", ["head", ["head"], [], [[]], [[1, "head"]], 3])
def test_blocks_that_are_no_lists_of_names_are_refused(blocks):
    with pytest.raises(ConfigError, match=r"optim\.blocks="):
        LocalTraining(**{**DEFAULTS, "blocks": blocks})

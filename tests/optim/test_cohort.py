"""Each client's steps against a torch optimiser of its own that saw only the batches the client was in."""

import math

import pytest
import torch

from fedbayes.errors import ConfigError
from fedbayes.optim.cohort import CohortOptimiser

CLIENTS, STEPS = 3, 7
SHAPES = {"head.weight": (4, 2), "generator.base": (3,)}
RATES = {"head.weight": 0.05, "generator.base": 0.01}
TORCH = {
    "sgd": lambda groups, decay: torch.optim.SGD(groups, momentum=0.9, weight_decay=decay),
    "adam": lambda groups, decay: torch.optim.Adam(groups, weight_decay=decay),
    "adamw": lambda groups, decay: torch.optim.AdamW(groups, weight_decay=decay),
}


def start(dtype=torch.float64):
    return {key: torch.randn(CLIENTS, *shape).to(dtype) for key, shape in SHAPES.items()}


def make(parameters, name, decay=0.0, clip=None, rates=RATES):
    options = {"learning_rates": rates, "momentum": 0.9, "weight_decay": decay, "clip": clip}
    return CohortOptimiser(parameters, name=name, **options)


def torch_alone(name, decay, clip, initial, gradients, active):
    """One client's parameters after torch's optimiser has taken the client's own steps."""
    leaves = {key: torch.nn.Parameter(value.clone()) for key, value in initial.items()}
    optimiser = TORCH[name]([{"params": [leaf], "lr": RATES[key]} for key, leaf in leaves.items()], decay)
    for gradient, present in zip(gradients, active, strict=True):
        if present:
            for key, leaf in leaves.items():
                leaf.grad = gradient[key].clone()
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(leaves.values(), clip)
            optimiser.step()
    return {key: leaf.detach() for key, leaf in leaves.items()}


@pytest.mark.parametrize("clip", [None, 1.5])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("name", TORCH)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_each_client_steps_as_torch_would_alone(name, decay, clip, dtype, tolerance):
    parameters = start(dtype)
    initial = {key: value.clone() for key, value in parameters.items()}
    gradients = [start(dtype) for _ in range(STEPS)]
    active = torch.tensor(
        [[1, 1, 1], [1, 0, 1], [0, 1, 1], [1, 1, 0], [0, 0, 1], [1, 1, 1], [0, 1, 0]], dtype=torch.bool
    )
    optimiser = make(parameters, name, decay, clip)
    for gradient, present in zip(gradients, active, strict=True):
        optimiser.step(gradient, present)
    for c in range(CLIENTS):
        of_client = ({key: value[c] for key, value in step.items()} for step in gradients)
        alone = torch_alone(name, decay, clip, {k: v[c] for k, v in initial.items()}, of_client, active[:, c])
        for key, value in alone.items():
            torch.testing.assert_close(parameters[key][c], value, rtol=0, atol=tolerance)


def test_the_first_adam_step_is_exact_in_float32():
    # The first step is the rate itself wherever the gradient is far from zero; 1 - 0.999 in float32 is off by 5e-5.
    parameter = {"w": torch.zeros(1, 4)}
    make(parameter, "adam", rates={"w": 1.0}).step(
        {"w": torch.tensor([[1.0, -2.0, 30.0, -400.0]])}, torch.tensor([True])
    )
    torch.testing.assert_close(parameter["w"], torch.tensor([[-1.0, 1.0, -1.0, 1.0]]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", TORCH)
def test_a_neighbours_nan_stays_its_own(name):
    clean = start()
    spoilt = {key: value.clone() for key, value in clean.items()}
    optimisers = [make(parameters, name, 0.1, 1.0) for parameters in (clean, spoilt)]
    for _ in range(3):
        gradient = start()
        bad = {key: value.clone() for key, value in gradient.items()}
        bad["generator.base"][1] = torch.nan
        optimisers[0].step(gradient, torch.ones(CLIENTS, dtype=torch.bool))
        optimisers[1].step(bad, torch.ones(CLIENTS, dtype=torch.bool))
    for key in clean:
        torch.testing.assert_close(clean[key][[0, 2]], spoilt[key][[0, 2]], rtol=0, atol=0)
    assert spoilt["generator.base"][1].isnan().all()


@pytest.mark.parametrize("name", TORCH)
def test_an_inactive_client_is_untouched_even_by_a_nan_gradient(name):
    parameters = start()
    before = {key: value.clone() for key, value in parameters.items()}
    optimiser = make(parameters, name, 0.1, 1.0)
    gradient = {key: torch.full_like(value, torch.nan) for key, value in parameters.items()}
    present = torch.tensor([False, True, False])
    optimiser.step(gradient, present)
    for key, value in parameters.items():
        assert torch.equal(value[~present], before[key][~present])
    optimiser.step(start(), ~present)
    assert all(value[~present].isfinite().all() for value in parameters.values())


def test_clipping_is_over_a_clients_whole_gradient_by_hand():
    parameters = {"a": torch.zeros(2, 1), "b": torch.zeros(2, 1)}
    optimiser = make(parameters, "sgd", clip=1.0, rates={"a": 1.0, "b": 1.0})
    optimiser.step({"a": torch.tensor([[3.0], [0.3]]), "b": torch.tensor([[4.0], [0.4]])}, torch.ones(2).bool())
    moved = torch.stack([-parameters["a"][:, 0], -parameters["b"][:, 0]], 1)
    torch.testing.assert_close(moved, torch.tensor([[0.6, 0.8], [0.3, 0.4]]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "rmsprop"}, r"optim\.name=rmsprop"),
        ({"momentum": 1.1}, r"optim\.momentum=1\.1"),
        ({"weight_decay": -1}, r"optim\.weight_decay=-1"),
        ({"clip": 0}, r"optim\.clip=0"),
        ({"clip": math.nan}, r"optim\.clip=nan"),
    ],
)
def test_values_out_of_range_are_refused_by_name(options, message):
    defaults = {"name": "sgd", "learning_rates": RATES, "momentum": 0.9, "weight_decay": 0.0, "clip": None}
    with pytest.raises(ConfigError, match=message):
        CohortOptimiser(start(), **{**defaults, **options})

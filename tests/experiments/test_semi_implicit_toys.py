"""The toy experiment where everything is known: a mixing without f, whose law is a normal."""

import json

import pytest
import semi_implicit_toys as toys
import torch
from torch.distributions import Normal


@pytest.fixture
def quick(monkeypatch):
    for name, value in {"COMPONENTS": (2_000, 4_000), "POINTS": 512, "SAMPLES": 1_000}.items():
        monkeypatch.setattr(toys, name, value)
    return toys


@pytest.fixture
def without_f():
    torch.manual_seed(0)
    posterior = toys.Posterior(toys.Recipe(scale=(0.5, 1.0)))
    for parameter in posterior.f.parameters():
        torch.nn.init.zeros_(parameter)
    return posterior


def test_density_of_a_linear_mixing_is_the_normal_it_is(without_f):
    law = Normal(torch.zeros(2), torch.tensor([1.25, 2.0]).sqrt())
    z = law.sample((200,))
    exact = law.log_prob(z).sum(-1)
    with torch.no_grad():
        errors = [(without_f.log_density(z, n) - exact).abs() for n in (500, toys.COMPONENTS[0])]
    assert errors[1].mean() < 0.001 < errors[0].mean()


def test_divergence_of_a_normal_from_a_normal(quick, without_f):
    standard = quick.Target(
        lambda z: Normal(0.0, 1.0).log_prob(z).sum(-1), lambda n: torch.randn(n, 2), (0, 0), (0, 0, 0, 0)
    )
    found = quick.evaluate(without_f, standard)
    exact = sum(0.5 * (v - 1 - torch.tensor(v).log().item()) for v in (1.25, 2.0))
    assert found["kl"] == pytest.approx(exact, abs=0.01)
    assert found["mixing_ratio"] == pytest.approx(2 / 3.25, abs=0.03)


def test_two_steps_with_the_reverse_model_move_every_parameter():
    recipe = toys.Recipe(reverse=True, num_extra=3, draws=20, steps=2)
    torch.manual_seed(0)
    start, end = toys.Posterior(recipe), toys.fit(toys.TARGETS["banana"], recipe, 0)
    for (name, before), after in zip(start.named_parameters(), end.parameters(), strict=True):
        assert not torch.equal(before, after), name


def test_finished_fit_is_read_and_one_of_another_recipe_is_not(quick, tmp_path):
    job = quick.Job("SIVI", "x_shaped", quick.Recipe(steps=2), seed=0)
    first = quick.perform(job, tmp_path)
    assert json.loads((tmp_path / "fits" / "x_shaped-SIVI-0.json").read_text()) == first
    assert quick.perform(job, tmp_path) == first, "its seconds included"
    longer = quick.perform(quick.replace(job, recipe=quick.Recipe(steps=3)), tmp_path)
    assert longer["job"]["recipe"]["steps"] == 3

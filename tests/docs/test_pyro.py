"""The code of docs/pyro.md: the bent posterior is found, and every other guide trains."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pages import ROOT, blocks
from pyro.infer import SVI, Trace_ELBO

EXACT = -1.348
"""log evidence of the bent model, from a grid."""


@pytest.fixture(scope="module")
def page():
    """The names that the code of the page defines, after a shorter training."""
    pyro.clear_param_store()
    scope = {}
    code = [block.body for block in blocks((ROOT / "docs" / "pyro.md").read_text()) if block.language == "python"]
    exec("\n".join(code).replace("STEPS = 600", "STEPS = 300"), scope)
    yield scope
    pyro.clear_param_store()


def test_the_bent_posterior_is_found(page):
    assert EXACT - 0.3 < page["lower"] < EXACT + 0.05
    assert page["lower"] < page["upper"] + 0.05
    p = page["samples"]
    assert abs((p[:, 1] + p[:, 0] ** 2).mean() - 0.8) < 0.3
    assert 0.3 < (p[:, 0] < 0).float().mean() < 0.7, "both sides of the bend"


def test_predictions_and_diagnostics(page):
    assert page["new_y"].shape == (50,)
    assert 1 <= page["mixture"].effective_components.mean() <= 21
    assert page["mixture"].bound_saturation.max() <= 1


def steps(model, guide, *args):
    """Two losses."""
    elbo = Trace_ELBO(num_particles=8, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), elbo)
    return torch.tensor([svi.step(*args) for _ in range(2)])


def test_other_guides_train(page):
    def rate():
        pyro.sample("rate", dist.Gamma(torch.ones(1), 1.0).to_event(1))

    def batch():
        with pyro.plate("data", 7):
            pyro.sample("p", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    x = torch.randn(7, 3)
    assert steps(page["model"], page["guide_with_reverse"], page["y"]).isfinite().all()
    assert steps(rate, lambda: page["guide_of_a_rate"](torch.nn.Linear(4, 1), 0.3)).isfinite().all()
    assert steps(batch, lambda: page["guide_of_a_batch"](torch.nn.Linear(7, 2), x, 0.3)).isfinite().all()

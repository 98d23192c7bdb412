"""The README is short, quotes the tables, and its code runs; the guide of docs/pyro.md finds its posterior."""

import re

import numpy as np
import pyro
import results_page
import torch
from PIL import Image

from fedbayes.inference.mixing import Pushforward
from fedbayes.inference.semi_implicit import SemiImplicitNormal

README = results_page.README.read_text(encoding="utf-8")
PYRO = (results_page.README.parent / "docs" / "pyro.md").read_text(encoding="utf-8")


def code(text, word):
    (block,) = (found for found in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if word in found)
    return block


def test_it_is_short_and_its_rows_are_generated():
    assert len(README.splitlines()) <= 130
    assert len(README.encode()) <= 9_000
    assert results_page.with_headline(README) == README


def test_the_code_from_python_simulates_and_predicts(monkeypatch, tmp_path):
    asked = '["method=pfedbayespt", "rounds=5"]'
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.png"):
        Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(name)
    scope = {}
    exec(code(README, "simulate").replace(asked, '["method=pfedbayespt", "experiment=smoke"]'), scope)
    assert len(scope["runs"]) == 1
    assert len(scope["prediction"].labels) == 2
    np.testing.assert_allclose(scope["prediction"].probabilities.sum(1), 1, atol=1e-5)


def test_the_guide_finds_its_posterior():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    scope = {}
    try:
        exec(code(PYRO, "def guide").replace("range(1000)", "range(300)"), scope)
        losses = scope["losses"]
        assert sum(losses[-20:]) < 0.5 * sum(losses[:20])
        with torch.no_grad():
            samples = SemiImplicitNormal(Pushforward(scope["net"], 3), pyro.param("scale"), 10).rsample((500,))
        assert abs(samples.prod(-1).median().item() - 1.0) < 0.3, "p1 p2 = y"
    finally:
        pyro.clear_param_store()

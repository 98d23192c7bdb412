"""The code in the README runs and does what it says."""

import re
from pathlib import Path

import numpy as np
import pyro
import torch
from PIL import Image

README = Path(__file__).resolve().parent.parent / "README.md"


def test_the_guide_in_the_readme_finds_its_posterior():
    (block,) = (code for code in re.findall(r"```python\n(.*?)```", README.read_text(), re.S) if "def guide" in code)
    assert len(re.search(r"def guide.*?\n\n", block, re.S)[0].strip().splitlines()) <= 10
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    scope = {}
    try:
        exec(block.replace("range(1000)", "range(300)"), scope)
        losses = scope["losses"]
        assert sum(losses[-20:]) < 0.5 * sum(losses[:20])
        from fedbayes.inference.mixing import Pushforward
        from fedbayes.inference.semi_implicit import SemiImplicitNormal

        with torch.no_grad():
            found = SemiImplicitNormal(Pushforward(scope["net"], 3), pyro.param("scale"), 10).rsample((500,))
        assert abs(found.prod(-1).median().item() - 1.0) < 0.3, "p1 p2 = y"
    finally:
        pyro.clear_param_store()


def test_the_code_from_python_simulates_and_predicts(monkeypatch, tmp_path):
    (block,) = (code for code in re.findall(r"```python\n(.*?)```", README.read_text(), re.S) if "simulate" in code)
    asked = '["method=pfedbayespt", "rounds=5"]'
    assert block.count(asked) == 1
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.png"):
        Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(name)
    scope = {}
    exec(block.replace(asked, '["method=pfedbayespt", "experiment=smoke"]'), scope)
    assert len(scope["said"].labels) == 2
    np.testing.assert_allclose(scope["said"].probabilities.sum(1), 1, atol=1e-5)

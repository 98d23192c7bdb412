"""The README is short, quotes the tables, and its code runs."""

import re

import numpy as np
import results_page
from PIL import Image

README = results_page.README.read_text(encoding="utf-8")


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
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(code.replace(asked, '["method=pfedbayespt", "experiment=smoke"]'), scope)
    assert len(scope["runs"]) == 1
    assert len(scope["prediction"].labels) == 2
    np.testing.assert_allclose(scope["prediction"].probabilities.sum(1), 1, atol=1e-5)

"""A silent loss of accuracy fails here: the default method learns to a known accuracy and NLL.

It takes about ten seconds, since five rounds of ten clients on the real default images are the least that tells a
method that learns from one that does not: the bounds leave room for other machines, seeds and rounding, no more.
"""

import pytest

from fedbayes import simulate

pytestmark = pytest.mark.usefixtures("no_pictures")


def test_the_default_learns_in_five_rounds(tmp_path):
    words = ["rounds=5", "evaluate.every=5", "evaluate.gallery=false", "inference.predict_samples=4"]
    summary = simulate([*words, f"run_dir={tmp_path / 'run'}"])
    final = summary["final"]
    assert 0.80 < final["accuracy"]["mean"] < 0.92
    assert 0.30 < final["nll"] < 0.60
    assert final["ece"] < 0.10

"""Every method is complete: a YAML that says whose it is, a test, a row in docs/methods.md; and no two are the same."""

import re
from pathlib import Path

import numpy as np
import pytest
from journal import Journal
from smoke import play_rounds, smoke

from fedbayes import build
from fedbayes.config.compose import CONF, compose

ROOT = Path(__file__).resolve().parent.parent
METHODS = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))
TABLE = (ROOT / "docs" / "methods.md").read_text().split("## ")[0]
ROWS = dict(re.findall(r"^\| `(\w+)` \|(.*)\|$", TABLE, re.MULTILINE))
WITHOUT_PAPER = {
    *("deterministic_prompts", "gaussian_prompts", "deterministic_prompts_personal", "gaussian_prompts_personal"),
    *("local_head", "local_vpt", "centralised"),
}
"""Ablations and bounds, which are named after what they are."""

OF_SOMETHING_ELSE = {
    *("test_adaptation.py", "test_wrapping_clients.py", "test_prompt_tuning.py"),
    *("test_private.py", "test_server_optimiser.py", "test_anchored.py", "test_robust.py"),
}
"""Tests in which methods serve what works with many of them."""

UNEQUAL = ("partition.quantity=2.5", "partition.min_images=6", "partition.seed=2")
"""Six, eight and eight training images: means over clients and over images differ."""

_played = {}


def played(method):
    """Two rounds on the small configuration, and the predictions that came out of them."""
    if method not in _played:
        cfg, client = smoke(f"method={method}", *UNEQUAL)
        client.prepare()
        _played[method] = play_rounds(cfg, client, Journal()).final.pooled.probabilities
    return _played[method]


AVERAGING = [name for name in METHODS if "- base/averaging" in (CONF / "method" / f"{name}.yaml").read_text()]


@pytest.mark.parametrize("method", AVERAGING)
def test_whatever_averages_takes_a_robust_aggregate_as_the_documentation_says(method):
    cfg = compose(["experiment=smoke", f"method={method}", "method.strategy.aggregate=krum"])
    assert not build.strategy(cfg, build.loop(cfg, build.sampling(cfg))).plain_mean
    plain = compose(["experiment=smoke", f"method={method}"])
    assert build.strategy(plain, build.loop(plain, build.sampling(plain))).plain_mean


@pytest.mark.parametrize("method", METHODS)
def test_predictions_are_probabilities(method):
    probabilities = played(method)
    assert bool((probabilities >= 0).all())
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)


def test_no_two_methods_give_the_same_result():
    """Beyond rounding, each as its file has it."""
    found = {method: played(method) for method in METHODS}
    same = [
        (one, other)
        for place, one in enumerate(METHODS)
        for other in METHODS[:place]
        if np.allclose(found[one], found[other], rtol=0, atol=1e-4)
    ]
    assert same == []


@pytest.mark.parametrize("method", METHODS)
def test_the_yaml_says_what_it_is_and_whose(method):
    lines = (CONF / "method" / f"{method}.yaml").read_text().splitlines()
    header = " ".join(line for line in lines[: lines.index("defaults:")] if line.startswith("# "))
    assert lines[0] == "# @package _global_"
    assert ("arXiv" in header or "et al." in header) or method in WITHOUT_PAPER, header
    assert compose([f"method={method}"]).method.name == method


@pytest.mark.parametrize("method", METHODS)
def test_the_readme_has_a_row_with_its_reference_and_files(method):
    assert method in ROWS, "no row in docs/methods.md"
    _, paper, client, strategy = ROWS[method].split("|")
    assert "](http" in paper or method in WITHOUT_PAPER, paper
    cfg = compose([f"method={method}"])
    targets = {"clients": cfg.method.client._target_, "strategies": cfg.method.strategy._target_}
    for folder, cell in (("clients", client), ("strategies", strategy)):
        (name,) = re.findall(r"`(\w+)\.py`", cell)
        assert (ROOT / folder / f"{name}.py").is_file(), name
        assert targets[folder].startswith(f"{folder}.{name}.")


@pytest.mark.parametrize("method", METHODS)
def test_a_test_knows_it_by_name(method):
    """Because of what defines it: an argument of a test or whom the file is about, no word in passing.

    Not by going through all of them, nor where it serves a test of something else.
    """
    folders = [ROOT / "tests" / folder for folder in ("clients", "strategies")]
    files = [path for folder in folders for path in folder.glob("*.py") if path.name not in OF_SOMETHING_ELSE]
    names = re.compile(rf'["=]{method}"|\A"""{method}:')
    assert [path.name for path in files if names.search(path.read_text())]


@pytest.mark.parametrize("partition", sorted(path.stem for path in (CONF / "partition").glob("*.yaml")))
def test_the_partition_follows_the_seed_unless_it_has_its_own(partition):
    assert compose([f"partition={partition}"]).partition.seed == 0
    assert compose([f"partition={partition}", "seed=3"]).partition.seed == 3
    assert compose([f"partition={partition}", "seed=3", "partition.seed=1"]).partition.seed == 1

"""Any value for any key: a run that ends with the values it was given, or one error that a user can mend.

Nothing else: no other exception, no warning that numpy or torch would only print, no silent change.
"""

import contextlib
import functools
import io
import json
import math
import tempfile
from pathlib import Path

import hypothesis
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from fedbayes import simulate
from fedbayes.config.compose import CONF, compose
from fedbayes.errors import FedbayesError

pytestmark = pytest.mark.usefixtures("no_pictures")

BASE = ("experiment=smoke", "simulation.threads=1")
ASIDE = ("run_dir", "resume", "method.name", "names", "tracking")
"""Not a value of the experiment, or checked elsewhere."""
METHODS = sorted(path.stem for path in (CONF / "method").glob("*.yaml") if path.stem != "fedavg_full")
OTHERS = {
    "partition": ["domain_mixture", "iid", "label_dirichlet", "one_domain", "domain_and_label", "label_shards"],
    "attack": ["none", "label_flip", "sign_flip", "backdoor", "gaussian_noise", "scaled_update"],
    "server.name": ["none", "momentum", "adam", "yogi"],
    "generator.kind": ["fixed", "deterministic", "gaussian", "low_rank", "semi_implicit"],
}
WORDS = [
    "",
    "x",
    "none",
    "null",
    "auto",
    "full",
    "accuracy",
    "nll",
    "mean",
    "median",
    "head",
    "generator",
    "ä",
    "1e",
    "-",
]
RUBBISH = st.one_of(
    st.none(), st.booleans(), st.sampled_from(WORDS), st.sampled_from([[], [0], ["x"], ["head"], [None], [[1]], {}]),
    st.sampled_from([math.nan, math.inf, -math.inf, 1e30, -1e30, 1e-30, -1, 0, 10**12]),
)  # fmt: skip
HUGE = {"simulation.threads": 3}
"""Sizes above it, or above 40, are a user's wish for much memory and time, which nobody should refuse."""
GONE = "~"
"""Stands for a key that is taken away."""


def leaves(node, prefix=""):
    """Full names of all single values, with these."""
    if not isinstance(node, dict):
        return {prefix[:-1]: node}
    found = {}
    for name, value in node.items():
        found |= leaves(value, f"{prefix}{name}.")
    return found


def parts(node, prefix=""):
    """Full names of all sections."""
    found = [prefix[:-1]] if prefix else []
    for name, value in node.items():
        found += parts(value, f"{prefix}{name}.") if isinstance(value, dict) else []
    return found


@functools.cache
def keys_of(*choices):
    """Single values by their names, and the names of sections."""
    config = OmegaConf.to_container(compose([*BASE, *choices]))
    values = {key: value for key, value in leaves(config).items() if not key.startswith(ASIDE)}
    values = {key: value for key, value in values.items() if "${" not in str(value)}  # another key's
    return values, [name for name in parts(config) if not name.startswith(ASIDE)]


def is_made(key):
    """Whether it says what is called, and not with what."""
    return key.rpartition(".")[2].startswith("_")


def mild(value):
    """Values that may well work."""
    if isinstance(value, bool):
        return st.booleans()
    if isinstance(value, int):
        return st.integers(max(0, value - 1), value + 3)
    if isinstance(value, float):
        return st.one_of(st.sampled_from([value, value / 2, value * 1.5]), st.floats(0, 1))
    if value is None:
        return st.sampled_from([None, 1, 0.5])
    return st.just(value)


@st.composite
def configurations(draw):
    method = draw(st.sampled_from(METHODS))
    chosen = {}
    for name, options in OTHERS.items():
        if draw(st.integers(0, 3)) == 0:
            chosen[name] = draw(st.sampled_from(options))
    values = {}
    there, sections = keys_of(f"method={method}", *(f"{name}={option}" for name, option in sorted(chosen.items())))
    for _ in range(draw(st.integers(1, 4))):
        key = draw(st.sampled_from([name for name in there if not is_made(name)]))
        if key not in chosen:
            values[key] = small(key, there[key], draw(mild(there[key]) if draw(st.integers(0, 7)) else RUBBISH))
    if draw(st.integers(0, 11)) == 0:  # the structure itself
        part = draw(st.sampled_from([*sections, *filter(is_made, there)]))
        values = {part: draw(st.one_of(st.just(GONE), RUBBISH))}
    return method, chosen, values


def small(key, usual, value):
    """Absurd sizes only where they are refused before they cost anything."""
    most = HUGE.get(key, 40)
    number = isinstance(value, int | float) and not isinstance(value, bool) and value > most
    return most if number and isinstance(usual, int) else value


def written(value):
    """As on the command line."""
    if isinstance(value, str):
        return "'" + value.replace("'", "\\'") + "'"
    if isinstance(value, list):
        return "[" + ",".join(map(written, value)) + "]"
    if isinstance(value, dict):
        return "{}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def run_one(method, chosen, values):
    """The outcome of one configuration: `ran`, or the class of a user's error."""
    overrides = [*BASE, f"method={method}", *(f"{name}={value}" for name, value in chosen.items())]
    overrides += [f"~{key}" if value is GONE else f"{key}={written(value)}" for key, value in values.items()]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        run_dir = Path(folder) / "run"
        try:
            summary = simulate([*overrides, f"run_dir={run_dir}"])
        except FedbayesError as error:
            said = str(error)
            assert said, overrides
            assert "\n" not in said, (overrides, said)
            return type(error).__name__
        if values.get("dry_run") is True:
            assert not run_dir.exists(), overrides
            return "estimated"
        config = leaves(OmegaConf.to_container(OmegaConf.load(run_dir / "config.yaml")))
        for key, value in values.items():
            assert value is not GONE or key not in config
            if value not in ({}, GONE) and not (isinstance(value, float) and math.isnan(value)):
                assert config[key] == value, (key, value, config[key])

        def refuse(word):
            raise AssertionError(f"{word} in summary.json")

        text = (run_dir / "summary.json").read_text()
        json.loads(text, parse_constant=refuse)
        final = summary["final"]
        assert 0 <= final["accuracy"]["mean"] <= 1
        assert final["nll"] >= 0
    return "ran"


def fuzz(examples, seed):
    outcomes = []

    @hypothesis.seed(seed)
    @settings(
        max_examples=examples, deadline=None, database=None, report_multiple_bugs=True,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(configurations())
    def every(configuration):
        outcome = run_one(*configuration)
        outcomes.append(outcome)
        event(outcome)

    every()
    return outcomes


def test_any_value_for_any_key():
    outcomes = fuzz(40, 1)
    assert outcomes.count("ran") >= 0.2 * len(outcomes), "the first examples are the simplest, and repeat one another"


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_thousand_configurations():
    outcomes = fuzz(1000, 0)
    print({one: outcomes.count(one) for one in sorted(set(outcomes))})
    assert len(outcomes) >= 1000
    assert outcomes.count("ran") >= 0.3 * len(outcomes)

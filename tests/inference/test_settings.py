"""The warm-up of the KL weight, and what is refused."""

import math

import pytest

from fedbayes.errors import ConfigError
from fedbayes.inference.settings import InferenceSettings

DEFAULTS = {
    "train_samples": 1,
    "num_extra": 10,
    "predict_samples": 5,
    "beta": 0.2,
    "beta_warmup": 4,
    "reverse": "none",
}


def test_beta_rises_linearly_and_stays():
    settings = InferenceSettings(**DEFAULTS)
    assert [settings.beta_at(r) for r in (1, 2, 4, 9)] == pytest.approx([0.05, 0.1, 0.2, 0.2])
    assert InferenceSettings(**{**DEFAULTS, "beta_warmup": 0}).beta_at(1) == 0.2


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train_samples", 0),
        ("num_extra", -1),
        ("num_extra", 1.5),
        ("predict_samples", 0),
        ("beta", -0.1),
        ("beta", math.nan),
        ("beta", True),
        ("beta_warmup", -1),
        ("reverse", "flow"),
    ],
)
def test_values_out_of_range_are_refused_by_name(key, value):
    with pytest.raises(ConfigError, match=rf"inference\.{key}={value}"):
        InferenceSettings(**{**DEFAULTS, key: value})


def test_a_reverse_model_needs_a_kl_to_learn_from():
    with pytest.raises(ConfigError, match=r"inference\.reverse=gaussian"):
        InferenceSettings(**{**DEFAULTS, "reverse": "gaussian", "beta": 0})

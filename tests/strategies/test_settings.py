"""Settings of strategies and wrappers that cannot work are named."""

import re
from functools import partial

import pytest

from fedbayes.errors import ConfigError
from strategies.averaging import Averaging
from strategies.fedcof import FedCOF
from strategies.fedncm import FedNCM
from strategies.pfedbayes import PFedBayes
from strategies.pfedpg import PFedPG
from strategies.pfpt import PFPT
from strategies.private import PrivateAveraging
from strategies.server_optimiser import ServerOptimiser
from strategies.sgpt import SGPT

DEFAULTS = {
    Averaging: {},
    FedCOF: {},
    FedNCM: {},
    PFedBayes: {"aggregate": "mean"},
    PFedPG: {"clients": 4, "seed": 0, "lr": 0.1, "steps": 1, "width": 4},
    PFPT: {"noise": 1.0, "mass": 1.0, "sweeps": 1},
    SGPT: {"momentum": 0.5},
    PrivateAveraging: {
        "noise": 1.0,
        "clip": 1.0,
        "groups": None,
        "delta": None,
        "clients": 4,
        "per_round": 4,
        "key": 0,
    },
    ServerOptimiser: {"name": "adam"},
}


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (Averaging, [("aggregate", "mode"), ("malicious_fraction", 0.5)]),
        (FedCOF, [("shrinkage", -1), ("temperature", 0), ("temperature", float("nan"))]),
        (FedNCM, [("temperature", 0.0)]),
        (PFedBayes, [("aggregate", "median"), ("beta", 0)]),
        (PFedPG, [("lr", 0), ("steps", 0), ("width", 0)]),
        (PFPT, [("noise", 0), ("mass", 0), ("sweeps", -1), ("sweeps", 1.5)]),
        (SGPT, [("momentum", -0.1), ("momentum", 1.5), ("momentum", "half")]),
        (
            PrivateAveraging,
            [("noise", 0), ("noise", 1e300), ("clip", 0), ("delta", 2.0), ("delta", 0.999)]
            + [("groups", groups) for groups in ("head", [], {})],
        ),
        (ServerOptimiser, [("name", "sgd"), ("lr", 0), ("tau", 0), ("beta2", 1.5), ("momentum", -0.1)]),
    ],
)
def test_settings_that_cannot_work_are_named(kind, settings):
    prefix = {PrivateAveraging: "privacy", ServerOptimiser: "server"}.get(kind, "method.strategy")
    make = partial(kind, Averaging()) if prefix != "method.strategy" else kind
    for name, value in settings:
        with pytest.raises(ConfigError, match=re.escape(f"{prefix}.{name}={value}")):
            make(**{**DEFAULTS[kind], name: value})

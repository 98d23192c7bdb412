"""An exception in a user's own client: where it was raised is said once, and `debug=true` raises it."""

import traceback

import pytest

from fedbayes import build, simulate
from fedbayes.config.compose import compose
from fedbayes.errors import ConfigError, RunError

pytestmark = pytest.mark.usefixtures("no_pictures")
METHOD = """
import numpy as np
from clients.prompt_tuning import PromptTuningClient

class Broken:
    def __init__(self, **settings):
        self.inner = PromptTuningClient(**settings)
        self.data, self.prepare, self.initial, self.evaluate = (
            self.inner.data, self.inner.prepare, self.inner.initial, self.inner.evaluate
        )

    def train(self, requests):
        np.stack([np.zeros(2), np.zeros(3)])  # line 13: raises inside NumPy
"""


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """A client in a user's own module, and the overrides that choose it."""
    (tmp_path / "broken_method.py").write_text(METHOD)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path, [
        *("experiment=smoke", "method=fedavg_head", "method.client._target_=broken_method.Broken"),
        *("simulation.retries=0", f"run_dir={tmp_path / 'run'}"),
    ]


def test_the_line_of_the_users_own_code_is_said_once_and_the_log_has_the_traceback(broken):
    folder, overrides = broken
    with pytest.raises(RunError, match=r"ValueError: .*broken_method\.py, line 13"):
        simulate(overrides)
    log = (folder / "run" / "run.log").read_text()
    assert log.count("clients 0, 1, 2 rejected: ValueError") == 1
    assert log.count("    Traceback (most recent call last):") == 1
    assert "\\nTraceback" not in log, "its line breaks are line breaks"
    assert sum("broken_method.py" in line and "in train" in line for line in log.splitlines()) == 1


def test_debug_raises_the_first_exception_with_its_traceback(broken):
    _, overrides = broken
    with pytest.raises(ValueError, match="same shape") as raised:
        simulate([*overrides, "debug=true"])
    assert any(frame.filename.endswith("broken_method.py") for frame in traceback.extract_tb(raised.tb))


def test_debug_takes_few_images_one_thread_and_no_retries():
    cfg = compose(["debug=true", "clients=3"])
    assert all(len(ids) <= 8 for split in build.data(cfg).clients for ids in split.parts().values())
    assert build.engine(cfg).threads == 1
    assert build.loop(cfg, build.sampling(cfg)).training.retries == 0
    with pytest.raises(ConfigError, match="debug=true"):
        build.engine(compose(["debug=true", "simulation=ray"]))

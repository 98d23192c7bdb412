"""What TensorBoard reads back of a run."""

import json
import sys

import pytest
from breaking import broken
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fedbayes import simulate
from fedbayes.errors import ConfigError
from fedbayes.run import resume

pytestmark = pytest.mark.usefixtures("no_pictures")


def test_a_resumed_run_has_every_round_once(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    settings = ["experiment=smoke", "rounds=3", "method=fedvpt", "tracking=tensorboard", "simulation.threads=1"]
    broken([*settings, "checkpoint.every=2", f"run_dir={folder}"], monkeypatch, 2)
    resume(folder)
    events = EventAccumulator(str(folder / "tensorboard"), {"histograms": 0}).Reload()  # 0: all of them
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for phase, name in (("train", "loss"), ("validation", "accuracy"), ("test", "nll")):
        expected = {row["round"]: row[name] for row in rows if row["phase"] == phase}
        scalars = events.Scalars(f"{phase}/{name}")
        assert len(scalars) == len(expected)
        assert {event.step: event.value for event in scalars} == pytest.approx(expected, rel=1e-6)
    assert [event.step for event in events.Histograms("validation/clients/accuracy")] == [1, 2, 3]
    assert "fedvpt" in events.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()


def test_it_ends_in_one_line_where_it_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"fedbayes\[tensorboard\]"):
        simulate(["experiment=smoke", "rounds=1", "tracking=tensorboard", f"run_dir={tmp_path / 'run'}"])

"""Runs of an experiment: what is done again, and what is refused."""

import json

import jobs
import pytest
import yaml
from omegaconf import OmegaConf

from fedbayes.config.compose import compose


def test_a_run_that_broke_off_goes_on_and_only_with_its_own_settings(tmp_path, capsys):
    folder, overrides = tmp_path / "run", ("experiment=smoke", "method=fedvpt", "rounds=2")
    assert jobs.run((folder, overrides)).startswith("done")
    whole = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").unlink()
    (folder / "checkpoint" / "round-00002").rename(tmp_path / "gone")
    with pytest.raises(SystemExit, match="rounds=2"):
        jobs.require_same([(folder, (*overrides[:2], "rounds=3"))])
    broken = (tmp_path / "broken", ("experiment=smoke", "rounds=0"))
    assert jobs.run_all([(folder, overrides), broken], 1) == [folder, broken[0]]
    assert "FAILED" in capsys.readouterr().out
    assert json.loads((folder / "summary.json").read_text())["final"] == whole["final"]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows if row["phase"] == "train"] == [1, 2]


def test_a_run_made_with_other_settings_is_refused(tmp_path):
    job = (tmp_path / "run", ("method=fedvpt", "data=imagefolder", "data.root=here"))
    cfg = compose([*job[1], "simulation.threads=1", "data.root=elsewhere", "run_dir=elsewhere"])
    job[0].mkdir()
    jobs.require_same([job])
    (job[0] / "summary.json").write_text("{}")
    with pytest.raises(SystemExit, match=r"config\.yaml"):
        jobs.require_same([job])
    stored = OmegaConf.to_container(cfg, resolve=True)
    (job[0] / "config.yaml").write_text(yaml.safe_dump({**stored, "gone": 1}))
    jobs.require_same([job])
    with pytest.raises(SystemExit, match=r"aggregate=mean, not median, optim\.head_lr=0\.01, not 0\.5"):
        jobs.run_all([(job[0], (*job[1], "optim.head_lr=0.5", "method.strategy.aggregate=median"))], 1)


def test_quoted_values_make_no_folder_that_the_command_cannot_read(tmp_path):
    folder = jobs.folder_of(tmp_path, ("method=fedvpt", "data.root='/a b/c'", 'backbone.checkpoint="d"'))
    assert compose([f"run_dir='{folder}'"]).run_dir == str(folder)
    assert folder.name == "method=fedvpt,data.root=_a b_c,backbone.checkpoint=d"

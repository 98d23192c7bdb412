"""The sweep that Weights & Biases would steer: its agent's own words run offline."""

import json
from pathlib import Path

import yaml
from processes import fedbayes
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args


def test_a_sweep_of_weights_and_biases_runs_offline(tmp_path):
    config = yaml.safe_load((Path(__file__).parents[2] / "experiments" / "wandb_sweep.yaml").read_text())
    values = {"method": "fedvpt", "optim.lr": 0.01, "optim.head_lr": 0.01, "seed": 1}
    assert values.keys() == config["parameters"].keys()
    arguments = create_sweep_command_args({"args": {key: {"value": value} for key, value in values.items()}})
    command = create_sweep_command(config["command"])
    place = command.index("${args_no_hyphens}")
    words = [*command[command.index("fedbayes") + 1 : place], *arguments["args_no_hyphens"]]
    done = fedbayes(
        *words, "experiment=smoke", "rounds=1", f"run_dir={tmp_path / 'run'}", cwd=tmp_path, WANDB_MODE="offline"
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["method"], summary["seed"]) == ("fedvpt", 1)
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*"))

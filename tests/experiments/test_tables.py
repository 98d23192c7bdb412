"""Tables of methods: every run composes, all methods get as many trials, and a line is what its runs say."""

import json
from pathlib import Path

import numpy as np
import protocols
import pytest
import tables
import tune
import yaml
from safetensors.numpy import save_file

from fedbayes.config.compose import CONF, compose, quoted

METHODS = {path.stem for path in (CONF / "method").glob("*.yaml")}


def test_the_waves_hold_every_method_once():
    assert sorted(protocols.EVERY) == sorted(METHODS)


def test_every_run_of_every_table_composes_into_a_folder_of_its_own(tmp_path):
    for name in tables.TABLES:
        found = tables.jobs(name, METHODS, tmp_path, Path("data"), Path("weights"))
        assert len(found) == 3 * len(METHODS)
        assert len({folder for folder, _ in found.values()}) == len(found)
        for method, seed in (("pfedbayespt", 0), ("fedncm", 2)):
            cfg = compose(found[method, seed][1])
            assert (cfg.method.name, cfg.seed, cfg.partition.seed) == (method, seed, seed)


def test_choices_of_the_first_section_are_written_by_hand_and_the_others_into_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(tune, "SELECTED", tmp_path / "selected.yaml")
    (tmp_path / "selected.yaml").write_text("photos: {fedvpt: [optim.head_lr=1]}\n")
    tune.write("mixture", {"fedvpt": ("optim.head_lr=2",)})
    tune.write("photos", {"fedper": ("optim.head_lr=3",)})
    written = yaml.safe_load((tmp_path / "selected.yaml").read_text())
    assert written == {"photos": {"fedvpt": ["optim.head_lr=1"], "fedper": ["optim.head_lr=3"]}}
    assert not any(tables.selected("mixture", method) for method in METHODS), "choices that are the methods' defaults"


@pytest.mark.parametrize("name", ["plain", "it's", 'a "b"', "back\\slash", "two\\\\", "a\\'b\\", "a, b=c [d] {e}"])
def test_a_quoted_value_is_read_back_as_it_was(name):
    assert compose([f"run_dir={quoted(name)}"]).run_dir == str(Path.cwd() / name), "paths are absolute"


def test_a_table_on_other_images_runs_nothing_that_was_not_chosen_for_them(monkeypatch, tmp_path):
    (tmp_path / "selected.yaml").write_text("photos: {fedvpt: [optim.lr=0.5]}")
    monkeypatch.setattr(tables, "HERE", tmp_path)
    assert tables.unchosen("digits_mixture", ["fedvpt", "fedavg_full"]) == []
    assert tables.unchosen("office_mixture", ["fedvpt", "fedavg_full"]) == ["fedavg_full"]


def write(folder, accuracy, nll, probabilities):
    folder.mkdir(parents=True)
    of_clients = {"mean": accuracy, "worst_decile": accuracy / 2}
    final = {"accuracy": of_clients, "nll": nll, "ece": 0.1}
    summary = {"final": final, "best": final, "rounds": 5, "clients": 2, "seconds": {"total": 9.0}}
    (folder / "summary.json").write_text(json.dumps({**summary, "bytes": {"up": 4000, "down": 6000}}))
    clients = [{"partition": one, "indices": {"test": [one]}} for one in (0, 1)]
    (folder / "partition.json").write_text(json.dumps({"clients": clients}))
    arrays = {"probabilities": np.array(probabilities, np.float32), "labels": np.array([0, 1])}
    save_file(
        {**arrays, "partitions": np.array([0, 1]), "domains": np.array([0, 1])}, folder / "predictions.safetensors"
    )


def test_a_line_by_hand(tmp_path):
    for seed, accuracy in enumerate((0.5, 0.7, 0.9)):
        name = f"seed={seed}"
        write(tmp_path / "digits_mixture" / f"method=pfedbayespt,{name}", 1.0, 0.1, [[0.9, 0.1], [0.1, 0.9]])
        write(tmp_path / "digits_mixture" / f"method=fedvpt,{name}", accuracy, 0.3, [[0.9, 0.1], [0.9, 0.1]])
    table = tables.rows(["pfedbayespt", "fedvpt", "fedcof"], tmp_path / "digits_mixture").set_index("method")
    assert list(table.index) == ["pfedbayespt", "fedvpt"]
    row = table.loc["fedvpt"]
    assert (row["accuracy"], row["accuracy_se"], row["kb_per_round_and_client"]) == ("0.700", "0.115", "1.0")
    assert (row["delta_accuracy"], row["delta_nll"]) == ("-50.0", "+1.099")  # half of the images, and log(9) / 2
    assert table.loc["pfedbayespt", "delta_accuracy"] == ""
    turned = tables.rows(["pfedbayespt", "fedvpt"], tmp_path / "digits_mixture", "fedvpt").set_index("method")
    assert (turned.loc["pfedbayespt", "delta_accuracy"], turned.loc["fedvpt", "delta_accuracy"]) == ("+50.0", "")


def test_runs_of_another_precision_lie_apart_where_it_plays_a_part(tmp_path):
    def place(name, precision):
        (job,) = tables.jobs(name, ["fedvpt"], tmp_path, Path("data"), Path("weights"), precision, seeds=(0,)).values()
        return job[0].relative_to(tmp_path).as_posix()

    assert place("office_mixture", "bf16") == "office_mixture/method=fedvpt,seed=0"
    assert place("office_mixture", "float32") == "office_mixture_float32/method=fedvpt,seed=0"
    assert place("three_digits", "float32") == place("three_digits", "bf16") == "three_digits/method=fedvpt,seed=0"

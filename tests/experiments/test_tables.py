"""Tables of methods: every run composes, all methods get as many trials, and a line is what its runs say."""

import json
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import yaml
from omegaconf import OmegaConf
from safetensors.numpy import save_file

from fedbayes.configuration import CONF, compose, quoted

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
METHODS = {path.stem for path in (CONF / "method").glob("*.yaml")}


@pytest.fixture(scope="module")
def modules():
    sys.path.insert(0, str(EXPERIMENTS))
    try:
        yield import_module("tables"), import_module("tune")
    finally:
        sys.path.remove(str(EXPERIMENTS))


def test_the_waves_hold_every_method_once(modules):
    tables, _ = modules
    assert sorted([*tables.WAVES["all"], *tables.WAVES["ablations"]]) == sorted(METHODS)


def test_every_run_of_every_table_composes_into_a_folder_of_its_own(modules, tmp_path):
    tables, _ = modules
    for name in tables.TABLES:
        found = tables.jobs(name, METHODS, tmp_path, Path("data"), Path("weights"))
        assert len(found) == 3 * len(METHODS)
        assert len({folder for folder, _ in found.values()}) == len(found)
        for method, seed in (("pfedbayespt", 0), ("fedncm", 2)):
            cfg = compose(found[method, seed][1])
            assert (cfg.method.name, cfg.seed, cfg.partition.seed) == (method, seed, seed)


def test_all_methods_get_six_candidates_which_compose(modules):
    _, tune = modules
    different = set()
    for section in tune.PROTOCOLS:
        for method in METHODS:
            found = tune.candidates(method, section)
            more = len(tune.FURTHER.get((section, method), ()))
            assert len(set(found)) == 6 + more
            for one in found:
                whose = method if any(value.startswith("method.") for value in one) else "pfedbayespt"
                different.add((f"method={whose}", *one))
    for one in different:
        compose(one)


def test_choices_of_the_first_section_are_written_by_hand_and_the_others_into_the_file(modules, tmp_path, monkeypatch):
    tables, tune = modules
    monkeypatch.setattr(tune, "SELECTED", tmp_path / "selected.yaml")
    (tmp_path / "selected.yaml").write_text("photos: {fedvpt: [optim.head_lr=1]}\n")
    tune.write("mixture", {"fedvpt": ("optim.head_lr=2",)})
    tune.write("photos", {"fedper": ("optim.head_lr=3",)})
    written = yaml.safe_load((tmp_path / "selected.yaml").read_text())
    assert written == {"photos": {"fedvpt": ["optim.head_lr=1"], "fedper": ["optim.head_lr=3"]}}
    own = {method for method in METHODS if tables.selected("mixture", method)}
    assert own == {"fedlora"}, "its rank, which the other sections do not share; all others' choices are their defaults"


@pytest.mark.usefixtures("modules")
def test_a_run_made_with_other_settings_is_refused(tmp_path):
    sweep = import_module("sweep")

    job = (tmp_path / "run", ("method=fedvpt", "data=imagefolder", "data.root=here"))
    cfg = compose([*job[1], "simulation.threads=1", "data.root=elsewhere", "run_dir=elsewhere"])
    job[0].mkdir()
    sweep.require_same([job])
    (job[0] / "summary.json").write_text("{}")
    with pytest.raises(SystemExit, match=r"run has no config\.yaml"):
        sweep.require_same([job])
    stored = OmegaConf.to_container(cfg, resolve=True)
    (job[0] / "config.yaml").write_text(yaml.safe_dump({**stored, "gone": 1}))
    sweep.require_same([job])
    other = (job[0], (*job[1], "optim.head_lr=0.5", "method.strategy.aggregate=median"))
    said = r"run has method\.strategy\.aggregate=mean, not median, optim\.head_lr=0\.01, not 0\.5\nRemove these"
    with pytest.raises(SystemExit, match=said):
        sweep.run_all([other], 1)


@pytest.mark.usefixtures("modules")
def test_quoted_values_make_no_folder_that_the_command_cannot_read(tmp_path):
    sweep = import_module("sweep")
    folder = sweep.folder_of(tmp_path, ("method=fedvpt", "data.root='/a b/c'", 'backbone.checkpoint="d"'))
    assert compose([f"run_dir='{folder}'"]).run_dir == str(folder)
    assert folder.name == "method=fedvpt,data.root=_a b_c,backbone.checkpoint=d"


@pytest.mark.parametrize("name", ["plain", "it's", 'a "b"', "back\\slash", "two\\\\", "a\\'b\\", "a, b=c [d] {e}"])
def test_a_quoted_value_is_read_back_as_it_was(name):
    assert compose([f"run_dir={quoted(name)}"]).run_dir == name


@pytest.mark.parametrize(
    ("method", "section", "chosen", "expected"),
    [
        ("fedvpt", "mixture", (0.03, 0.01), [(0.1, 0.01), (0.03, 0.03), (0.1, 0.03)]),
        ("fedper", "label_skew", (0.003, 0.003), [(0.001, 0.003), (0.003, 0.001), (0.001, 0.001)]),
        ("pfedpg", "mixture", (0.01, 0.003), [(0.003, 0.001), (0.01, 0.001), (0.03, 0.001)]),
    ],
)
def test_past_the_edges_of_a_grid_of_two_rates(modules, method, section, chosen, expected):
    _, tune = modules

    def rates(prompt, head):
        return (f"optim.prompt_lr={prompt:g}", f"optim.head_lr={head:g}")

    assert tune.beyond(method, section, rates(*chosen)) == [rates(*one) for one in expected]


def test_further_candidates_move_no_edge_and_are_not_tried_twice(modules):
    """FedProx's best of six under label skew has .03 .01; its further ones, with mu 1 in front, hold .1 .03 already."""
    _, tune = modules
    six, further = tune.candidates("fedprox", "label_skew")[:6], tune.FURTHER["label_skew", "fedprox"]
    corner = ("optim.prompt_lr=0.03", "optim.head_lr=0.01")
    ranked = [(0.5, 0.8, one) for one in (*further, corner, *six)]
    assert tune.untried("fedprox", "label_skew", ranked) == [
        ("optim.prompt_lr=0.1", "optim.head_lr=0.01"),
        ("optim.prompt_lr=0.03", "optim.head_lr=0.03"),
    ]


def test_past_the_edges_of_other_grids(modules):
    _, tune = modules
    assert tune.beyond("local_head", "mixture", ("optim.head_lr=0.003",)) == []
    assert tune.beyond("local_head", "mixture", ("optim.head_lr=0.001",)) == [
        (f"optim.head_lr={rate}",) for rate in ("0.0003", "0.0001", "4e-05")
    ]
    inside = tune.posteriors(0.01)[4]  # a code of 16 at rate .01, of .003, .01, .03
    moved = [dict(one.split("=") for one in found) for found in tune.beyond("pfedbayespt", "mixture", inside)]
    assert [(one["optim.prompt_lr"], one["generator.init_scale"], one["optim.head_lr"]) for one in moved] == [
        ("0.01", "1.0", "0.01"),
        ("0.01", "0.5", "0.003"),
        ("0.01", "0.5", "0.03"),
    ]
    edge = tune.posteriors(0.01)[2]  # a code on the prompts at rate .01, of .003, .01
    assert "optim.prompt_lr=0.03" in tune.beyond("pfedbayespt", "mixture", edge)[0]


def test_a_table_on_other_images_runs_nothing_that_was_not_chosen_for_them(modules, monkeypatch, tmp_path):
    tables, _ = modules
    (tmp_path / "selected.yaml").write_text("photos: {fedvpt: [optim.prompt_lr=0.5]}")
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
    save_file({**arrays, "partitions": np.array([0, 1])}, folder / "predictions.safetensors")


def test_a_line_by_hand(modules, tmp_path):
    tables, _ = modules
    for seed, accuracy in enumerate((0.5, 0.7, 0.9)):
        name = f"seed={seed}"
        write(tmp_path / "digits_mixture" / f"method=pfedbayespt,{name}", 1.0, 0.1, [[0.9, 0.1], [0.1, 0.9]])
        write(tmp_path / "digits_mixture" / f"method=fedvpt,{name}", accuracy, 0.3, [[0.9, 0.1], [0.9, 0.1]])
    ours, other = tables.rows(["pfedbayespt", "fedvpt", "fedcof"], tmp_path / "digits_mixture")
    assert (ours.method, other.method) == ("pfedbayespt", "fedvpt")
    assert (other.values["accuracy"].mean, other.values["accuracy"].error) == pytest.approx((0.7, 0.2 / 3**0.5))
    assert other.values["kilobytes"].mean == pytest.approx(1.0)
    assert not ours.difference
    assert other.difference["accuracy"].mean == pytest.approx(-0.5)
    assert other.difference["nll"].mean == pytest.approx(np.log(9) / 2, abs=1e-6)
    text = tables.shown("digits_mixture", [ours, other])
    assert "| `fedvpt` | 0.700 ± 0.115 | " in text
    assert "-50.0 [" in text
    turned, none = tables.rows(["pfedbayespt", "fedvpt"], tmp_path / "digits_mixture", "fedvpt")
    assert turned.difference["accuracy"].mean == pytest.approx(0.5)
    assert not none.difference


def test_runs_of_another_precision_lie_apart_where_it_plays_a_part(modules, tmp_path):
    tables, _ = modules

    def place(name, precision):
        (job,) = tables.jobs(name, ["fedvpt"], tmp_path, Path("data"), Path("weights"), precision, seeds=(0,)).values()
        return job[0].relative_to(tmp_path).as_posix()

    assert place("office_mixture", "bf16") == "office_mixture/method=fedvpt,seed=0"
    assert place("office_mixture", "float32") == "office_mixture_float32/method=fedvpt,seed=0"
    assert place("three_digits", "float32") == place("three_digits", "bf16") == "three_digits/method=fedvpt,seed=0"

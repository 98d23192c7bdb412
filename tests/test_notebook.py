"""The notebooks in `examples/` were executed without an error, and their cells run."""

import json
from pathlib import Path

import matplotlib
import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parent.parent / "examples").glob("*.ipynb"))
SHORT = {"first_steps": 'SETTINGS = ["experiment=smoke"]', "inference_in_pyro": "STEPS = 20"}
FIGURES = {"first_steps": 2, "inference_in_pyro": 1}


def cells(notebook):
    return [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]


def test_every_notebook_is_tested():
    assert {path.stem for path in NOTEBOOKS} == set(SHORT)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_was_executed_in_order_without_an_error_or_a_path_of_a_machine(notebook):
    executed = cells(notebook)
    assert [cell["execution_count"] for cell in executed] == list(range(1, len(executed) + 1))
    outputs = [output for cell in executed for output in cell["outputs"]]
    assert [cell for cell in outputs if cell["output_type"] == "error" or cell.get("name") == "stderr"] == []
    assert sum("image/png" in cell.get("data", {}) for cell in outputs) == FIGURES[notebook.stem]
    assert not [place for place in ("/home/", "/tmp/", "/work/", "/Users/") if place in json.dumps(outputs)]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_its_cells_run(notebook, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with matplotlib.rc_context():
        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        first, *others = ("".join(cell["source"]) for cell in cells(notebook))
        short = SHORT[notebook.stem]
        assert first.startswith(short.partition("=")[0])
        scope = {}
        try:
            for source in (short, *others):
                exec(source, scope)
        finally:
            plt.close("all")
    if notebook.stem == "first_steps":
        assert scope["summary"]["rounds"] == 2
        assert len(scope["prediction"].labels) == len(scope["test_images"])
    else:
        assert scope["evidence"].item() == pytest.approx(-1.313, abs=2e-3)
        assert scope["low"] < scope["evidence"]

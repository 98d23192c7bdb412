"""The notebook in `examples/` was executed without an error, and its cells run."""

import json
from pathlib import Path

import matplotlib
import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parent.parent / "examples").glob("*.ipynb"))
SMOKE = 'SETTINGS = ["experiment=smoke"]'


def cells(notebook):
    return [one for one in json.loads(notebook.read_text())["cells"] if one["cell_type"] == "code"]


def test_there_is_one():
    assert [path.name for path in NOTEBOOKS] == ["first_steps.ipynb"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_was_executed_in_order_without_an_error_or_a_path_of_a_machine(notebook):
    found = cells(notebook)
    assert [one["execution_count"] for one in found] == list(range(1, len(found) + 1))
    outputs = [output for one in found for output in one["outputs"]]
    assert [one for one in outputs if one["output_type"] == "error" or one.get("name") == "stderr"] == []
    assert sum("image/png" in one.get("data", {}) for one in outputs) == 2
    assert not [place for place in ("/home/", "/tmp/", "/work/", "/Users/") if place in json.dumps(outputs)]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_its_cells_run(notebook, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with matplotlib.rc_context():
        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        settings, *others = ("".join(one["source"]) for one in cells(notebook))
        assert settings.startswith("SETTINGS = [")
        scope = {}
        try:
            for source in (SMOKE, *others):
                exec(source, scope)
        finally:
            plt.close("all")
    assert scope["summary"]["rounds"] == 2
    assert len(scope["said"].labels) == len(scope["held"])

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from fedbayes.report.canvas import COLOURS, palette
from fedbayes.report.plots import draw
from fedbayes.storage.run_dir import write_json

PICTURES = ["learning_curve.png", "clients.png", "reliability.png", "partition.png"]


def write_run(run_dir, clients=10, classes=10, domains=5, rounds=4):
    """A finished run with the files that pictures are drawn from."""
    rng = np.random.default_rng(0)
    domain_names = [f"domain $_{i}" for i in range(domains)]  # a dollar sign must not start a formula
    accuracy = rng.uniform(0.5, 1.0, clients).tolist()
    with (run_dir / "metrics.jsonl").open("w") as file:
        for r in range(1, rounds + 1):
            file.write(json.dumps({"round": r, "phase": "train", "loss": 2 / r, "kl": None}) + "\n")
            file.write(json.dumps({"round": r, "phase": "validation", "accuracy": 1 - 0.5 / r, "nll": 1 / r}) + "\n")
    with (run_dir / "clients.jsonl").open("w") as file:
        for r in range(1, rounds + 1):
            for c, value in enumerate(accuracy):
                row = {"round": r, "phase": "validation", "partition": c, "accuracy": value, "nll": None}
                file.write(json.dumps(row) + "\n")
    counts = rng.integers(0, 20, 15).tolist()
    counts[3] = 0
    empty = [None if count == 0 else 1.0 for count in counts]
    bins = {
        "confidence": [b and (i + 0.5) / 15 for i, b in enumerate(empty)],
        "accuracy": [b and i / 15 for i, b in enumerate(empty)],
        "count": counts,
    }
    summary = {
        "method": "pfedbayespt",
        "data": "styled_digits",
        "final": {"round": rounds, "ece": 0.05, "reliability": bins},
        "best": {"round": 1},
        "per_client": [{"partition": c, "images": 20, "accuracy": a, "nll": None} for c, a in enumerate(accuracy)],
        "per_domain": {name: {"images": 40, "accuracy": 0.8, "nll": 0.4} for name in domain_names},
    }
    write_json(run_dir / "summary.json", summary)
    rows = [
        {"partition": c, "labels": rng.integers(0, 9, classes), "domains": rng.integers(0, 9, domains)}
        for c in range(clients)
    ]
    names = [f"class {i}" for i in range(classes)]
    write_json(
        run_dir / "partition.json", {"scheme": "iid", "classes": names, "domains": domain_names, "clients": rows}
    )


@pytest.mark.parametrize(
    "size",
    [{}, {"clients": 100, "classes": 100, "domains": 12}, {"clients": 1, "classes": 2, "domains": 1, "rounds": 1}],
)
def test_every_picture_is_drawn_whatever_the_size(tmp_path, size):
    write_run(tmp_path, **size)
    assert draw(tmp_path) == [tmp_path / "plots" / name for name in PICTURES]
    for name in PICTURES:
        with Image.open(tmp_path / "plots" / name) as picture:
            assert picture.width >= 600
            assert len(picture.convert("RGB").getcolors(2**24)) > 20


def test_the_bars_of_a_partition_have_the_heights_of_its_counts(tmp_path):
    from fedbayes.report.plots import _partition

    rows = [{"partition": 0, "labels": [3, 4], "domains": [7]}, {"partition": 1, "labels": [0, 5], "domains": [5]}]
    figure = _partition({"classes": ["a", "b"], "domains": ["x"], "clients": rows})
    by_domain, by_label = (axes.collections[0].get_paths() for axes in figure.axes)
    heights = [[path.get_extents().height for path in paths] for paths in (by_domain, by_label)]
    assert heights == [[7, 5], [3, 4, 5]]  # an empty bar is not drawn
    assert [path.get_extents().ymin for path in by_label] == [0, 3, 0]


def test_what_is_missing_has_no_picture(tmp_path):
    assert draw(tmp_path) == []
    assert not (tmp_path / "plots").exists()
    (tmp_path / "metrics.jsonl").write_text('{"round": 1, "phase": "train", "loss": 1.0}\n{"round": 2, "pha')
    assert [path.name for path in draw(tmp_path)] == ["learning_curve.png"]
    write_json(tmp_path / "summary.json", {"final": None, "best": None, "per_client": [], "per_domain": {}})
    assert [path.name for path in draw(tmp_path)] == ["learning_curve.png"]


def test_drawing_leaves_pyplot_and_settings_alone(tmp_path):
    write_run(tmp_path)
    code = (
        "import sys, matplotlib; from pathlib import Path; from fedbayes.report.plots import draw\n"
        "before = matplotlib.rcParams.copy(); draw(Path(sys.argv[1])); assert matplotlib.rcParams.copy() == before\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


def test_importing_tracking_loads_nothing_heavy():
    code = (
        "import sys, fedbayes; before = set(sys.modules)\n"
        "import fedbayes.tracking.tracker, fedbayes.report.plots, fedbayes.report.cli\n"
        "import fedbayes.tracking.wandb_logger, fedbayes.report.comparison\n"
        "assert not {'matplotlib', 'wandb', 'rich', 'numpy', 'torch', 'yaml'} & (set(sys.modules) - before)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_colours_are_distinct():
    for count in (1, 5, 10, 100):
        assert len({str(colour) for colour in palette(count)}) == count
    assert palette(3) == list(COLOURS[:3])

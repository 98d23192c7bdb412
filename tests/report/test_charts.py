"""Charts: what they draw, that a page can hold many of them, and that files of all of them can be written."""

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from fedbayes.report.chart import Chart, Series, short
from fedbayes.report.figures import clients
from fedbayes.report.run_page import publish, write_html
from fedbayes.report.style import COLOURS
from fedbayes.storage.run_dir import write_json

AT_ONCE = {"train_loss", "validation_accuracy", "validation_nll", "clients", "reliability", "partition_by_domain"}
ALL = AT_ONCE | {"domains", "partition_by_label"}


def plots(run_dir, form="png"):
    return {path.stem for path in (run_dir / "plots").glob(f"*.{form}")}


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
def test_every_chart_is_drawn_whatever_the_size(tmp_path, size):
    write_run(tmp_path, **size)
    page = write_html(tmp_path, draw=True if not size else None)
    names = AT_ONCE if size else ALL
    assert plots(tmp_path) == plots(tmp_path, "pdf") == names
    for name in names:
        with Image.open(tmp_path / "plots" / f"{name}.png") as picture:
            assert picture.width >= 600
            assert len(picture.convert("RGB").getcolors(2**24)) > 20
        assert f'aria-labelledby="{name}-title {name}-text"' in page.read_text()


def test_the_bars_of_a_partition_have_the_heights_of_its_counts():
    rows = [{"partition": 0, "labels": [3, 4], "domains": [7]}, {"partition": 1, "labels": [0, 5], "domains": [5]}]
    charts = clients.partition_charts({"classes": ["a", "b"], "domains": ["x"], "clients": rows})
    by_domain, by_label = (chart.axes.collections[0].get_paths() for chart in charts)
    heights = [[path.get_extents().height for path in paths] for paths in (by_domain, by_label)]
    assert heights == [[7, 5], [3, 4, 5]]  # an empty bar is not drawn
    assert [path.get_extents().ymin for path in by_label] == [0, 3, 0]


def test_what_is_missing_has_no_chart(tmp_path):
    publish(tmp_path)
    assert not (tmp_path / "plots").exists()
    (tmp_path / "metrics.jsonl").write_text('{"round": 1, "phase": "train", "loss": 1.0}\n{"round": 2, "pha')
    publish(tmp_path)
    assert plots(tmp_path) == {"train_loss"}
    write_json(tmp_path / "summary.json", {"final": None, "best": None, "per_client": [], "per_domain": {}})
    publish(tmp_path)
    assert plots(tmp_path) == {"train_loss"}


def chart_of_two_groups():
    chart = Chart("name", "Title <$1$>", "x", "y")
    chart.line([1, 2, 3], [0.1, 0.5, 0.2], Series(0, "a", 0), "<b>line</b>\x00")
    chart.dots([1, 2], [0.1, 0.5], Series(11, "b", 1), ["first", "second"])
    chart.band([(1, 0, 1), (2, 0, 1)], Series(11, "b", 1))
    chart.description = "Two groups & more"
    return chart


def test_a_chart_in_a_page_follows_its_colours_and_tells_what_it_shows():
    text = chart_of_two_groups().svg()
    root = ET.fromstring(text)
    assert root.get("role") == "img"
    assert [element.text for element in (root[0], root[1])] == ["Title <$1$>", "Two groups & more"]
    assert {title.text for title in root.iter("title")} - {"Title <$1$>"} == {"<b>line</b>\\x00", "first", "second"}
    assert {element.get("data-group") for element in root.iter()} == {None, "0", "1"}
    styles = " ".join(element.get("style", "") for element in root.iter())
    assert not re.search("#[0-9a-f]{6}", styles.replace("#000000", ""))
    assert {"currentColor", "var(--line)", "var(--c0)", "var(--c1)"} <= set(
        re.findall(r"currentColor|var\(.+?\)", styles)
    )
    assert "font" not in styles
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    assert all(name.startswith("name-") for name in ids)
    assert set(re.findall(r'(?:url\(#|href="#)([^)"]+)', text)) <= set(ids)


def test_equal_charts_have_equal_bytes(tmp_path):
    first, second = chart_of_two_groups(), chart_of_two_groups()
    assert first.svg() == second.svg()
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for one, other in zip(first.save(tmp_path / "a"), second.save(tmp_path / "b"), strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_ticks_are_short():
    assert [short(value) for value in (0, 0.25, 3e-5, 20_000, 1.5e6)] == ["0", "0.25", "3e-5", "20k", "1.5M"]


def test_drawing_leaves_pyplot_and_settings_alone(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"round": 1, "phase": "train", "loss": 1.0}\n')
    code = (
        "import sys, matplotlib; from pathlib import Path; from fedbayes.report.run_page import write_html\n"
        "before = matplotlib.rcParams.copy(); write_html(Path(sys.argv[1]), draw=None)\n"
        "assert matplotlib.rcParams.copy() == before\n"
        "assert not {'matplotlib.pyplot', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


def test_importing_tracking_loads_nothing_heavy():
    code = (
        "import sys, fedbayes; before = set(sys.modules)\n"
        "import fedbayes.tracking.tracker, fedbayes.report.cli\n"
        "import fedbayes.tracking.wandb_logger, fedbayes.report.comparison\n"
        "assert not {'matplotlib', 'jinja2', 'wandb', 'rich', 'torch', 'yaml'} & (set(sys.modules) - before)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_series_of_a_chart_differ_by_colour_or_by_dashes():
    assert len({(Series(index).colour, str(Series(index).dashes)) for index in range(4 * len(COLOURS))}) == 40

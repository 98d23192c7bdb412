"""What a comparison may claim: which seeds varied, which differences are clear, how many images; and of a search."""

import json
import statistics

import pytest
from html_reader import Page
from run_files import write_run

import fedbayes
from fedbayes.commands import sweep
from fedbayes.errors import RunError
from fedbayes.metrics.paired import paired_difference
from fedbayes.report.cli import main
from fedbayes.report.comparison import compare
from fedbayes.report.comparison_page import write_comparison
from fedbayes.report.differences import best_row
from fedbayes.report.measures import HEADLINE, MEASURES
from fedbayes.report.results import results
from fedbayes.report.spread import Spread
from fedbayes.storage.run_dir import write_json


def runs(folder, methods=("a", "b"), seeds=2, **options):
    for method in methods:
        for seed in range(seeds):
            write_run(folder / f"{method}{seed}", method=method, seed=seed, **options)
    return sorted(folder.iterdir())


@pytest.mark.parametrize(
    ("seeds", "names"), [({"seed"}, ["seed"]), ({"seed", "partition.seed"}, ["partition.seed", "seed"])]
)
def test_a_comparison_says_which_seeds_varied(tmp_path, seeds, names):
    for run in runs(tmp_path):
        seed = int(run.name[-1])
        partition = {"seed": seed if "partition.seed" in seeds else 0}
        write_json(run / "config.yaml", {"seed": seed, "partition": partition})
    comparison = compare(sorted(tmp_path.iterdir()))
    assert [sorted(group.varied) for group in comparison.groups] == [names, names]
    (note,) = [note for note in comparison.notes if "differ in" in note]
    assert ("not in their partition" in note) == (len(names) == 1)


@pytest.mark.parametrize(
    ("values", "best"),
    [
        ([(0.80, 0.02), (0.79, 0.02)], None),  # the difference is .01, its interval ± 1.96 * .028
        ([(0.79, 0.01), (0.90, 0.01)], 1),
        ([(0.80, 0.0), (0.8001, 0.0)], None),  # shown as equal
        ([(0.80, None), (0.90, None)], 1),
        ([(0.80, None)], None),
    ],
)
def test_the_best_is_marked_where_it_is_clear(tmp_path, values, best):
    groups = compare(runs(tmp_path, seeds=1)).groups
    spreads = [[Spread(mean, error, 3)] for mean, error in values]
    assert best_row(groups, spreads, 0, MEASURES[3], "final") == best


def test_differences_are_paired_and_marked_where_zero_is_outside(tmp_path):
    folders = runs(tmp_path / "runs", clients=4)
    comparison = compare(folders, reference=1)
    (row,) = comparison.differences().cells()
    pairs = [(tmp_path / "runs" / f"b{seed}", tmp_path / "runs" / f"a{seed}") for seed in (0, 1)]
    assert [row[0].text, row[1].text] == ["2 b", "2"]
    for cell, score, scale, digits in ((row[2], "accuracy", 100, 2), (row[3], "nll", 1, 3)):
        found = paired_difference(pairs, score)
        mean, low, high = (f"{scale * value:+.{digits}f}" for value in (found.mean, found.low, found.high))
        assert cell.text == f"{mean} [{low}, {high}]" + " *" * found.is_clear
        assert cell.is_best == found.is_clear
    page = Page(write_comparison(comparison, tmp_path / "page.html").read_text())
    assert "differences" in page.ids
    best = max(("a", "b"), key=lambda name: statistics.fmean(group_accuracy(comparison, name)))
    (other,) = compare(folders).differences().cells()
    assert other[0].text.split()[1] == ({"a", "b"} - {best}).pop()
    with pytest.raises(RunError, match="--reference=3"):
        compare(folders, reference=3)


def group_accuracy(comparison, name):
    (group,) = [group for group in comparison.groups if group.names[0] == name]
    return group.values("final", "accuracy", "mean")


def test_runs_on_other_images_have_no_paired_difference(tmp_path):
    folders = runs(tmp_path, seeds=1)
    partition = json.loads((folders[0] / "partition.json").read_text())
    partition["clients"][0]["indices"]["test"][0] = 999
    write_json(folders[0] / "partition.json", partition)
    (row,) = compare(folders).differences().cells()
    assert [cell.text for cell in row[2:]] == ["–", "–"]


def test_runs_of_which_clients_are_missing_say_so_and_are_not_pooled(tmp_path):
    folders = runs(tmp_path, methods=("a",), seeds=3)
    for run in folders:
        summary = json.loads((run / "summary.json").read_text())
        counts = {"clients": 4, "clients_expected": 4, "images": 56, "images_expected": 56}
        summary["final"] |= counts if run.name != "a2" else {**counts, "clients": 1, "images": 14}
        write_json(run / "summary.json", summary)
    text = "1 of 4 clients, 14 of 56 images"
    comparison = compare(folders)
    assert sorted(len(group.runs) for group in comparison.groups) == [1, 2]
    assert text in comparison.as_markdown()
    assert ["evaluated", text] == [
        cell.text for cell in results(json.loads((folders[2] / "summary.json").read_text())).cells()[0]
    ][:2]
    assert "evaluated" not in str(results(json.loads((folders[0] / "summary.json").read_text())).rows)


@pytest.fixture
def search(tmp_path):
    """Three trials of a search; the second is best on validation and worst on test."""
    for job, validation in enumerate((0.5, 0.9, 0.7)):
        run = tmp_path / str(job)
        write_run(run, seed=0)
        final = {"round": 4, "accuracy": {"mean": 0.8 - 0.1 * job}, "nll": 1.0, "ece": 0.1}
        summary = json.loads((run / "summary.json").read_text())
        write_json(run / "summary.json", {**summary, "final": final})
        write_json(run / "config.yaml", {"seed": 0, "optim": {"lr": 0.1 * (job + 1)}})
        rows = [{"round": at, "phase": "validation", "accuracy": validation, "nll": 1.0} for at in (1, 2, 3, 4)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        row = {
            "job": job,
            "overrides": [f"optim.lr={job}"],
            "folder": str(job),
            "status": "finished",
            "is_search": True,
        }
        sweep.record(tmp_path, {**row, "validation": validation, "accuracy": 0.8 - 0.1 * job, "method": "m", "seed": 0})
    return tmp_path


def test_a_search_shows_validation_of_all_trials_and_test_of_the_winner(search, capsys):
    comparison = compare([search / name for name in "012"], "final", MEASURES)
    head, rows = list(comparison.table.head), [[cell.text for cell in row] for row in comparison.table.cells()]
    at = head.index("validation accuracy")
    assert [row[at] for row in rows] == ["0.500", "0.900", "0.700"]
    for measure in HEADLINE[:1]:
        assert [row[head.index(measure.label)] for row in rows] == ["–", "0.700", "–"]
    assert ["best on validation" in " ".join(row) for row in rows] == [False, True, False]
    page = write_comparison(comparison, search / "page.html").read_text()
    assert "0.800" not in page
    assert main([str(search), "--table-only"]) == 0
    assert "0.800" not in capsys.readouterr().out
    table = fedbayes.frame(search)
    assert table["is_chosen"].tolist() == [False, True, False]
    assert table["validation.accuracy"].tolist() == [0.5, 0.9, 0.7]


def test_the_summary_of_a_search_shows_test_images_of_the_winner_alone(search):
    lines = (search / "summary.csv").read_text().splitlines()
    head, *rows = (line.split(",") for line in lines)
    validation, accuracy = head.index("validation"), head.index("accuracy")
    assert [row[validation] for row in rows] == ["0.5", "0.9", "0.7"]
    assert [bool(row[accuracy]) for row in rows] == [False, True, False]
    assert sweep.CHOSEN in (search / "summary.md").read_text()
    assert "3 finished." in (search / "summary.md").read_text()

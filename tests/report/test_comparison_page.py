import json
import re
import statistics

import numpy as np
import pytest
from html_reader import Page
from run_files import HOSTILE, make_runs, write_run

from fedbayes.report.comparison import compare
from fedbayes.report.comparison_page import write_comparison
from fedbayes.report.figures.confidence import averaged_risk, pooled_bins
from fedbayes.report.figures.learning import averaged
from fedbayes.report.measures import MEASURES
from fedbayes.report.spread import spread
from fedbayes.storage.predictions import Predictions, read_predictions
from fedbayes.storage.run_dir import write_json

PLACES = {
    "accuracy": ("final", "accuracy", "mean"),
    "worst decile": ("final", "accuracy", "worst_decile"),
    "NLL (nats)": ("final", "nll"),
    "ECE": ("final", "ece"),
    "Brier": ("final", "brier"),
    "AURC": ("final", "aurc"),
    "up (MB)": ("bytes", "up"),
    "down (MB)": ("bytes", "down"),
    "time (s)": ("seconds", "total"),
}


def at(summary, path):
    for name in path:
        summary = summary[name]
    return summary


@pytest.fixture(scope="module")
def standard(tmp_path_factory):
    """Two methods with three seeds each: summaries by method, their comparison, and its page."""
    folder = tmp_path_factory.mktemp("standard")
    summaries, comparison = make_runs(folder / "runs")
    return summaries, comparison, write_comparison(comparison, folder / "page.html")


def test_every_number_of_the_page_is_that_of_the_summaries(standard):
    summaries, table, page = standard
    page = Page(page.read_text())
    head, *rows = page.tables["headline-table"]
    names = [text for text, _ in head]
    assert len(rows) == 2
    for row in rows:
        cells = dict(zip(names, row, strict=True))
        for label, path in PLACES.items():
            values = [at(summary, path) for summary in summaries[cells["method"][0]]]
            text, attributes = cells[label]
            assert float(attributes["data-value"]) == statistics.fmean(values)
            scale = 1e-6 if "MB" in label else 1
            error = scale * statistics.stdev(values) / 3**0.5
            digits = 2 if "MB" in label else 1 if label == "time (s)" else 3
            assert text == f"{scale * statistics.fmean(values):.{digits}f} ± {error:.{digits}f}"
    head, *rows = page.tables["runs-table"]
    names = [text for text, _ in head]
    assert len(rows) == 6
    for row in rows:
        cells = dict(zip(names, row, strict=True))
        method = table.groups[int(cells["group"][0]) - 1].names[0]
        summary = summaries[method][int(cells["seed"][0])]
        for label, path in PLACES.items():
            assert float(cells[label][1]["data-value"]) == at(summary, path)


def test_accuracy_by_domain_and_by_client_is_that_of_the_runs(standard):
    summaries, table, page = standard
    page = Page(page.read_text())
    head, *rows = captioned(page, "Test accuracy in each domain")
    assert [text for text, _ in head] == ["group", "ink"]
    for row in rows:
        values = [summary["per_domain"]["ink"]["accuracy"] for summary in summaries[row[0][0].split()[1]]]
        assert float(row[1][1]["data-value"]) == statistics.fmean(values)
        assert row[1][0] == f"{statistics.fmean(values):.3f} ± {statistics.stdev(values) / 3**0.5:.3f}"
    for index, group in enumerate(table.groups):
        head, *rows = captioned(page, f"{index + 1} {group.names[0]}. Test accuracy of each client")
        predictions = [read_predictions(run) for run, _ in group.runs]
        for client, row in enumerate(rows):
            for domain in (0, 1):
                masks = [
                    (run_predictions.partitions == client) & (run_predictions.domains == domain)
                    for run_predictions in predictions
                ]
                shares = [
                    run_predictions.right[where].mean()
                    for run_predictions, where in zip(predictions, masks, strict=True)
                    if where.any()
                ]
                assert float(row[1 + domain][1]["data-value"]) == pytest.approx(statistics.fmean(shares))
                assert row[1 + domain][0].endswith(f" ({sum(where.sum() for where in masks)})")


def captioned(page, begins):
    (table,) = [rows for caption, rows in page.tables.items() if caption.startswith(begins)]
    return table


def test_reliability_pools_the_images_of_all_seeds():
    first = {"count": [0, 1, 4], "confidence": [None, 0.5, 0.9], "accuracy": [None, 1.0, 0.75]}
    second = {"count": [0, 3, 0], "confidence": [None, 0.7, None], "accuracy": [None, 0.0, None]}
    bins = [row[2:] for row in pooled_bins([first, {}, second])]
    assert bins == [(0, 0, 0), (4, pytest.approx(0.65), 0.25), (4, 0.9, 0.75)]


def test_diagrams_and_curves_of_confidence_say_what_the_summaries_say(standard):
    summaries, _, page = standard
    text = page.read_text()
    _, *bins = captioned(Page(text), "Reliability: 1 fedvpt")
    assert [[cell for cell, _ in row] for row in bins] == [
        ["0.33–0.67", "12", "0.500", "0.600"],  # those of a summary, three times as many images
        ["0.67–1.00", "18", "0.900", "0.800"],
    ]
    for name, of_method in summaries.items():
        ece, aurc = (spread([summary["final"][key] for summary in of_method]).text() for key in ("ece", "aurc"))
        assert f"<small>ECE {ece} (0.050 ± 0.000 if calibrated).</small>" in text
        assert re.search(rf"<title>\d {name}: AURC {aurc}</title>", text)


def test_risk_over_seeds_is_the_mean_at_the_same_share_of_images():
    def answered(right):
        labels = np.array(right, int)
        sure = np.linspace(0.9, 0.6, len(right))
        return Predictions(np.stack([1 - sure, sure], 1), labels, labels, labels)

    alone = averaged_risk([answered([1, 1, 0, 0])])
    assert [(at, risk.mean, risk.error) for at, risk in alone] == [
        (0.25, 0, None), (0.5, 0, None), (0.75, 1 / 3, None), (1, 0.5, None)
    ]  # fmt: skip
    both = averaged_risk([answered([1, 1, 0, 0]), answered([0] * 8)])
    assert [(at, risk.mean) for at, risk in both] == [(0.25, 0.5), (0.5, 0.5), (0.75, 2 / 3), (1, 0.75)]
    assert both[0][1].error == pytest.approx(0.5)


@pytest.mark.usefixtures("no_pictures")
def test_the_partition_is_shown_once_or_once_for_each_seed(tmp_path):
    _, table = make_runs(tmp_path / "runs")
    text = write_comparison(table, tmp_path / "page.html").read_text()
    assert "All runs have the same partition." in text
    assert [cell for cell, _ in captioned(Page(text), "Images of each client by domain")[1]] == ["client 0", "10", "20"]
    for run in (tmp_path / "runs").glob("*-1"):
        held = json.loads((run / "partition.json").read_text())
        held["clients"][0]["domains"] = [30, 0]
        write_json(run / "partition.json", held)
    text = write_comparison(table, tmp_path / "page.html").read_text()
    assert "<summary>Partition of seed 0, 2 (4 runs)</summary>" in text
    assert "<summary>Partition of seed 1 (2 runs)</summary>" in text
    assert "differ in their partition" in text


def test_the_posterior_is_shown_of_the_groups_that_have_one(tmp_path):
    make_runs(tmp_path / "runs", methods=("pfedbayespt",))
    write_run(tmp_path / "runs" / "without", method="fedvpt", posterior=False)
    table = compare(sorted((tmp_path / "runs").iterdir()), "final", MEASURES)
    text = write_comparison(table, tmp_path / "page.html").read_text()
    head, *rows = captioned(Page(text), "The posterior in the last round")
    assert [dict(zip((name for name, _ in head), (cell for cell, _ in row), strict=True)) for row in rows] == [
        {
            "group": "2 pfedbayespt",
            "KL in the last round of training (nats)": "13.0 ± 0.6",
            "prompt uncertainty on test (nats)": "0.0200 ± 0.0000",
            "effective components in training": "3.00 ± 0.58",
        }
    ]
    for title in ("KL to the prior", "Effective components", "Bound saturation", "Mixing ratio, as sent by clients"):
        assert title in text


@pytest.mark.usefixtures("no_pictures")
def test_runs_that_kept_no_more_than_a_summary_make_a_page_without_what_is_missing(tmp_path):
    for seed in range(2):
        run = tmp_path / "runs" / str(seed)
        write_run(run, seed=seed, per_domain={}, final={"accuracy": {"mean": 0.5}}, train={})
        for name in ("metrics.jsonl", "clients.jsonl", "partition.json", "predictions.safetensors"):
            (run / name).unlink()
    table = compare(sorted((tmp_path / "runs").iterdir()), "final", MEASURES)
    page = Page(write_comparison(table, tmp_path / "page.html").read_text())
    assert {"confidence", "domains", "partition", "posterior", "curves"}.isdisjoint(page.ids)


@pytest.mark.usefixtures("no_pictures")
def test_the_best_of_a_column_is_marked_where_it_is_clear_and_groups_can_be_compared(tmp_path):
    _, comparison = make_runs(tmp_path / "runs", seeds=1)

    def marked(comparison):
        page = Page(write_comparison(comparison, tmp_path / "page.html").read_text())
        head, *rows = page.tables["headline-table"]
        cells = [(head[place][0], row[1][0]) for row in rows for place, cell in enumerate(row) if is_best(cell)]
        return dict(cells)

    briers = {group.names[0]: group.values("final", "brier") for group in comparison.groups}
    assert marked(comparison)["Brier"] == min(briers, key=briers.get)
    write_run(tmp_path / "runs" / "other", data="three_digits")
    assert marked(compare(sorted((tmp_path / "runs").iterdir()), "final", MEASURES)) == {}


def is_best(cell):
    return cell[1].get("class") == "best"


def test_hostile_names_are_text_and_nothing_is_fetched(tmp_path):
    _, table = make_runs(tmp_path / "runs", methods=(HOSTILE, '"><script>alert(1)</script>'))
    text = write_comparison(table, tmp_path / "page.html").read_text()
    page = Page(text)
    assert HOSTILE in [row[1][0] for row in page.tables["headline-table"]]
    assert [tag for tag, _ in page.tags].count("script") == 2  # our own
    assert not [a for _, a in page.tags if any(name.startswith("on") for name in a)]
    assert page.fetched() == []
    assert "http" not in text
    assert not page.unclosed
    assert len(page.ids) == len(set(page.ids))


def test_the_page_has_what_keyboard_and_screen_readers_need(standard):
    page = Page(standard[2].read_text())
    tags = [tag for tag, _ in page.tags]
    assert tags.count("caption") == tags.count("table")
    assert tags.count("main") == tags.count("h1") == 1
    assert all("scope" in attributes for tag, attributes in page.tags if tag == "th")
    charts = [a for tag, a in page.tags if tag == "svg" and a.get("class") == "chart"]
    assert len(charts) >= 6
    for chart in charts:
        assert chart["role"] == "img"
        assert set(chart["aria-labelledby"].split()) <= set(page.ids)
    assert all(a["tabindex"] == "0" for tag, a in page.tags if a.get("class") == "scroll")


def test_a_line_is_the_mean_over_seeds_and_its_band_the_standard_error():
    runs = [[{"round": 1, "phase": "train", "loss": v}, {"round": 2, "phase": "train", "loss": 9}] for v in (1, 2, 3)]
    del runs[0][1]  # stopped early: no mean over other seeds than before
    (point,) = averaged(runs, "train", "loss").items()
    assert (point[0], point[1].mean, point[1].error) == (1, 2, pytest.approx(1 / 3**0.5))


def test_ten_methods_with_three_seeds_and_many_rounds_stay_small(tmp_path):
    _, table = make_runs(tmp_path / "runs", methods=[f"method{i}" for i in range(10)], rounds=300)
    assert write_comparison(table, tmp_path / "page.html").stat().st_size < 2_000_000

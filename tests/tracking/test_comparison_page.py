import csv
import io
import statistics

import pytest
from html_reader import Page
from run_files import HOSTILE, write_run

from fedbayes.tracking.comparison import as_markdown, compare
from fedbayes.tracking.comparison_page import write_comparison
from fedbayes.tracking.exports import as_csv, as_latex, latex, write_tables
from fedbayes.tracking.measures import MEASURES
from fedbayes.tracking.report import main
from fedbayes.tracking.svg import log_ticks, ticks

PLACES = {
    "accuracy": ("final", "accuracy", "mean"),
    "worst tenth": ("final", "accuracy", "worst_decile"),
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


def made(tmp_path, methods=("pfedbayespt", "fedvpt"), seeds=3, **options):
    """Runs, their summaries by method, and their comparison."""
    summaries = {
        method: [write_run(tmp_path / f"{i}-{seed}", seed=seed, method=method, **options) for seed in range(seeds)]
        for i, method in enumerate(methods)
    }
    return summaries, compare(sorted(tmp_path.iterdir()), "final", MEASURES)


def test_every_number_of_the_page_is_that_of_the_summaries(tmp_path):
    summaries, table = made(tmp_path / "runs")
    page = Page(write_comparison(table, tmp_path / "page.html").read_text())
    head, *rows = page.tables["headline-table"]
    names = [text for text, _ in head]
    assert len(rows) == 2
    for row in rows:
        found = dict(zip(names, row, strict=True))
        for label, path in PLACES.items():
            values = [at(summary, path) for summary in summaries[found["method"][0]]]
            text, attributes = found[label]
            assert float(attributes["data-value"]) == statistics.fmean(values)
            scale = 1e-6 if "MB" in label else 1
            error = scale * statistics.stdev(values) / 3**0.5
            digits = 2 if "MB" in label else 1 if label == "time (s)" else 3
            assert text == f"{scale * statistics.fmean(values):.{digits}f} ± {error:.{digits}f}"
    head, *rows = page.tables["runs-table"]
    names = [text for text, _ in head]
    assert len(rows) == 6
    for row in rows:
        found = dict(zip(names, row, strict=True))
        method = table.groups[int(found["group"][0]) - 1].names[0]
        summary = summaries[method][int(found["seed"][0])]
        for label, path in PLACES.items():
            assert float(found[label][1]["data-value"]) == at(summary, path)


def test_the_best_of_a_column_is_marked_and_only_where_groups_can_be_compared(tmp_path):
    summaries, table = made(tmp_path / "runs")
    nll = {method: statistics.fmean(s["final"]["nll"] for s in found) for method, found in summaries.items()}
    head, *rows = Page(write_comparison(table, tmp_path / "page.html").read_text()).tables["headline-table"]
    column = [text for text, _ in head].index("NLL (nats)")
    marked = [row[1][0] for row in rows if row[column][1].get("class") == "best"]
    assert marked == [min(nll, key=nll.get)]
    write_run(tmp_path / "runs" / "other", data="three_digits")
    assert set(compare(sorted((tmp_path / "runs").iterdir()), "final", MEASURES).best()) == {None}


def test_hostile_names_are_text_and_nothing_is_fetched(tmp_path):
    _, table = made(tmp_path / "runs", methods=(HOSTILE, '"><script>alert(1)</script>'))
    text = write_comparison(table, tmp_path / "page.html").read_text()
    page = Page(text)
    assert HOSTILE in [row[1][0] for row in page.tables["headline-table"]]
    assert [tag for tag, _ in page.tags].count("script") == 1  # our own
    assert not [a for _, a in page.tags if any(name.startswith("on") for name in a)]
    assert page.fetched() == []
    assert "http" not in text
    assert not page.unclosed
    assert len(page.ids) == len(set(page.ids))


def test_the_page_has_what_keyboard_and_screen_readers_need(tmp_path):
    _, table = made(tmp_path / "runs")
    page = Page(write_comparison(table, tmp_path / "page.html").read_text())
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
    from fedbayes.tracking.curves import averaged

    runs = [[{"round": 1, "phase": "train", "loss": v}, {"round": 2, "phase": "train", "loss": 9}] for v in (1, 2, 3)]
    del runs[0][1]  # stopped early: no mean over other seeds than before
    (found,) = averaged(runs, "train", "loss").items()
    assert (found[0], found[1].mean, found[1].error) == (1, 2, pytest.approx(1 / 3**0.5))


def test_ten_methods_with_three_seeds_and_many_rounds_stay_small(tmp_path):
    _, table = made(tmp_path / "runs", methods=[f"method{i}" for i in range(10)], rounds=300)
    assert write_comparison(table, tmp_path / "page.html").stat().st_size < 1_000_000


def test_csv_has_every_digit(tmp_path):
    summaries, table = made(tmp_path / "runs", seeds=2)
    for row in csv.DictReader(io.StringIO(as_csv(table))):
        values = [summary["final"]["nll"] for summary in summaries[row["method"]]]
        assert (float(row["nll"]), row["seeds"]) == (statistics.fmean(values), "2")
        assert float(row["nll_se"]) == statistics.stdev(values) / 2**0.5
        assert float(row["bytes_up"]) == statistics.fmean(s["bytes"]["up"] for s in summaries[row["method"]])


def test_csv_makes_no_formula_of_a_name(tmp_path):
    _, table = made(tmp_path / "runs", methods=("=1+1",), seeds=1)
    assert next(csv.DictReader(io.StringIO(as_csv(table))))["method"] == "'=1+1"


def test_latex_is_booktabs_with_signs_written_out_and_the_best_in_bold(tmp_path):
    summaries, table = made(tmp_path / "runs", methods=("a_b", "50%"))
    text = as_latex(table)
    for line in (
        r"\begin{tabular}{lr",
        r"\toprule",
        r"\midrule",
        r"\bottomrule",
        r"\end{tabular}",
        r"a\_b &",
        r"50\% &",
    ):
        assert line in text
    best = min(statistics.fmean(s["final"]["nll"] for s in found) for found in summaries.values())
    assert rf"\textbf{{{best:.3f} $\pm$" in text
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert {line.count(" & ") for line in rows} == {len(table.head) - 1}
    assert latex("\\a{b}^~#$&–±") == r"\textbackslash{}a\{b\}\textasciicircum{}\textasciitilde{}\#\$\&--$\pm$"


def test_the_tables_lie_beside_the_page_under_its_name(tmp_path):
    _, table = made(tmp_path / "runs")
    page = write_comparison(table, tmp_path / "page.html")
    assert [path.name for path in write_tables(table, page)] == ["page.md", "page.csv", "page.tex"]
    assert (tmp_path / "page.md").read_text() == as_markdown(table) + "\n"
    links = {a["href"] for tag, a in Page(page.read_text()).tags if tag == "a"}
    assert {"page.md", "page.csv", "page.tex"} <= links


def test_the_command_writes_the_comparison_where_it_is_asked_to(tmp_path, capsys):
    made(tmp_path / "runs", seeds=1)
    out = tmp_path / "new" / "mine.html"
    assert main([str(tmp_path / "runs"), "--table-only", "--out", str(out)]) == 0
    assert str(out) in capsys.readouterr().err
    assert {path.name for path in out.parent.iterdir()} == {"mine.html", "mine.md", "mine.csv", "mine.tex"}
    assert not list((tmp_path / "runs").rglob("report.html"))
    assert main([str(tmp_path / "runs")]) == 0
    assert (tmp_path / "runs" / "comparison.html").is_file()


def test_the_command_refuses_a_place_that_is_no_page(tmp_path, capsys):
    made(tmp_path / "runs", seeds=1)
    assert main([str(tmp_path / "runs"), "--table-only", "--out", str(tmp_path / "x.csv")]) == 2
    assert "ends in .html" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main([str(tmp_path / "runs"), "--table-only", "--out", str(tmp_path / "file" / "x.html")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_ticks_are_round_numbers_inside_the_range():
    assert ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert ticks(0.83, 0.91) == [0.84, 0.86, 0.88, 0.9]
    assert log_ticks(50, 20_000) == [100, 1000, 10_000]
    assert log_ticks(30, 600) == [50, 100, 200, 500]
    assert log_ticks(0.33, 0.41) == [0.34, 0.36, 0.38, 0.4], "fewer than three of 1, 2 and 5"

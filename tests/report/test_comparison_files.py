"""The files beside a comparison's page: CSV, LaTeX and Markdown, and where the command writes them."""

import csv
import io
import re
import statistics

import pytest
from html_reader import Page
from run_files import make_runs

from fedbayes.report.cli import main
from fedbayes.report.comparison_page import write_comparison
from fedbayes.report.spread import spread
from fedbayes.report.tables import latex


def test_csv_has_every_digit(tmp_path):
    summaries, table = make_runs(tmp_path / "runs", seeds=2)
    for row in csv.DictReader(io.StringIO(table.as_csv())):
        values = [summary["final"]["nll"] for summary in summaries[row["method"]]]
        assert (float(row["nll"]), row["runs"]) == (statistics.fmean(values), "2")
        assert float(row["nll_se"]) == statistics.stdev(values) / 2**0.5
        assert float(row["bytes_up"]) == statistics.fmean(s["bytes"]["up"] for s in summaries[row["method"]])


def test_csv_makes_no_formula_of_a_name(tmp_path):
    _, table = make_runs(tmp_path / "runs", methods=("=1+1",), seeds=1)
    assert next(csv.DictReader(io.StringIO(table.as_csv())))["method"] == "'=1+1"


def test_latex_is_booktabs_with_signs_written_out_and_the_best_in_bold(tmp_path):
    _, table = make_runs(tmp_path / "runs", methods=("a_b", "50%"), seeds=1)
    text = table.as_latex()
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
    bold = {cell.text for row in table.table.cells() for cell in row if cell.is_best}
    assert set(re.findall(r"\\textbf\{(.+?)\}", text)) == {latex(cell) for cell in bold}
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert {line.count(" & ") for line in rows} == {len(table.table.head) - 1}
    assert latex("\\a{b}^~#$&–±") == r"\textbackslash{}a\{b\}\textasciicircum{}\textasciitilde{}\#\$\&--$\pm$"


@pytest.mark.usefixtures("no_pictures")
def test_the_tables_lie_beside_the_page_under_its_name(tmp_path):
    summaries, table = make_runs(tmp_path / "runs")
    page = write_comparison(table, tmp_path / "page.html")
    assert [path.name for path in table.write_tables(page)] == ["page.md", "page.csv", "page.tex"]
    text = (tmp_path / "page.md").read_text()
    assert text.startswith(table.as_markdown() + "\n")
    values = [summary["per_domain"]["ink"]["accuracy"] for summary in summaries["fedvpt"]]
    cell = spread(values).text()
    assert f"| method | ink |\n| --- | ---: |\n| fedvpt | {cell} |\n" in text
    assert f"fedvpt & {cell.replace('±', '$' + chr(92) + 'pm$')} " in (tmp_path / "page.tex").read_text()
    (row, _) = csv.DictReader(io.StringIO((tmp_path / "page.csv").read_text()))
    assert (row["method"], float(row["accuracy/ink"])) == ("fedvpt", statistics.fmean(values))
    links = {a["href"] for tag, a in Page(page.read_text()).tags if tag == "a"}
    assert {"page.md", "page.csv", "page.tex"} <= links


@pytest.mark.usefixtures("no_pictures")
def test_the_command_writes_the_comparison_where_it_is_asked_to(tmp_path, capsys):
    make_runs(tmp_path / "runs", seeds=1)
    out = tmp_path / "new" / "chosen.html"
    assert main([str(tmp_path / "runs"), "--table-only", "--out", str(out)]) == 0
    assert str(out) in capsys.readouterr().err
    assert {path.name for path in out.parent.iterdir()} == {"chosen.html", "chosen.md", "chosen.csv", "chosen.tex"}
    assert not list((tmp_path / "runs").rglob("report.html"))
    assert main([str(tmp_path / "runs")]) == 0
    assert (tmp_path / "runs" / "comparison.html").is_file()


@pytest.mark.usefixtures("no_pictures")
def test_the_command_refuses_a_place_that_is_no_page(tmp_path, capsys):
    make_runs(tmp_path / "runs", seeds=1)
    assert main([str(tmp_path / "runs"), "--table-only", "--out", str(tmp_path / "x.csv")]) == 2
    assert "ends in .html" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main([str(tmp_path / "runs"), "--table-only", "--out", str(tmp_path / "file" / "x.html")]) == 2
    assert "cannot be written" in capsys.readouterr().err

"""Numbers in the README stand on the page of the tables, in the section of their protocol."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
TABLES = (ROOT / "experiments" / "README.md").read_text()
PROTOCOLS = [
    "### Styled digits, a mixture of five styles",
    "### Styled digits, label Dirichlet 0.1",
    "### Styled digits, styles and labels both mixed",
    "### New clients",
    "### MNIST, USPS",
    "### Office-Caltech10, a mixture",
    "### Office-Caltech10, one domain",
    "### CIFAR-10, ten clients",
    "### CIFAR-10, five clients",
    "### Not yet run",
]
"""Beginnings of the sections of the tables' page: one protocol's tables end where the next one's begin."""


def cells(line):
    """Of a row; the method without its quotes."""
    first, *others = re.split(r" *\| *", line)[1:-1]
    return [first.strip("`"), *others]


def rows_of(place):
    """Every row of a protocol's tables there: method, accuracy, worst tenth, NLL, ECE and the two differences."""
    section = TABLES[TABLES.index(PROTOCOLS[place]) : TABLES.index(PROTOCOLS[place + 1])]
    rows = [cells(line) for line in section.splitlines() if line.startswith("| `")]
    return [[row[at] for at in (0, 1, 3, 4, 5, 8, 9)] for row in rows if len(row) == 10]


def rounded(cell):
    """`0.905 ± 0.009` as `.905`."""
    return cell.split(" ")[0].removeprefix("0")


def test_the_readmes_rows_of_mixed_styles_stand_on_the_tables_page():
    lines = [line.replace(" (other machine)", "") for line in README.splitlines() if re.match(r"\| `\w+`.*±", line)]
    rows = [row for row in map(cells, lines) if len(row) == 7]
    assert len(rows) >= 28
    found = rows_of(0)
    assert [row for row in rows if row not in found] == []


def test_the_readmes_accuracy_and_nll_of_other_protocols_stand_on_the_tables_page():
    lines = [line for line in README.replace("**", "").splitlines() if re.match(r"\| `\w+` \| \.\d+ / \.", line)]
    rows = [cells(line) for line in lines]
    assert len(rows) >= 28
    for column, place in enumerate((1, 2, 4, 5, 6, 7, 8), 1):
        found = {(row[0], f"{rounded(row[1])} / {rounded(row[3])}") for row in rows_of(place)}
        said = {(row[0], row[column]) for row in rows if row[column] != "–"}
        assert said <= found, PROTOCOLS[place]

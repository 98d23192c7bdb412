"""Names from elsewhere in Markdown, CSV and LaTeX: they stay texts, and ordinary ones stay as they were."""

import pytest

from fedbayes.report.tables import Table, inert, latex, markdown


@pytest.mark.parametrize("name", ["ink", "pfedbayespt_personal", "0.8 ± 0.1", "run `a_b <c>` again", "- NLL"])
def test_ordinary_names_are_markdown_as_they_stand(name):
    assert markdown(name) == name


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("<img src=x onerror=a>", r"\<img src=x onerror=a>"),
        ("![t](http://evil)", r"\!\[t](http://evil)"),
        ("a\nb\u2028", r"a\\nb\\u2028"),
        ("a\\|b", r"a\\\|b"),
        ("`a|b`", r"\`a\|b\`"),
        ("_x_ *y* &lt;", r"\_x\_ \*y\* \&lt;"),
    ],
)
def test_markup_is_text(name, shown):
    assert markdown(name) == shown


def test_a_name_breaks_no_row():
    assert len(Table("", ("a", "b"), [["x\ny|z", "1"]]).as_markdown().splitlines()) == 3


@pytest.mark.parametrize("cell", ["\t=1+1", "\r=1+1", "  @x", "-1+1", "=1"])
def test_a_formula_is_text(cell):
    assert inert(cell) == f"'{cell}"


@pytest.mark.parametrize("cell", ["-1", "+1e-5", "ink", 3, -2.5, None])
def test_numbers_and_names_stay(cell):
    assert inert(cell) == cell


def test_a_latex_row_is_no_argument_of_the_row_before():
    text = Table("", ("a", "b"), [["[2cm]x", "1"], ["*y", "2"]]).as_latex()
    assert r"{}[2cm]x & 1 \\" in text
    assert r"{}*y & 2 \\" in text
    assert latex("a\rb") == r"a\textbackslash{}rb"
    assert latex("ink") == "ink"

"""The example of docs/secure.md runs, and its table of comparisons is what the formulas give."""

import re

from pages import ROOT

TEXT = (ROOT / "docs" / "secure.md").read_text()


def test_the_example_prints_what_it_says(capsys):
    code, _ = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)  # the other needs a finished run
    exec(compile(code, "secure.md", "exec"), {})
    values, rows = capsys.readouterr().out.strip().split("\n")
    assert values == "[0.   0.25 3.  ]"
    assert re.search(r"#\s*\[0\.   0\.25 3\.  \]", code)
    assert "'protocol': 'relu/select/cross_action', 'bits': 396" in rows


def test_every_function_of_the_table_exists():
    from pkgutil import resolve_name

    for module, name in re.findall(r"^\| `(\w+)\.(\w+)` ", TEXT, re.MULTILINE):
        assert callable(resolve_name(f"fedbayes.secure.{module}:{name}")), name

"""The command `fedbayes-report`: finished runs drawn again, and side by side."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fedbayes.errors import FedbayesError, RunError
from fedbayes.storage.run_dir import SUMMARY
from fedbayes.text import visible

COMPARISON = "comparison.html"
MISFITS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What drawing raises where the files of a run hold other things than a run writes."""


def main(argv: Sequence[str] | None = None) -> int:
    """Draw finished runs again and compare them.

    Args:
        argv: the command's arguments; those of the process by default.

    Returns:
        0, or 2 where a folder holds no run, a run's files are broken or a page cannot be written.
    """
    from rich.console import Console

    from fedbayes.report.comparison import compare, find_runs

    options = _parser().parse_args(argv)
    state = "best" if options.best else "final"
    try:
        runs, broken = find_runs(options.folders), []
        for run in runs:
            try:
                _show(run, None if options.table_only else len(runs) == 1)
            except FedbayesError as error:  # the others are shown all the same
                broken.append(run)
                if len(broken) == len(runs):
                    raise
                _complain(error)
        runs = [run for run in runs if run not in broken]
        comparison = compare(runs, state)
        page = options.out or (_place(options.folders) if len(runs) > 1 and not options.table_only else None)
        if page is not None:
            _compare(runs, state, page, options.reference)
    except FedbayesError as error:
        _complain(error)
        return 2
    if options.markdown:
        print(comparison.as_markdown())
    else:
        Console().print(comparison.for_terminal())
    return 2 if broken else 0


def _complain(error: Exception) -> None:
    print(visible(f"{type(error).__name__}: {error}"), file=sys.stderr)


def _path(text: str) -> Path:
    return Path(text).expanduser()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fedbayes-report",
        description="Tables and charts of finished runs: report.html in each run's folder, its main charts as PNG and "
        "PDF in plots/ (all of them where one run is named), and for several runs a page that compares them, with its "
        "tables as .md, .csv and .tex files of the same name beside it.",
    )
    add = parser.add_argument
    add("folders", metavar="RUN_OR_SWEEP_DIR", nargs="+", type=_path, help="runs, or folders of runs")
    place = f"where the comparison goes; default: {COMPARISON} in the folder of runs if there is one, else here"
    add("--out", metavar="FILE", type=_path, help=place)
    add("--markdown", action="store_true", help="print the comparison as a Markdown table")
    add("--best", action="store_true", help="compare the rounds best by validation, not the last ones")
    subtracted = "the row that is subtracted in paired differences; default: that with the best accuracy"
    add("--reference", metavar="NUMBER", type=int, help=subtracted)
    alone = "leave the runs' charts and pages as they are; with --out, write only the comparison"
    add("--table-only", action="store_true", help=alone)
    return parser


def _show(run_dir: Path, everything: bool | None) -> None:
    """Draw a run again, with all or with its main charts as files; with None only see whether it can stand in a table.

    Raises:
        RunError: if its files are missing, damaged or do not fit together, or a page cannot be written.
    """
    from fedbayes.report.comparison import compare
    from fedbayes.report.measures import MEASURES
    from fedbayes.report.run_page import write_html

    try:
        compare([run_dir], "final", MEASURES)
        if everything is not None:
            print(write_html(run_dir, draw=everything or None), file=sys.stderr)
    except MISFITS as error:
        reason = f"{type(error).__name__}: {error}"
        raise RunError(
            f"files in {run_dir} are not what a run writes ({reason}); remove it, or run it again."
        ) from error


def _place(folders: Sequence[Path]) -> Path:
    """Where a comparison goes by default."""
    is_sweep = len(folders) == 1 and not (folders[0] / SUMMARY).exists()
    return folders[0] / COMPARISON if is_sweep else Path(COMPARISON)


def _compare(runs: Sequence[Path], state: str, page: Path, reference: int | None) -> None:
    """Write the comparison's page and tables.

    Raises:
        RunError: if they cannot be written, or the page would have the name of one of its tables.
    """
    from fedbayes.report.comparison import compare
    from fedbayes.report.comparison_page import write_comparison
    from fedbayes.report.measures import MEASURES

    if page.suffix not in (".html", ".htm"):
        raise RunError(f"--out={page} is no name of a page; give one that ends in .html.")
    comparison = compare(runs, state, MEASURES, reference)
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        for path in (write_comparison(comparison, page), *comparison.write_tables(page)):
            print(path, file=sys.stderr)
    except OSError as error:
        raise RunError(f"{page} cannot be written ({error.strerror}); choose another place with --out.") from error


if __name__ == "__main__":
    sys.exit(main())

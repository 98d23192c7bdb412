"""The command `fedbayes-report`: finished runs drawn again, and side by side."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fedbayes.errors import FedbayesError, RunError
from fedbayes.report.run_page import write_html
from fedbayes.storage.run_dir import SUMMARY
from fedbayes.text import visible

__all__ = ["main", "write_html"]

COMPARISON = "comparison.html"

MISFITS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What drawing raises where the files of a run hold other things than a run writes."""


def main(argv: Sequence[str] | None = None) -> int:
    """Draws finished runs again and compares them.

    Args:
        argv: the command's arguments; those of the process by default.

    Returns:
        0, or 2 where a folder holds no run, a run's files are broken or a page cannot be written.
    """
    from rich.console import Console

    from fedbayes.report.comparison import compare, find_runs

    wanted = _parser().parse_args(argv)
    state = "best" if wanted.best else "final"
    try:
        runs = find_runs(wanted.folders)
        broken = []
        for run_dir in runs:
            try:
                _show(run_dir, None if wanted.table_only else len(runs) == 1)
            except FedbayesError as error:  # the others are shown all the same
                broken.append(run_dir)
                if len(broken) == len(runs):
                    raise
                print(visible(f"{type(error).__name__}: {error}"), file=sys.stderr)
        runs = [run_dir for run_dir in runs if run_dir not in broken]
        comparison = compare(runs, state)
        page = wanted.out or (_place(wanted.folders) if len(runs) > 1 and not wanted.table_only else None)
        if page is not None:
            _compare(runs, state, page, wanted.reference)
    except FedbayesError as error:
        print(visible(f"{type(error).__name__}: {error}"), file=sys.stderr)
        return 2
    if wanted.markdown:
        print(comparison.as_markdown())
    else:
        Console().print(comparison.for_terminal())
    return 2 if broken else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fedbayes-report",
        description="Tables and pictures of finished runs: report.html in each run's folder, and for several runs a "
        "page that compares them, with its table as .md, .csv and .tex files of the same name beside it.",
    )
    parser.add_argument("folders", metavar="RUN_OR_SWEEP_DIR", nargs="+", type=Path, help="runs, or folders of runs")
    parser.add_argument(
        "--out",
        metavar="FILE",
        type=Path,
        help=f"where the comparison goes; default: {COMPARISON} in the folder of runs if there is one, else here",
    )
    parser.add_argument("--markdown", action="store_true", help="print the comparison as a Markdown table")
    parser.add_argument("--best", action="store_true", help="compare the rounds best by validation, not the last ones")
    parser.add_argument(
        "--reference",
        metavar="NUMBER",
        type=int,
        help="the row whose numbers are subtracted in paired differences; default: the best accuracy",
    )
    parser.add_argument(
        "--table-only", action="store_true", help="leave the runs' pictures and pages as they are; with --out, only it"
    )
    return parser


def _show(run_dir: Path, everything: bool | None) -> None:
    """Draw a run again, or only look whether it can stand in a table.

    Args:
        run_dir: of the run.
        everything: whether to write all of its charts as files, or the main ones; None to write nothing.

    Raises:
        RunError: if its files are missing, damaged or do not fit together, or a page cannot be written.
    """
    from fedbayes.report.comparison import compare
    from fedbayes.report.measures import MEASURES

    try:
        compare([run_dir], "final", MEASURES)
        if everything is not None:
            print(write_html(run_dir, draw=everything or None), file=sys.stderr)
    except MISFITS as error:
        what = f"{type(error).__name__}: {error}"
        raise RunError(f"files in {run_dir} are not what a run writes ({what}); remove it, or run it again.") from error


def _place(folders: Sequence[Path]) -> Path:
    """Where a comparison goes that was given no place."""
    alone = len(folders) == 1 and not (folders[0] / SUMMARY).exists()
    return folders[0] / COMPARISON if alone else Path(COMPARISON)


def _compare(runs: Sequence[Path], state: str, page: Path, reference: int | None) -> None:
    """Writes the comparison's page and tables.

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

"""A run's results as tables of texts, for its page and for the terminal."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fedbayes.storage.names import SUBJECT
from fedbayes.text import duration, visible

if TYPE_CHECKING:
    from rich.console import RenderableType


RESULTS, EACH_DOMAIN, EACH_CLIENT = "Results on the test images", "Each domain", "Each client on its test images"
DOMAIN_HEAD = ("domain", "images", "accuracy", "NLL (nats)")

PHASES = ("setup", "train", "evaluate", "aggregate")
"""The parts of `seconds` in a summary; what is left of `total` is shown as `other`."""


def number(value: object, digits: int = 3) -> str:
    """A number with so many decimals; a dash where there is none."""
    return f"{value:,.{digits}f}" if isinstance(value, int | float) else "–"


def size(value: object) -> str:
    """Bytes in the unit that leaves one to three digits before the point."""
    if not isinstance(value, int | float):
        return "–"
    units = ("B", "kB", "MB", "GB", "TB")
    power = min(int(math.log10(value) // 3), len(units) - 1) if value >= 1 else 0
    return f"{value / 1000**power:,.{1 if power else 0}f} {units[power]}"


def title(summary: Mapping[str, Any]) -> str:
    """What ran, in one line."""
    parts = [str(summary[name]) for name in SUBJECT if summary.get(name)]
    parts += [f"{name} {summary[name]}" for name in ("seed", "rounds", "clients") if summary.get(name) is not None]
    return visible(" · ".join(parts)) or "run"


def result_rows(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table of results: the last round, and the best by validation where it is another."""
    states = [(f"round {_round(summary, 'final')}", summary.get("final") or {})]
    if summary.get("best") and _round(summary, "best") != _round(summary, "final"):
        states.append((f"best by validation: {_round(summary, 'best')}", summary["best"]))
    table: dict[str, list[str]] = {}
    for _, state in states:
        accuracy = state.get("accuracy") or {}
        cells = {
            "accuracy, mean over clients ± sd": f"{number(accuracy.get('mean'))} ± {number(accuracy.get('std'))}",
            "accuracy, worst decile": number(accuracy.get("worst_decile")),
            "accuracy, weighted by images": number(accuracy.get("weighted")),
            "NLL, pooled (nats)": number(state.get("nll")),
            "ECE, pooled": number(state.get("ece")),
            # So few images show an ECE even where confidence is exactly right.
            "- ECE if perfectly calibrated": number(state.get("ece_floor")),
            "adaptive ECE, bins of equal size": number(state.get("adaptive_ece")),
            "- that if perfectly calibrated": number(state.get("adaptive_ece_floor")),
            "temperature, fitted on validation": number(state.get("temperature"), 2),
            "- NLL at it (nats)": number(state.get("nll_temperature")),
            "- ECE at it": number(state.get("ece_temperature")),
            "Brier score": number(state.get("brier")),
            "AURC, error over coverage": number(state.get("aurc")),
            "entropy (nats)": number(state.get("entropy")),
            "- expected entropy of a draw": number(state.get("expected_entropy")),
            "- prompt uncertainty": number(state.get("prompt_uncertainty")),
            "effective components (training)": number(state.get("effective_components"), 2),
            "mixing ratio": number(state.get("mixing_ratio")),
            **_outside_cells(state.get("ood") or {}),
        }
        for label, cell in cells.items():
            table.setdefault(label, []).append(cell)
    rows = [[label, *cells] for label, cells in table.items() if any(cell.strip("–± ") for cell in cells)]
    return ["test images", *(name for name, _ in states)], rows


def _outside_cells(ood: Mapping[str, Any]) -> dict[str, str]:
    """The rows about held-out domains; none without."""
    if not ood:
        return {}
    cells = {
        f"held out: {', '.join(map(str, ood.get('domains') or []))}": f"{number(ood.get('images'), 0)} images",
        "- accuracy": number(ood.get("accuracy")),
        "- NLL (nats)": number(ood.get("nll")),
    }
    scores = {"prompt_uncertainty": "prompt uncertainty", "entropy": "entropy", "confidence": "1 - confidence"}
    for score, name in scores.items():
        values = [number((ood.get(measure) or {}).get(score)) for measure in ("auroc", "fpr95")]
        cells[f"- AUROC, FPR95 by {name}"] = ", ".join(values) if values != ["–", "–"] else "–"
    return cells


def _round(summary: Mapping[str, Any], state: str) -> object:
    found = (summary.get(state) or {}).get("round")
    return "–" if found is None else found


def domain_rows(summary: Mapping[str, Any]) -> list[list[str]]:
    """Each domain's name, images, accuracy and NLL."""
    domains = summary.get("per_domain") or {}
    return [
        [str(name), number(row.get("images"), 0), number(row.get("accuracy")), number(row.get("nll"))]
        for name, row in domains.items()
    ]


def client_rows(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table of each client's numbers."""
    names = ("accuracy", "nll", "ece", "ece_floor")
    rows = [
        [
            str(row.get("partition", "–")),
            number(row.get("images"), 0),
            *(number(row.get(name)) for name in names),
        ]
        for row in summary.get("per_client") or []
    ]
    return ["client", "images", "accuracy", "NLL (nats)", "ECE", "ECE if calibrated"], rows


def cost_rows(summary: Mapping[str, Any]) -> list[list[str]]:
    """What the run took."""
    sent, seconds = summary.get("bytes") or {}, summary.get("seconds") or {}
    parts = [f"{name} {seconds[name]:.1f}" for name in PHASES if seconds.get(name)]
    rows = []
    if sent:
        rows.append(["sent", f"{size(sent.get('up'))} up, {size(sent.get('down'))} down"])
    if seconds.get("total") is not None:
        rows.append(["time", duration(seconds["total"]) + (f" (seconds: {', '.join(parts)})" if parts else "")])
    if summary.get("images_per_second") is not None:
        rows.append(["speed", f"{number(summary['images_per_second'], 0)} images/s"])
    if summary.get("peak_memory_mb") is not None:
        rows.append(["peak memory", f"{number(summary['peak_memory_mb'], 0)} MB"])
    return rows


def final_table(summary: Mapping[str, Any]) -> "RenderableType":
    """The results of a run for the terminal.

    Args:
        summary: the object of `summary.json`; what is missing or null shows as a dash.

    Returns:
        Something that rich can print.
    """
    from rich import box
    from rich.console import Group
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
        made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for index, name in enumerate(head):
            made.add_column(escape(name), justify="left" if index == 0 else "right")
        for row in rows:
            made.add_row(*(escape(visible(cell)) for cell in row))
        return made

    parts = [table(*result_rows(summary))]
    if domains := domain_rows(summary):
        parts.append(table(["domain", "images", "accuracy", "NLL"], domains))
    costs = Table(box=None, show_header=False, pad_edge=False)
    for row in cost_rows(summary):
        costs.add_row(*row)
    return Group(Text(title(summary), style="bold"), *parts, costs)

"""A run's results as tables, for its page, its files and the terminal."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fedbayes.report.figures.clients import PHASES, image_counts
from fedbayes.report.groups import coverage
from fedbayes.report.spread import look_up, number, size
from fedbayes.report.tables import Table, heat_table
from fedbayes.storage.names import SUBJECT
from fedbayes.storage.predictions import Predictions
from fedbayes.text import duration, visible

if TYPE_CHECKING:
    from rich.console import RenderableType

_MOST_COLUMNS = 30
_MOST_CELLS = 100_000


def title(summary: Mapping[str, Any]) -> str:
    """Return what ran, in one line."""
    parts = [str(summary[name]) for name in SUBJECT if summary.get(name)]
    parts += [f"{name} {summary[name]}" for name in ("seed", "rounds", "clients") if summary.get(name) is not None]
    return visible(" · ".join(parts)) or "run"


def results(summary: Mapping[str, Any]) -> Table:
    """Return the results of the last round, and of the best by validation where it is another."""
    states = [(f"round {_round(summary, 'final')}", summary.get("final") or {})]
    if summary.get("best") and _round(summary, "best") != _round(summary, "final"):
        states.append((f"best by validation: {_round(summary, 'best')}", summary["best"]))
    columns = [_result_cells(state) for _, state in states]
    counts = coverage(summary)
    rows = [["evaluated", *[counts] * len(states)]] if counts else []
    for label in dict.fromkeys(label for column in columns for label in column):
        cells = [column.get(label, "–") for column in columns]
        if any(cell.strip("–± ") for cell in cells):
            rows.append([label, *cells])
    return Table("Results on the test images", ["test images", *(name for name, _ in states)], rows)


def _round(summary: Mapping[str, Any], state: str) -> object:
    at = (summary.get(state) or {}).get("round")
    return "–" if at is None else at


_ROWS = (
    ("accuracy, worst decile of clients", ("accuracy", "worst_decile"), 3),
    ("accuracy, weighted by images", ("accuracy", "weighted"), 3),
    ("NLL, pooled (nats)", ("nll",), 3),
    ("ECE, pooled", ("ece",), 3),
    ("- ECE if perfectly calibrated", ("ece_floor",), 3),  # few images show an ECE even then
    ("adaptive ECE, bins of equal size", ("adaptive_ece",), 3),
    ("- adaptive ECE if perfectly calibrated", ("adaptive_ece_floor",), 3),
    ("temperature, fitted on validation", ("temperature",), 2),
    ("- NLL after temperature scaling (nats)", ("nll_temperature",), 3),
    ("- ECE after temperature scaling", ("ece_temperature",), 3),
    ("Brier score", ("brier",), 3),
    ("AURC, area under the risk-coverage curve", ("aurc",), 3),
    ("entropy (nats)", ("entropy",), 3),
    ("- expected entropy of a sample", ("expected_entropy",), 3),
    ("- prompt uncertainty", ("prompt_uncertainty",), 3),
    ("effective components (training)", ("effective_components",), 2),
    ("mixing ratio", ("mixing_ratio",), 3),
)
"""Label, place in a result, and decimals."""


def _result_cells(state: Mapping[str, Any]) -> dict[str, str]:
    mean, deviation = (number(look_up(state, ("accuracy", name))) for name in ("mean", "std"))
    cells = {"accuracy, mean over clients ± sd": f"{mean} ± {deviation}"}
    cells |= {label: number(look_up(state, path), digits) for label, path, digits in _ROWS}
    return cells | _emulator_cells(state) | _held_out_cells(state.get("ood") or {})


def _emulator_cells(state: Mapping[str, Any]) -> dict[str, str]:
    """The rows about the emulator that clients trained, and the gap to the full ViT; none without one."""
    emulator, gap = state.get("emulator") or {}, state.get("gap") or {}
    if not emulator:
        return {}
    cells = {
        "emulator: accuracy, mean over clients": number(look_up(emulator, ("accuracy", "mean"))),
        "emulator: NLL (nats)": number(emulator.get("nll")),
    }
    for score, name in (("accuracy", "accuracy"), ("nll", "NLL (nats)")):
        mean, low, high = (number(look_up(gap, (score, part))) for part in ("mean", "low", "high"))
        cells[f"plugged in minus emulator: {name} [95 % interval]"] = f"{mean} [{low}, {high}]"
    return cells


def _held_out_cells(ood: Mapping[str, Any]) -> dict[str, str]:
    """The rows about held-out domains; none without."""
    if not ood:
        return {}
    cells = {
        f"held-out domains: {', '.join(map(str, ood.get('domains') or []))}": f"{number(ood.get('images'), 0)} images",
        "- accuracy": number(ood.get("accuracy")),
        "- NLL (nats)": number(ood.get("nll")),
    }
    for score, name in (
        ("prompt_uncertainty", "prompt uncertainty"),
        ("entropy", "entropy"),
        ("confidence", "1 - confidence"),
    ):
        values = [number((ood.get(measure) or {}).get(score)) for measure in ("auroc", "fpr95")]
        cells[f"- AUROC, FPR95 by {name}"] = ", ".join(values) if values != ["–", "–"] else "–"
    return cells


def by_domain(summary: Mapping[str, Any]) -> Table:
    """Return each domain's images, accuracy and NLL."""
    rows = [
        [str(name), number(row.get("images"), 0), number(row.get("accuracy")), number(row.get("nll"))]
        for name, row in (summary.get("per_domain") or {}).items()
    ]
    return Table("Each domain", ("domain", "images", "accuracy", "NLL (nats)"), rows)


def by_client(summary: Mapping[str, Any]) -> Table:
    """Return each client's numbers."""
    names = ("accuracy", "nll", "ece", "ece_floor")
    rows = [
        [str(row.get("partition", "–")), number(row.get("images"), 0), *(number(row.get(name)) for name in names)]
        for row in summary.get("per_client") or []
    ]
    head = ("client", "images", "accuracy", "NLL (nats)", "ECE", "ECE if calibrated")
    return Table("Each client on its test images", head, rows)


def costs(summary: Mapping[str, Any]) -> Table:
    """Return what the run took."""
    moved, seconds = summary.get("bytes") or {}, summary.get("seconds") or {}
    parts = [f"{name} {seconds[name]:.1f}" for name in PHASES if seconds.get(name)]
    rows = []
    if moved:
        rows.append(["sent", f"{size(moved.get('up'))} up, {size(moved.get('down'))} down"])
    if seconds.get("total") is not None:
        rows.append(["time", duration(seconds["total"]) + (f" (seconds: {', '.join(parts)})" if parts else "")])
    if sparse := summary.get("sparse"):
        rows.append(["blocks", f"{number(sparse.get('fraction'), 2)} of them trained and sent by a client in a round"])
    if emulator := summary.get("emulator"):
        part = f"{number(emulator.get('size'), 2)} of the lower blocks"
        rows.append(["emulator", f"{size(emulator.get('bytes'))} to each client, once; {part}"])
        if emulator.get("predicts") == "emulator":
            rows.append(["predictions", "the emulator's: clients do not have the full ViT"])
    if summary.get("images_per_second") is not None:
        rows.append(["speed", f"{number(summary['images_per_second'], 0)} images/s"])
    if summary.get("peak_memory_mb") is not None:
        rows.append(["peak memory", f"{number(summary['peak_memory_mb'], 0)} MB"])
    return Table("Costs", ("cost", "amount"), rows, texts=2)


def shares(summary: Mapping[str, Any]) -> Table:
    """Return what a round's aggregation on secret shares took, by phase and protocol, and a client's upload."""
    secure = summary.get("secure") or {}
    rows = [
        [f"{row.get('phase')}: {row.get('protocol')}", size(row.get("bytes")), number(row.get("rounds"), 0)]
        for row in secure.get("round") or []
    ]
    if secure:
        rows.append(["a client's two shares", size(secure.get("upload_bytes")), "–"])
        rows.append(["the same step in the clear", size(secure.get("clear_upload_bytes")), "–"])
    return Table("Aggregation on secret shares", ("part", "sent", "rounds"), rows)


def accuracy_map(runs: Sequence[Predictions], partition: Mapping[str, Any], name: str = "") -> Table | str | None:
    """Return the accuracy of each client in each domain; of several runs, the mean over those with images.

    Returns:
        A shaded table, a text where that would be too large, or nothing without predictions.
    """
    cells: dict[tuple[int, int], list[tuple[float, int]]] = {}
    for run in runs:
        for place, cell in run.cells().items():
            cells.setdefault(place, []).append(cell)
    if not cells:
        return None
    domains = sorted({domain for _, domain in cells})
    clients = sorted({client for client, _ in cells})
    if len(domains) > _MOST_COLUMNS or len(clients) * len(domains) > _MOST_CELLS:
        return f"{len(clients)} clients and {len(domains)} domains are too many for a table."
    names = [str(name) for name in partition.get("domains") or []]
    labels = [names[domain] if domain < len(names) else str(domain) for domain in domains]

    def accuracy_in(client: int, domain: int) -> tuple[str, float | None]:
        each = cells.get((client, domain), [])
        images = sum(count for _, count in each)
        accuracy = sum(value for value, _ in each) / (len(each) or 1)
        return (f"{accuracy:.2f} ({images})", accuracy) if images else ("–", None)

    caption = "Test accuracy of each client in each domain, and its number of test images there"
    if len(runs) > 1:
        caption += f": mean over {len(runs)} runs, images of all of them"
    rows = [(f"client {client}", [accuracy_in(client, domain) for domain in domains]) for client in clients]
    return heat_table(
        f"{name}. {caption}" * bool(name) + f"{caption}" * (not name) + "; stronger colour is higher",
        ["client", *labels],
        rows,
    )


def partition_tables(partition: Mapping[str, Any]) -> list[Table | str]:
    """Return the images of each client by domain and by label, as shaded tables, or texts where these are too large."""
    clients, tables = image_counts(partition)
    parts: list[Table | str] = []
    for kind, names, counts in tables:
        if len(names) > _MOST_COLUMNS:
            parts.append(f"{len(names)} {kind}s are too many for a table; see partition.json.")
            continue
        rows = [
            (f"client {client.get('partition', '–')}", [(f"{count:,}", float(count)) for count in row])
            for client, row in zip(clients, counts, strict=True)
        ]
        caption = f"Images of each client by {kind}, all splits together; stronger colour is more"
        parts.append(heat_table(caption, ["client", *names], rows, (0.0, max(map(max, counts)))))
    return parts


def final_table(summary: Mapping[str, Any]) -> "RenderableType":
    """Return the results of a run for the terminal."""
    from rich.console import Group
    from rich.table import Table as RichTable
    from rich.text import Text

    spent = RichTable(box=None, show_header=False, pad_edge=False)
    for row in costs(summary).rows:
        spent.add_row(*map(str, row))
    tables = [table for table in (results(summary), by_domain(summary)) if table.rows]
    return Group(Text(title(summary), style="bold"), *map(rich_table, tables), spent)


def rich_table(table: Table, **options: Any) -> "RenderableType":
    """Return a table for the terminal."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table as RichTable

    table_for_terminal = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, **options)
    for index, name in enumerate(table.head):
        is_text = index < table.texts
        table_for_terminal.add_column(
            escape(name),
            justify="left" if is_text else "right",
            overflow="fold",
            no_wrap=not is_text or name == "method",
        )
    for row in table.cells():
        table_for_terminal.add_row(*(escape(visible(cell.text)) for cell in row))
    return table_for_terminal

"""A run's page: its results, how it got there and which clients it had, in one file that needs no other."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedbayes.report import results
from fedbayes.report.chart import Chart, Series
from fedbayes.report.figures import clients, confidence, learning
from fedbayes.report.spread import flatten, look_up, number
from fedbayes.report.tables import as_csv, markdown, write_files, write_page
from fedbayes.storage.names import CONFIG
from fedbayes.storage.predictions import Predictions, read_predictions
from fedbayes.storage.run_dir import (
    CLIENTS,
    GALLERY,
    METRICS,
    PARTITION,
    PLOTS,
    REPORT,
    read_json,
    read_rows,
    read_summary,
    read_text,
    require_own,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

_AT_ONCE = ("train_loss", "validation_accuracy", "validation_nll", "clients", "reliability", "partition_by_domain")
"""Charts that a run leaves as files at its end; `fedbayes-report` writes all of them."""
NO_GALLERY = (
    "There is no gallery: this run kept none. `python -m fedbayes.report.gallery RUN_DIR` makes it, where its data are."
)


def write_html(run_dir: Path, *, draw: bool | None = False) -> Path:
    """Write a run's page: tables, charts and images in one file that needs no other.

    Args:
        run_dir: a run's directory with its summary; what else lies there is shown as far as it is there.
        draw: whether to write the page's charts to `plots/`, too, as PNG and PDF; None for those of a run's end.

    Returns:
        The path of `report.html`; its tables lie beside it, see `write_tables`.

    Raises:
        RunError: if one of the run's files is broken.
    """
    require_own(run_dir)
    summary = read_summary(run_dir)
    partition, gallery = read_json(run_dir / PARTITION), read_json(run_dir / GALLERY)
    rows = read_rows(run_dir / METRICS)
    per_client = read_rows(run_dir / CLIENTS, ("round", "phase", "partition"))
    predictions = read_predictions(run_dir)
    train = [row for row in rows if row.get("phase") == "train"]
    bars = [(run_dir.name, clients.with_other(summary["seconds"]))] if summary.get("seconds") else []
    bins = confidence.pooled_bins([(summary.get("final") or {}).get("reliability") or {}])
    charts: dict[str, list[Chart | None]] = {
        "learning": [*learning.learning(rows, per_client, look_up(summary, ("best", "round")))],
        "blocks": [*learning.importance(rows)],
        "posterior": [*learning.posterior(rows)],
        "trade_offs": [*learning.trade_offs(rows)],
        "clients": [clients.accuracy_of_clients(summary), clients.accuracy_of_domains(summary, partition)],
        "confidence": _confidence(summary, bins, predictions),
        "codes": [clients.prompt_codes(gallery.get("codes") or {}, partition)],
        "partition": [*clients.partition_charts(partition)],
        "time": [*([clients.seconds_by_phase(bars)] if bars else []), *learning.seconds_by_round(rows)],
    }
    page = write_page(
        run_dir / REPORT,
        "run.html.j2",
        run=run_dir.name,
        title=results.title(summary),
        charts={name: [chart for chart in part if chart] for name, part in charts.items()},
        results=results.results(summary),
        map=results.accuracy_map([predictions] if predictions else [], partition),
        by_domain=results.by_domain(summary),
        by_client=results.by_client(summary),
        summary=summary,
        bins=bins,
        malicious=(summary.get("attack") or {}).get("malicious"),
        success=look_up(summary, ("final", "backdoor_success")),
        unused={name: sum(row.get(f"dropped_{name}") or 0 for row in train) for name in ("late", "failed", "invalid")}
        | {name: sum(row.get(name) or 0 for row in train) for name in ("clients", "replies")},
        partition_clients=clients.image_counts(partition)[0],
        traffic={
            way: [row[f"bytes_{way}"] for row in train if row.get(f"bytes_{way}") is not None] for way in ("up", "down")
        },
        bars=bars,
        phases=clients.phases_of(bars, "total"),
        versions={**(summary.get("versions") or {}), **{key: summary.get(key) for key in ("git", "threads", "device")}},
        gallery=gallery or {"missing": NO_GALLERY},
        partition=results.partition_tables(partition),
        costs=results.costs(summary),
        shares=results.shares(summary),
        config=read_text(run_dir / CONFIG) if (run_dir / CONFIG).exists() else "",
    )
    write_tables(run_dir, summary)
    if draw is not False:
        _save([chart for part in charts.values() for chart in part if chart], run_dir / PLOTS, everything=bool(draw))
    return page


def _confidence(
    summary: Mapping[str, Any], bins: list[confidence.Bin], predictions: Predictions | None
) -> list[Chart | None]:
    final = summary.get("final") or {}
    diagram = confidence.reliability(
        "reliability", "Reliability diagram", bins, number(final.get("ece")), number(final.get("ece_floor"))
    )
    if predictions is None:
        return [diagram]
    risk = confidence.averaged_risk([predictions])
    curve = confidence.RiskCurve(Series(2, "this run"), risk, number(look_up(summary, ("final", "aurc"))))
    return [diagram, confidence.risk_coverage([curve]), confidence.confidence_gap(predictions)]


def _save(charts: list[Chart], folder: Path, *, everything: bool) -> None:
    chosen = [chart for chart in charts if everything or chart.name in _AT_ONCE]
    if chosen:
        folder.mkdir(exist_ok=True)
    for chart in chosen:
        chart.save(folder)


def write_tables(run_dir: Path, summary: Mapping[str, Any]) -> list[Path]:
    """Write the tables of a run's results beside its page, as Markdown, CSV and LaTeX files of the same name.

    The CSV has a line for each number of the summary's results, under the summary's names: `table` says whether it is
    of the last round ("final"), of the round best by validation ("best"), of a domain or a client (`name` says which),
    or of the run's bytes or seconds.

    Args:
        run_dir: where they go.
        summary: the object of `summary.json`.

    Returns:
        The files.
    """
    makers = (results.results, results.by_domain, results.by_client, results.costs, results.shares)
    tables = [table for maker in makers if (table := maker(summary)).rows]
    name = results.title(summary)
    sections = [f"## {table.caption}\n\n{table.as_markdown()}\n" for table in tables]
    parts: list[tuple[str, object, Mapping[str, Any]]] = [
        (state, "", summary.get(state) or {}) for state in ("final", "best", "bytes", "seconds")
    ]
    parts += [("domain", domain, row) for domain, row in (summary.get("per_domain") or {}).items()]
    parts += [("client", row.get("partition", ""), row) for row in summary.get("per_client") or []]
    lines = [
        (table, label, measure, value)
        for table, label, row in parts
        for measure, value in flatten(row)
        if isinstance(value, int | float) and not isinstance(value, bool) and measure != "partition"
    ]
    texts = {
        ".md": "\n".join([f"# {markdown(name)}\n", *sections]),
        ".csv": as_csv(("table", "name", "measure", "value"), lines),
        ".tex": "\n".join(table.as_latex(name, table.caption) for table in tables),
    }
    return write_files(run_dir / REPORT, texts)


def publish(run_dir: Path) -> "RenderableType":
    """Write the page of a run directory, and the charts that matter most to `plots/`.

    Args:
        run_dir: of a run that has its summary.

    Returns:
        The table of the final evaluation, for a terminal.
    """
    write_html(run_dir, draw=None)
    return results.final_table(read_summary(run_dir))

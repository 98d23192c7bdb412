"""A run's page: what came out, how it got there and who it is about, in one file that needs nothing else."""

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from fedbayes.report import gallery_view, page, posterior_charts, run_charts, run_tables
from fedbayes.report.confidence_charts import averaged_risk, confidence_gap, pooled_bins, reliability, risk_coverage
from fedbayes.report.exports import write_run_tables
from fedbayes.report.groups import look_up
from fedbayes.report.phases import phase_chart
from fedbayes.report.result_tables import (
    DOMAIN_HEAD,
    EACH_DOMAIN,
    RESULTS,
    cost_rows,
    domain_rows,
    final_table,
    number,
    result_rows,
    title,
)
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

_PICTURES = {
    "learning_curve": "Learning over rounds",
    "clients": "Clients and domains",
    "reliability": "Reliability",
    "partition": "Partition",
}


def write_html(run_dir: Path) -> Path:
    """Writes a run's page: tables, charts and pictures in one file that needs nothing else.

    Args:
        run_dir: a run's directory with its summary; what else lies there is shown as far as it is there.

    Returns:
        The path of `report.html`; its tables lie beside it, see `write_run_tables`.

    Raises:
        RunError: if one of the run's files is broken.
    """
    require_own(run_dir)
    summary = read_summary(run_dir)
    partition = read_json(run_dir / PARTITION)
    rows = read_rows(run_dir / METRICS)
    per_client = read_rows(run_dir / CLIENTS, ("round", "phase", "partition"))
    found = read_predictions(run_dir)
    tables = write_run_tables(run_dir, summary)
    links = ", ".join(
        f'<a href="{path.name}">{name}</a>' for path, name in zip(tables, ("Markdown", "CSV", "LaTeX"), strict=True)
    )
    results = page.table(RESULTS, *result_rows(summary), hide_caption=True)
    results += f"<p>These results and those of each domain and client as {links}.</p>"
    domains = domain_rows(summary)
    by_domain = page.table(EACH_DOMAIN, DOMAIN_HEAD, domains, sortable=True) if domains else ""
    time = phase_chart([(run_dir.name, summary.get("seconds") or {})]) + page.charts(run_charts.seconds_by_round(rows))
    costs = cost_rows(summary)
    cost_table = page.facts("Costs", ("what", "how much"), costs, hide_caption=True) if costs else ""
    text = page.document(
        title(summary),
        f"<p class=soft>{html.escape(run_dir.name)}</p>",
        [
            ("results", RESULTS, results),
            ("learning", "Learning over rounds", run_charts.learning(rows, per_client, summary)),
            ("posterior", "The posterior over rounds", posterior_charts.of_run(rows)),
            ("trade-offs", "Accuracy, calibration and bytes", run_charts.trade_offs(rows)),
            (
                "clients",
                "Clients and domains",
                run_tables.accuracy_map([found] if found else [], partition) + by_domain + run_tables.clients(summary),
            ),
            ("confidence", "Is its confidence right?", _confidence(found, summary)),
            ("gallery", "Gallery", gallery_view.show(read_json(run_dir / GALLERY), partition)),
            ("against", "What stood in its way", run_tables.circumstances(summary, rows)),
            ("partition", "Who holds what", run_tables.holdings(partition)),
            ("costs", "Costs", cost_table + run_tables.sent(rows)),
            ("time", "Time by phase", time),
            ("pictures", "Pictures for a paper", _pictures(run_dir)),
            ("made", "Made with", _versions(summary)),
            ("configuration", "Configuration", _configuration(run_dir)),
        ],
        scripts=("sorting.js",),
    )
    return page.write(run_dir / REPORT, text)


def _confidence(found: Predictions | None, summary: Mapping[str, Any]) -> str:
    """Reliability, risk and coverage, and how confident it was where right and where wrong."""
    final = summary.get("final") or {}
    bins = pooled_bins([final.get("reliability") or {}])
    curve = averaged_risk([found]) if found else []
    figures = (
        reliability("Reliability", bins, number(final.get("ece")), number(final.get("ece_floor"))),
        risk_coverage([("this run", 2, None, curve, number(look_up(summary, ("final", "aurc"))))]),
        confidence_gap(found),
    )
    return page.charts(*(f"<div>{figure}</div>" for figure in figures if figure))


def _pictures(run_dir: Path) -> str:
    """What lies in `plots/`, folded."""
    found = [(run_dir / PLOTS / f"{name}.png", heading) for name, heading in _PICTURES.items()]
    shown = [page.picture(path.read_bytes(), heading) for path, heading in found if path.exists()]
    return page.folded(f"{len(shown)} pictures, as in {PLOTS}/", "".join(shown)) if shown else ""


def _versions(summary: Mapping[str, Any]) -> str:
    made = {**(summary.get("versions") or {}), **{name: summary.get(name) for name in ("git", "threads", "device")}}
    rows = [[str(name), str(value)] for name, value in made.items() if value is not None]
    return page.facts("Versions and machine", ("what", "which"), rows, hide_caption=True) if rows else ""


def _configuration(run_dir: Path) -> str:
    if not (run_dir / CONFIG).exists():
        return ""
    text = html.escape(read_text(run_dir / CONFIG))
    return page.folded(CONFIG, f"<pre tabindex=0>{text}</pre>")


def publish(run_dir: Path) -> RenderableType:
    """Draw the pictures and write the page of a run directory.

    Args:
        run_dir: of a run that has its summary.

    Returns:
        The table of the final evaluation, for a terminal.
    """
    from fedbayes.report.plots import draw  # matplotlib takes a second to load

    draw(run_dir)
    write_html(run_dir)
    return final_table(read_summary(run_dir))

"""A run's page: what came out, how it got there and who it is about, in one file that needs nothing else."""

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedbayes.tracking import gallery_view, page, run_charts, run_tables
from fedbayes.tracking.phases import phase_chart
from fedbayes.tracking.predictions import read_predictions
from fedbayes.tracking.result_tables import cost_rows, domain_rows, result_rows, title
from fedbayes.tracking.run_dir import (
    CLIENTS,
    CONFIG,
    GALLERY,
    METRICS,
    PARTITION,
    PLOTS,
    REPORT,
    SUMMARY,
    read_json,
    read_rows,
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
        The path of `report.html`.

    Raises:
        RunError: if one of the run's files is broken.
    """
    summary = read_json(run_dir / SUMMARY)
    partition = read_json(run_dir / PARTITION)
    rows = read_rows(run_dir / METRICS)
    per_client = read_rows(run_dir / CLIENTS, ("round", "phase", "partition"))
    found = read_predictions(run_dir)
    results = page.table("Results on the test images", *result_rows(summary), hide_caption=True)
    domains = domain_rows(summary)
    by_domain = page.table("Each domain", ["domain", "images", "accuracy", "NLL (nats)"], domains) if domains else ""
    confidence = page.charts(
        *(
            f"<div>{figure}</div>"
            for figure in (
                run_charts.reliability(summary),
                run_charts.risk_coverage(found, summary),
                run_charts.confidence_gap(found),
            )
            if figure
        )
    )
    time = phase_chart([(run_dir.name, summary.get("seconds") or {})]) + page.charts(run_charts.seconds_by_round(rows))
    costs = cost_rows(summary)
    cost_table = page.table("Costs", ["what", "how much"], costs, hide_caption=True) if costs else ""
    text = page.document(
        title(summary),
        f"<p class=soft>{html.escape(run_dir.name)}</p>",
        [
            ("results", "Results on the test images", results),
            ("learning", "Learning over rounds", run_charts.learning(rows, per_client, summary)),
            ("posterior", "The posterior over rounds", run_charts.posterior(rows)),
            (
                "clients",
                "Clients and domains",
                run_tables.accuracy_map(found, partition) + by_domain + run_tables.clients(summary),
            ),
            ("confidence", "Is its confidence right?", confidence),
            ("gallery", "Gallery", gallery_view.show(read_json(run_dir / GALLERY))),
            ("against", "What stood in its way", run_tables.circumstances(summary, rows)),
            ("partition", "Who holds what", run_tables.holdings(partition)),
            ("costs", "Costs", cost_table + run_tables.sent(rows)),
            ("time", "Time by phase", time),
            ("pictures", "Pictures for a paper", _pictures(run_dir)),
            ("made", "Made with", _versions(summary)),
            ("configuration", "Configuration", _configuration(run_dir)),
        ],
    )
    return page.write(run_dir / REPORT, text)


def _pictures(run_dir: Path) -> str:
    """What lies in `plots/`, folded."""
    found = [(run_dir / PLOTS / f"{name}.png", heading) for name, heading in _PICTURES.items()]
    shown = [page.picture(path.read_bytes(), heading) for path, heading in found if path.exists()]
    return page.folded(f"{len(shown)} pictures, as in {PLOTS}/", "".join(shown)) if shown else ""


def _versions(summary: Mapping[str, Any]) -> str:
    made = {**(summary.get("versions") or {}), **{name: summary.get(name) for name in ("git", "threads", "device")}}
    rows = [[str(name), str(value)] for name, value in made.items() if value is not None]
    return page.table("Versions and machine", ["what", "which"], rows, hide_caption=True) if rows else ""


def _configuration(run_dir: Path) -> str:
    if not (run_dir / CONFIG).exists():
        return ""
    text = html.escape((run_dir / CONFIG).read_text(encoding="utf-8"))
    return page.folded(CONFIG, f"<pre tabindex=0>{text}</pre>")

"""Where the time of runs went."""

from collections.abc import Mapping, Sequence

from fedbayes.report import page
from fedbayes.report.result_tables import PHASES
from fedbayes.report.svg import Chart, swatch


def phase_chart(bars: Sequence[tuple[str, Mapping[str, float]]], what: str = "") -> str:
    """Seconds by phase, as stacked bars and as a table.

    Args:
        bars: a name and the seconds of each phase, and `total`.
        what: added to the chart's title.

    Returns:
        HTML; nothing where no run was timed.
    """
    timed = [(name, _with_other(seconds)) for name, seconds in bars if seconds]
    if not timed:
        return ""
    phases = [phase for phase in (*PHASES, "other") if any(phase in seconds for _, seconds in timed)]
    longest = max(sum(seconds.get(phase, 0.0) for phase in phases) for _, seconds in timed)
    title = "Seconds by phase" + (f", {what}" if what else "")
    several = len(timed) > 1
    x_names = [(place, name.split(" ")[0] if several else "") for place, (name, _) in enumerate(timed)]
    chart = Chart(
        title,
        "number of the group" if several else "",
        "seconds",
        (-0.6, len(timed) - 0.4),
        (0.0, longest * 1.05 or 1.0),
        x_names=x_names,
    )
    for place, (name, seconds) in enumerate(timed):
        low = 0.0
        for series, phase in enumerate(phases):
            value = seconds.get(phase, 0.0)
            chart.bar((place - 0.38, place + 0.38), (low, low + value), series + 1, f"{name}: {phase} {value:.1f} s")
            low += value
    alt = "Stacked bars of seconds; the table below holds the same numbers."
    head = ["group" if several else "run", *phases, "total"]
    rows = [
        [name, *(f"{seconds[phase]:,.1f}" if phase in seconds else "–" for phase in phases), _total(seconds)]
        for name, seconds in timed
    ]
    legend = page.legend([(swatch(series + 1), phase) for series, phase in enumerate(phases)])
    return page.charts(chart.figure(alt), f"<div>{legend}{page.table('Seconds by phase', head, rows)}</div>")


def _with_other(seconds: Mapping[str, float]) -> dict[str, float]:
    found = {phase: seconds[phase] for phase in PHASES if seconds.get(phase) is not None}
    total = seconds.get("total")
    if total is None:
        return found
    return {**found, "other": max(0.0, total - sum(found.values())), "total": total}


def _total(seconds: Mapping[str, float]) -> str:
    return f"{seconds['total']:,.1f}" if "total" in seconds else "–"

"""The page that `fedbayes-report` makes of many runs: one table to sort and filter, and charts of every group."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedbayes.report import results
from fedbayes.report.chart import Chart, Series
from fedbayes.report.comparison import Comparison
from fedbayes.report.figures import clients, confidence, learning
from fedbayes.report.figures.scatter import scatter
from fedbayes.report.groups import Group
from fedbayes.report.measures import ON_VALIDATION, Measure, known
from fedbayes.report.spread import Spread, as_text, look_up, spread
from fedbayes.report.tables import Cell, Table, heat_table, write_page
from fedbayes.storage.predictions import Predictions, read_predictions
from fedbayes.storage.run_dir import METRICS, PARTITION, read_json, read_rows

_DIAGNOSTICS = (
    Measure("KL in the last round of training (nats)", "kl", ("train", "kl"), digits=1),
    Measure("prompt uncertainty on test (nats)", "prompt_uncertainty", ("state", "prompt_uncertainty"), digits=4),
    Measure("mixing ratio on test", "mixing_ratio", ("state", "mixing_ratio")),
    Measure("mixing kept by averaging", "mixing_kept", ("state", "mixing_kept")),
    Measure("effective components in training", "effective_components", ("state", "effective_components"), digits=2),
    Measure("bound saturation in training", "bound_saturation", ("state", "bound_saturation")),
)
_MOST_POINTS = 200
_MOST_DIAGRAMS = 12
"""Groups up to which their reliability diagrams stand open."""


def write_comparison(comparison: Comparison, path: Path) -> Path:
    """Write the page of a comparison.

    Returns:
        The path.
    """
    groups, names = comparison.groups, comparison.names()
    rows = [[read_rows(run / METRICS) for run, _ in group.runs] for group in groups]
    partitions = [[read_json(run / PARTITION) for run, _ in group.runs] for group in groups]
    predictions = [
        [predicted for run, _ in group.runs if not is_loser and (predicted := read_predictions(run))]
        for group, is_loser in zip(groups, comparison.losers, strict=True)
    ]
    seconds = zip(names, map(_seconds, groups), strict=True)
    bars = [(name, clients.with_other(phases)) for name, phases in seconds if phases]
    return write_page(
        path,
        "comparison.html.j2",
        comparison=comparison,
        stem=path.stem,
        title=f"Comparison of {sum(len(group.runs) for group in groups)} runs in {len(groups)} groups",
        names=names,
        legend=[Series(index, name, index) for index, name in enumerate(names)],
        headline=_numbered(comparison.table),
        differences=comparison.differences() if len(groups) > 1 else None,
        curves=learning.compared(rows, names),
        domains=_domains(comparison, names),
        maps=_maps(predictions, partitions, names),
        differ=any(len(set(map(_text, each))) > 1 for each in partitions),
        calibration=_calibration(comparison, names),
        risk=_risk(comparison, predictions, names),
        diagrams=_diagrams(comparison, names),
        most_diagrams=_MOST_DIAGRAMS,
        posterior=learning.posteriors(rows, names),
        posterior_table=_posterior_table(comparison, names),
        partitions=_partitions(groups, partitions),
        cost=_bytes_figure(comparison, names),
        time=clients.seconds_by_phase(bars, "Seconds by phase, mean over runs") if bars else None,
        bars=bars,
        phases=clients.phases_of(bars, "total"),
        runs=_runs(comparison),
    )


def _numbered(table: Table) -> Table:
    """The headline with a number before each row, and texts whose first stands out."""
    rows = [[Cell(str(index + 1), index + 1), *row] for index, row in enumerate(table.cells())]
    caption = (
        "Mean over runs ± standard error; the best mean of a column is bold where its difference to the second best is "
        "clear. The buttons in the head sort. Time is that of the whole run, its set-up included."
    )
    return Table(caption, ("no.", *table.head), rows, table.texts + 1, table.groups, (0, *table.better))


def _domains(comparison: Comparison, names: Sequence[str]) -> Table | None:
    """Accuracy of each group in each domain; nothing where no run says it."""
    columns, spreads = comparison.domains()
    means = [value.mean for row in spreads for value in row if value is not None]
    if not means:
        return None
    rows = [
        (name, [(as_text(value), None if value is None else value.mean) for value in row])
        for name, row in zip(names, spreads, strict=True)
    ]
    caption = (
        "Test accuracy in each domain after the last round, all clients' images together: mean over runs ± standard "
        f"error; weakest colour {min(means):.3f}, strongest {max(means):.3f}"
    )
    # Differences between methods are small beside the scale from 0 to 1. The weakest is a tenth of the strongest.
    low = min(means) - (max(means) - min(means)) / 9
    return heat_table(caption, ["group", *columns], rows, (low, max(means)), range(len(rows)))


def _maps(
    predictions: Sequence[Sequence[Predictions]],
    partitions: Sequence[Sequence[Mapping[str, Any]]],
    names: Sequence[str],
) -> list[tuple[int, Table | str]]:
    """The map of clients and domains of each group, with the group's number."""
    maps = [
        results.accuracy_map(runs, each[0], name)
        for runs, each, name in zip(predictions, partitions, names, strict=True)
    ]
    return [(index, table) for index, table in enumerate(maps) if table]


def _calibration(comparison: Comparison, names: Sequence[str]) -> list[Chart]:
    """Accuracy against ECE and NLL."""
    accuracy = comparison.of(comparison.state, "accuracy", "mean")
    charts = []
    for key, title, unit in (("ece", "Accuracy against ECE", "ECE"), ("nll", "Accuracy against NLL", "NLL (nats)")):
        other = comparison.of(comparison.state, key)
        is_logarithmic = key == "nll" and all(value is None or value.mean > 0 for value in other)
        note = "Upper left is better. Bars: ± standard error over runs. Numbers are those of the table."
        note += " The scale of the NLL is logarithmic." * is_logarithmic
        name = f"accuracy_{key}"
        charts.append(scatter(name, title, unit, other, accuracy, names, note, is_logarithmic=is_logarithmic))
    return [chart for chart in charts if chart]


def _risk(comparison: Comparison, predictions: Sequence[Sequence[Predictions]], names: Sequence[str]) -> Chart | None:
    return confidence.risk_coverage(
        [
            confidence.RiskCurve(
                Series(i, names[i], i),
                confidence.averaged_risk(predictions[i], _MOST_POINTS),
                as_text(group.spread("final", "aurc")),
            )
            for i, group in enumerate(comparison.groups)
        ]
    )


def _diagrams(comparison: Comparison, names: Sequence[str]) -> list[tuple[int, Chart, list[confidence.Bin]]]:
    """A reliability diagram of each group, with the group's number and its bins."""
    diagrams = []
    for index, group in enumerate(comparison.groups):
        if comparison.losers[index]:
            continue
        bins = confidence.pooled_bins(
            [(summary.get(comparison.state) or {}).get("reliability") or {} for _, summary in group.runs]
        )
        ece, floor = (as_text(group.spread(comparison.state, name)) for name in ("ece", "ece_floor"))
        title = f"Reliability: {names[index]}"
        chart = confidence.reliability(f"reliability_{index + 1}", title, bins, ece, floor, index)
        if chart:
            diagrams.append((index, chart, bins))
    return diagrams


def _posterior_table(comparison: Comparison, names: Sequence[str]) -> Table:
    """Where the posteriors ended; no rows where no group has one."""
    having = [i for i, group in enumerate(comparison.groups) if group.values("train", "kl")]
    measures = known(_DIAGNOSTICS, comparison.groups, comparison.state)
    rows = [
        [names[i], *(measure.text(measure.of(comparison.groups[i], comparison.state)) for measure in measures)]
        for i in having
    ]
    moment = "last round" if comparison.state == "final" else "round best by validation"
    caption = f"The posterior in the {moment}: mean over runs ± standard error"
    return Table(caption, ["group", *(measure.label for measure in measures)], rows, groups=having)


def _partitions(
    groups: Sequence[Group], partitions: Sequence[Sequence[Mapping[str, Any]]]
) -> list[tuple[str, list[Table | str], list[Mapping[str, Any]]]]:
    """Images of each client, once for each partition that the runs were on, with a line that says which runs."""
    shared: dict[str, tuple[Mapping[str, Any], list[tuple[str, str]]]] = {}
    for group, each in zip(groups, partitions, strict=True):
        for (run, summary), partition in zip(group.runs, each, strict=True):
            runs = shared.setdefault(_text(partition), (partition, []))[1]
            runs.append((run.name, str(summary.get("seed", "–"))))
    seeds = [{seed for _, seed in runs} for _, runs in shared.values()]
    is_by_seed = sum(map(len, seeds)) == len(set().union(*seeds))
    sections = []
    for partition, runs in shared.values():
        if len(shared) == 1:
            label = "All runs have the same partition."
        elif is_by_seed:
            label = f"Partition of seed {', '.join(sorted({seed for _, seed in runs}))} ({len(runs)} runs)"
        else:
            more = f" and {len(runs) - 4} more" if len(runs) > 4 else ""
            label = f"Partition of {', '.join(name for name, _ in runs[:4])}{more}"
        if tables := results.partition_tables(partition):
            sections.append((label, tables, clients.image_counts(partition)[0]))
    return sections


def _text(partition: Mapping[str, Any]) -> str:
    return json.dumps(partition, sort_keys=True)


def _bytes_figure(comparison: Comparison, names: Sequence[str]) -> Chart | None:
    """Accuracy against all bytes of a run; methods that send nothing stand at the left edge."""
    sizes = [_bytes(group) for group in comparison.groups]
    least = min((value.mean for value in sizes if value is not None and value.mean > 0), default=None)
    if least is None:
        return None
    silent = [index for index, value in enumerate(sizes) if value is not None and value.mean <= 0]
    moved = [Spread(least / 3, None, 1) if index in silent else value for index, value in enumerate(sizes)]
    note = "Both ways and all clients together, on a logarithmic scale. Upper left is better."
    if silent:
        note += f" At the left edge, sending nothing: {', '.join(names[index] for index in silent)}."
    accuracy = comparison.of(comparison.state, "accuracy", "mean")
    title = "Accuracy against bytes sent"
    return scatter("accuracy_bytes", title, "bytes", moved, accuracy, names, note, is_logarithmic=True)


def _bytes(group: Group) -> Spread | None:
    ways = [(look_up(summary, ("bytes", "up")), look_up(summary, ("bytes", "down"))) for _, summary in group.runs]
    return spread([up + down for up, down in ways if up is not None and down is not None])


def _seconds(group: Group) -> dict[str, float]:
    """Seconds by phase, mean over runs."""
    values = {phase: group.spread("seconds", phase) for phase in ("total", *clients.PHASES)}
    return {phase: value.mean for phase, value in values.items() if value is not None}


def _runs(comparison: Comparison) -> Table:
    """Every run's own numbers, from which the others are made."""
    rows, groups = [], []
    for index, group in enumerate(comparison.groups):
        for run, summary in group.runs:
            cells: list[str | Cell] = [run.name, str(index + 1), str(summary.get("seed", "–"))]
            for measure in comparison.measures:
                is_hidden = comparison.losers[index] and measure not in ON_VALIDATION
                value = None if is_hidden else look_up(summary, measure.place(comparison.state))
                cells.append(Cell(measure.text(None if value is None else Spread(value, None, 1)), value))
            rows.append(cells)
            groups.append(index)
    head = ("run", "group", "seed", *(measure.label for measure in comparison.measures))
    better = (0, 0, 0, *(measure.better for measure in comparison.measures))
    return Table("Each run as its summary.json has it", head, rows, groups=groups, better=better)

"""Pictures of a run, drawn from the files of its directory alone, so a finished run can be drawn again.

Nothing touches pyplot or its global state: a simulation may run inside a notebook that has figures of its own.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedbayes.report import canvas
from fedbayes.report.curves import LEARNING, middle, series
from fedbayes.report.partition_counts import dealt
from fedbayes.storage import files
from fedbayes.storage.run_dir import (
    CLIENTS,
    METRICS,
    PARTITION,
    PLOTS,
    read_json,
    read_rows,
    read_summary,
    require_own,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_ERROR_BARS = 200


def draw(run_dir: Path) -> list[Path]:
    """Draws what the run's files allow.

    Args:
        run_dir: a run's directory; it may be unfinished.

    Returns:
        The pictures written to `plots/`: learning_curve, clients, reliability and partition, as far as there is data.

    Raises:
        RunError: if a file of the run is broken, or none of its own.
    """
    require_own(run_dir)
    summary = read_summary(run_dir)
    partition = read_json(run_dir / PARTITION)
    figures = {
        "learning_curve": _learning_curve(
            read_rows(run_dir / METRICS), read_rows(run_dir / CLIENTS, ("round", "phase", "partition")), summary
        ),
        "clients": _clients(summary, partition),
        "reliability": _reliability(summary),
        "partition": _partition(partition),
    }
    folder = run_dir / PLOTS
    written = []
    for name, figure in figures.items():
        if figure is not None:
            folder.mkdir(exist_ok=True)
            picture = io.BytesIO()
            figure.savefig(picture, format="png", dpi=130)
            files.replace(folder / f"{name}.png", picture.getvalue())
            written.append(folder / f"{name}.png")
    return written


def _subject(summary: Mapping[str, Any], *names: str) -> str:
    """What ran, for a picture's title."""
    parts = [str(summary[name]) for name in names or ("method", "data", "partition") if summary.get(name)]
    return f" ({', '.join(parts)})" if parts else ""


def _learning_curve(
    rows: Sequence[Mapping[str, Any]], clients: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]
) -> "Figure | None":
    """Train loss, validation accuracy and validation NLL over rounds, each with its own scale."""
    from matplotlib.ticker import MaxNLocator

    panels = [panel for panel in LEARNING if series(rows, panel[0], panel[1])]
    if not panels:
        return None
    figure = canvas.figure(3.7 * max(len(panels), 2), 3.2, f"Learning over rounds{_subject(summary)}")
    best = (summary.get("best") or {}).get("round")
    for axes, (phase, name, title, unit) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        colour = canvas.TRAIN if phase == "train" else canvas.VALIDATION
        line, band = series(rows, phase, name), middle(clients, phase, name)
        rounds = list(line)
        if len(band) > 1:
            shown, low, high = zip(*band, strict=True)
            axes.fill_between(shown, low, high, color=colour, alpha=0.14, linewidth=0, label="middle 80 % of clients")
        axes.plot(
            rounds,
            list(line.values()),
            color=colour,
            linewidth=1.8,
            marker="o",
            markersize=3 if len(rounds) <= 40 else 0,
        )
        if best is not None and phase == "validation":
            axes.axvline(best, color=canvas.MUTED, linestyle="--", linewidth=1, label=f"best by validation ({best})")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7.5, frameon=False, loc="best")
        canvas.dress(axes, title, "round", unit)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
        if len(rounds) == 1:
            axes.set_xlim(rounds[0] - 0.5, rounds[0] + 0.5)
    return figure


def _clients(summary: Mapping[str, Any], partition: Mapping[str, Any]) -> "Figure | None":
    """Test accuracy of every client, sorted, beside that of every domain."""
    found = [row for row in summary.get("per_client") or [] if row.get("accuracy") is not None]
    domains = {k: v for k, v in (summary.get("per_domain") or {}).items() if v.get("accuracy") is not None}
    if not found:
        return None
    found.sort(key=lambda row: (-row["accuracy"], row["partition"]))
    accuracy = [row["accuracy"] for row in found]
    mean = sum(accuracy) / len(accuracy)
    figure = canvas.figure(11, 3.6, f"Test accuracy by client and by domain{_subject(summary)}")
    if domains:
        left, right = figure.subplots(1, 2, width_ratios=(2.2, 1))
    else:
        left, right = figure.subplots(), None
    places = list(range(len(found)))
    left.bar(places, accuracy, width=0.8 if len(found) <= canvas.MOST_TICKS else 1.0, color=canvas.COLOURS[1])
    if len(found) <= _MOST_ERROR_BARS and all(row.get("images") for row in found):
        errors = [(row["accuracy"] * (1 - row["accuracy"]) / row["images"]) ** 0.5 for row in found]
        left.errorbar(
            places,
            accuracy,
            errors,
            fmt="none",
            ecolor="#4A4A4A",
            elinewidth=0.9,
            label="± 1 s.e. for its number of images",
        )
    left.axhline(mean, color=canvas.VALIDATION, linestyle="--", linewidth=1.2, label=f"mean over clients {mean:.3f}")
    left.set_ylim(0, 1.0)
    left.set_xlim(-0.6, len(found) - 0.4)
    left.legend(fontsize=8, frameon=True, framealpha=0.85, edgecolor="none", loc="lower left", ncols=2)
    if len(found) <= canvas.MOST_TICKS:
        left.set_xticks(places, [str(row["partition"]) for row in found])
    canvas.dress(
        left,
        f"{len(found)} clients, best to worst",
        "client" if len(found) <= canvas.MOST_TICKS else "rank of client",
        "share of test images right",
    )
    if right is not None:
        _domains(right, domains, [str(name) for name in partition.get("domains") or domains])
    return figure


def _domains(axes: "Axes", domains: Mapping[str, Mapping[str, Any]], order: Sequence[str]) -> None:
    """A bar per domain, in the colours of the partition's picture."""
    names = sorted(domains, key=lambda name: order.index(name) if name in order else len(order))
    values = [domains[name]["accuracy"] for name in names]
    palette = canvas.palette(len(order))
    colours = [palette[order.index(name)] if name in order else canvas.MUTED for name in names]
    axes.barh(range(len(names)), values, color=colours, height=0.7)
    # The numbers stand outside, where no bar's colour can make them unreadable.
    for place, (name, value) in enumerate(zip(names, values, strict=True)):
        images = domains[name].get("images")
        text = f"{value:.3f}" + (f"  (n = {images:,})" if images else "")
        axes.text(1.02, place, text, va="center", ha="left", fontsize=8 if len(names) <= 12 else 6)
    axes.set_yticks(range(len(names)), [canvas.short(name) for name in names], parse_math=False)
    axes.set_ylim(max(len(names), 3) - 0.4, -0.6)
    axes.set_xlim(0, 1)
    canvas.dress(axes, f"{len(names)} domain{'s' if len(names) > 1 else ''}", "share of test images right", "")
    axes.grid(visible=False)
    axes.tick_params(axis="y", length=0)


def _reliability(summary: Mapping[str, Any]) -> "Figure | None":
    """Accuracy against confidence in bins, over the number of images in each."""
    final = summary.get("final") or {}
    bins = final.get("reliability") or {}
    counts = [count or 0 for count in bins.get("count") or []]
    if not sum(counts):
        return None
    number = len(counts)
    centres = [(index + 0.5) / number for index in range(number)]
    ece = final.get("ece")
    title = "Reliability of the final model" + (f": ECE {ece:.3f}" if ece is not None else "")
    figure = canvas.figure(5.2, 5.6, title)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    filled = [index for index, count in enumerate(counts) if count and bins["accuracy"][index] is not None]
    accuracy = [bins["accuracy"][index] for index in filled]
    confidence = [bins["confidence"][index] for index in filled]
    upper.plot([0, 1], [0, 1], color=canvas.MUTED, linestyle="--", linewidth=1.2, label="perfectly calibrated")
    upper.bar(
        [centres[index] for index in filled],
        accuracy,
        width=0.94 / number,
        color=canvas.COLOURS[1],
        label="accuracy in the bin",
    )
    errors = [(p * (1 - p) / counts[index]) ** 0.5 for p, index in zip(confidence, filled, strict=True)]
    upper.errorbar(
        confidence,
        accuracy,
        errors,
        fmt="o",
        color=canvas.VALIDATION,
        markersize=3.5,
        elinewidth=1,
        label="at the mean confidence, ± 1 s.e. if calibrated",
    )
    upper.set_xlim(0, 1)
    upper.set_ylim(0, 1)
    upper.legend(fontsize=8, frameon=False, loc="upper left")
    canvas.dress(upper, f"{sum(counts):,} test images of all clients pooled, {number} bins", "", "share right")
    lower.bar(centres, counts, width=0.94 / number, color=canvas.MUTED)
    canvas.dress(lower, "", "confidence (largest predicted probability)", "images")
    figure.align_ylabels([upper, lower])
    return figure


def _partition(partition: Mapping[str, Any]) -> "Figure | None":
    """Images per client, stacked by domain and by label."""
    clients, panels = dealt(partition)
    if not panels:
        return None
    scheme = partition.get("scheme")
    title = f"Images of each of the {len(clients)} clients" + (f" (partition: {scheme})" if scheme else "")
    figure = canvas.figure(11, 0.5 + 2.9 * len(panels), title)
    for axes, (what, names, table) in zip(figure.subplots(len(panels), 1, squeeze=False)[:, 0], panels, strict=True):
        _stack(axes, f"by {what}", names, table, [client.get("partition", 0) for client in clients])
    return figure


def _stack(
    axes: "Axes", title: str, names: Sequence[str], table: Sequence[Sequence[int]], clients: Sequence[int]
) -> None:
    """One bar per client; few names get a legend, many a scale of colours."""
    import numpy as np
    from matplotlib.cm import ScalarMappable
    from matplotlib.collections import PolyCollection
    from matplotlib.colors import BoundaryNorm, ListedColormap
    from matplotlib.patches import Patch

    colours = canvas.palette(len(names))
    half = 0.4 if len(table) <= canvas.MOST_TICKS else 0.5
    heights = np.array(table)
    top = heights.cumsum(1)
    client, kind = heights.nonzero()
    left, right = client - half, client + half
    low, high = (top - heights)[client, kind], top[client, kind]
    corners = [np.stack(corner, -1) for corner in ((left, low), (right, low), (right, high), (left, high))]
    # One collection: a hundred clients with a hundred labels as single bars take ten seconds to draw.
    bars = PolyCollection(list(np.stack(corners, 1)), facecolors=[colours[index] for index in kind], linewidths=0)
    axes.add_collection(bars)
    axes.set_ylim(0, 1.05 * int(top.max()))
    canvas.dress(axes, f"Images {title}", "client", "images")
    axes.set_xlim(-0.6, len(table) - 0.4)
    if len(table) <= canvas.MOST_TICKS:
        axes.set_xticks(range(len(table)), [str(client) for client in clients])
    if len(names) <= len(canvas.COLOURS):
        # A domain that is held out has a colour but no bar.
        shown = sorted(set(kind.tolist()))
        handles = [Patch(color=colours[index], label=canvas.short(names[index])) for index in shown]
        legend = axes.legend(
            handles=handles[::-1], fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5)
        )
        for text in legend.get_texts():
            text.set_parse_math(False)
        return
    norm = BoundaryNorm([index - 0.5 for index in range(len(names) + 1)], len(names))
    step = -(-len(names) // 10)
    ticks = list(range(0, len(names), step))
    bar = axes.figure.colorbar(ScalarMappable(norm, ListedColormap(colours)), ax=axes, pad=0.01, ticks=ticks)
    bar.ax.set_yticklabels([canvas.short(names[tick]) for tick in ticks], fontsize=8, parse_math=False)
    bar.ax.minorticks_off()

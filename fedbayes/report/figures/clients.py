"""Charts of clients: how well each does, which images it has, how its prompts lie, and where the time went."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedbayes.report.chart import WIDE, Chart, Series, padded
from fedbayes.report.style import COLOURS

PHASES = ("setup", "train", "evaluate", "aggregate")
"""The parts of `seconds` in a summary; what is left of `total` is shown as `other`."""
_MOST_BARS = 25  # that are drawn apart
_MOST_ERROR_BARS = 200
_MOST_RECTANGLES = 3000  # that a page holds as vectors

Counts = list[tuple[str, list[str], list[list[int]]]]
"""`domain` or `label`, its names, and for each client the images of each name."""


def accuracy_of_clients(summary: Mapping[str, Any]) -> Chart | None:
    """Draw the test accuracy of every client, best to worst; nothing where the summary has none."""
    rows = [row for row in summary.get("per_client") or [] if row.get("accuracy") is not None]
    if not rows:
        return None
    rows.sort(key=lambda row: (-row["accuracy"], row["partition"]))
    accuracy = [row["accuracy"] for row in rows]
    mean = sum(accuracy) / len(accuracy)
    few = len(rows) <= _MOST_BARS
    chart = Chart("clients", "Test accuracy of each client", "client" if few else "rank of client", "accuracy", WIDE)
    chart.axes.set(xlim=(-0.6, len(rows) - 0.4), ylim=(0, 1))
    half = 0.4 if few else 0.5
    for place, row in enumerate(rows):
        tip = f"client {row['partition']}: accuracy {row['accuracy']:.3f}, {row.get('images') or 0:,} images"
        chart.bar((place - half, place + half), (0, row["accuracy"]), Series(1), tip)
    notes = ["Best to worst."]
    if len(rows) <= _MOST_ERROR_BARS and all(row.get("images") for row in rows):
        errors = [(row["accuracy"] * (1 - row["accuracy"]) / row["images"]) ** 0.5 for row in rows]
        ends = [
            [a - e for a, e in zip(accuracy, errors, strict=True)],
            [a + e for a, e in zip(accuracy, errors, strict=True)],
        ]
        chart.axes.vlines(range(len(rows)), *ends, color="#5b6068", linewidth=0.9)
        notes.append("Bars: ± 1 standard error for the client's number of images.")
    chart.guide([-0.6, len(rows) - 0.4], [mean, mean])
    notes.append(f"Dashed: mean over clients, {mean:.3f}.")
    if few:
        chart.names([str(row["partition"]) for row in rows])
    chart.description = f"Bars of {len(rows)} clients, from {accuracy[0]:.3f} to {accuracy[-1]:.3f}; mean {mean:.3f}."
    chart.note = " ".join(notes)
    return chart


def accuracy_of_domains(summary: Mapping[str, Any], partition: Mapping[str, Any]) -> Chart | None:
    """Draw the test accuracy in every domain, in the colours of the partition's chart; nothing where there is none."""
    domains = {k: v for k, v in (summary.get("per_domain") or {}).items() if v.get("accuracy") is not None}
    if not domains:
        return None
    order = [str(name) for name in partition.get("domains") or domains]
    names = sorted(domains, key=lambda name: order.index(name) if name in order else len(order))
    chart = Chart("domains", "Test accuracy in each domain", "domain", "accuracy", WIDE)
    chart.axes.set(xlim=(-0.6, len(names) - 0.4), ylim=(0, 1))
    for place, name in enumerate(names):
        value, images = domains[name]["accuracy"], domains[name].get("images")
        entry = Series(order.index(name) if name in order else 7)
        tip = f"{name}: accuracy {value:.3f}" + (f", {images:,} images" if images else "")
        chart.bar((place - 0.35, place + 0.35), (0, value), entry, tip)
        if len(names) <= _MOST_BARS // 2:
            chart.axes.text(
                place, value + 0.01, f"{value:.3f}", ha="center", va="bottom", color="#1b1d21", fontsize=8.3
            )
    chart.names([_fitting(name, len(names)) for name in names])
    chart.description = "; ".join(f"{name} {domains[name]['accuracy']:.3f}" for name in names[:20])
    chart.note = "Images of all clients together, after the last round."
    return chart


def _fitting(name: str, count: int) -> str:
    """A name that fits below an axis among so many."""
    most = max(60 // max(count, 1), 3)
    return name if len(name) <= most else f"{name[: most - 1]}…"


def image_counts(partition: Mapping[str, Any]) -> tuple[list[Mapping[str, Any]], Counts]:
    """Return a partition's clients in their order, and their images by domain and by label, where anybody has any."""
    clients = sorted(partition.get("clients") or [], key=lambda client: client.get("partition", 0))
    tables = []
    for kind, key, all_names in (("domain", "domains", "domains"), ("label", "labels", "classes")):
        names = [str(name) for name in partition.get(all_names) or []]
        counts = [_counts(client.get(key), names) for client in clients]
        if any(map(any, counts)):
            tables.append((kind, names, counts))
    return clients, tables


def _counts(values: object, names: Sequence[str]) -> list[int]:
    """Images per name, from a list in the order of the names or from a mapping."""
    if isinstance(values, Mapping):
        return [int(values.get(name) or 0) for name in names]
    counts = [int(count or 0) for count in values] if isinstance(values, Sequence) else []
    return (counts + [0] * len(names))[: len(names)]


def partition_charts(partition: Mapping[str, Any]) -> list[Chart]:
    """Draw the images of each client, stacked by domain and by label."""
    clients, tables = image_counts(partition)
    return [_stack(kind, names, counts, clients) for kind, names, counts in tables]


def _stack(
    kind: str, names: Sequence[str], table: Sequence[Sequence[int]], clients: Sequence[Mapping[str, Any]]
) -> Chart:
    """Draw a bar per client; more names than colours get a scale of colours."""
    import matplotlib
    import numpy as np
    from matplotlib.collections import PolyCollection

    many = len(names) > len(COLOURS)
    scale = matplotlib.colormaps["viridis"]
    colours = [scale(i / (len(names) - 1)) if many else COLOURS[i] for i in range(len(names))]
    heights = np.array(table)
    top = heights.cumsum(1)
    half = 0.4 if len(table) <= _MOST_BARS else 0.5
    client, place = heights.nonzero()
    low, high = (top - heights)[client, place], top[client, place]
    corners = [
        np.stack(corner, -1)
        for corner in ((client - half, low), (client + half, low), (client + half, high), (client - half, high))
    ]
    chart = Chart(f"partition_by_{kind}", f"Images of each client by {kind}", "client", "images", WIDE)
    # One collection: a hundred clients with a hundred labels as single bars take ten seconds to draw.
    faces = [colours[index] for index in place]
    bars = PolyCollection(list(np.stack(corners, 1)), facecolors=faces, linewidths=0)
    bars.set_rasterized(len(faces) > _MOST_RECTANGLES)
    chart.axes.add_collection(bars)
    chart.axes.set(xlim=(-0.6, len(table) - 0.4), ylim=(0, top[:, -1].max() * 1.05))
    chart.names([str(client.get("partition", 0)) for client in clients])
    chart.description = f"Stacked bars of {len(table)} clients; the table beside it has the same numbers."
    if many:
        chart.note = f"Colours run from dark ({names[0]}) to light ({names[-1]})."
    else:
        chart.legend = [Series(index, names[index]) for index in sorted(set(place.tolist()))]
    return chart


def seconds_by_phase(bars: Sequence[tuple[str, Mapping[str, float]]], title: str = "Seconds by phase") -> Chart:
    """Draw seconds by phase as stacked bars."""
    phases = phases_of(bars)
    several = len(bars) > 1
    chart = Chart("seconds_by_phase", title, "number of the group" if several else "", "seconds")
    longest = max(sum(seconds.get(phase, 0.0) for phase in phases) for _, seconds in bars)
    chart.axes.set(xlim=(-0.6, len(bars) - 0.4), ylim=(0, longest * 1.05 or 1))
    chart.legend = [Series(index + 1, phase) for index, phase in enumerate(phases)]
    for place, (name, seconds) in enumerate(bars):
        low = 0.0
        for entry in chart.legend:
            value = seconds.get(entry.name, 0.0)
            chart.bar((place - 0.38, place + 0.38), (low, low + value), entry, f"{name}: {entry.name} {value:.1f} s")
            low += value
    chart.names([name.split(" ")[0] if several else "" for name, _ in bars])
    chart.description = "Stacked bars of seconds; the table beside it has the same numbers."
    return chart


def phases_of(bars: Sequence[tuple[str, Mapping[str, float]]], *more: str) -> list[str]:
    """Return the phases that any of some runs was timed in, `other` included, and more if they were."""
    return [phase for phase in (*PHASES, "other", *more) if any(phase in seconds for _, seconds in bars)]


def with_other(seconds: Mapping[str, float]) -> dict[str, float]:
    """Return the seconds of each phase, and what is left of the total as `other`."""
    phases = {phase: seconds[phase] for phase in PHASES if seconds.get(phase) is not None}
    total = seconds.get("total")
    return phases if total is None else {**phases, "other": max(0.0, total - sum(phases.values())), "total": total}


def prompt_codes(codes: Mapping[str, Any], partition: Mapping[str, Any]) -> Chart | None:
    """Draw a dot per image of a client in the plane of the two largest principal components of its prompt codes."""
    points, draws = codes.get("points") or [], codes.get("draws") or []
    names = [str(name) for name in codes.get("domains") or []]
    if not points:
        return None
    client = codes.get("partition")
    rows = [row for row in partition.get("clients") or [] if row.get("partition") == client]
    count = sum(int(row.get(split) or 0) for row in rows for split in ("train", "validation", "test"))
    part = f", {len(points)} of {count:,} images" if count > len(points) else ""
    labels = [
        f"{name} component, {explained:.0%} of the variance"
        for name, explained in zip(("first", "second"), codes.get("explained") or [0.0, 0.0], strict=True)
    ]
    chart = Chart("prompt_codes", f"Prompt codes of client {client}{part}", labels[0], labels[1], (480, 380))
    chart.axes.set(
        xlim=padded([row[0] for row in (*points, *draws)]), ylim=padded([row[1] for row in (*points, *draws)])
    )
    chart.legend = [Series(domain, names[domain]) for domain in sorted({int(row[2]) for row in points})]
    for rows, dot in ((draws, 1.6), (points, 4.5)):
        for entry in chart.legend:
            if chosen := [row for row in rows if int(row[2]) == entry.place]:
                chart.dots([row[0] for row in chosen], [row[1] for row in chosen], entry, [entry.name], dot)
    chart.description = (
        f"{len(points)} images of {len(chart.legend)} domains by their prompt codes, in two principal components."
    )
    chart.note = str(codes.get("what") or "")
    return chart

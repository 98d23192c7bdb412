"""Charts of one run: how it learnt, what its posterior did, and whether its confidence is what it says."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedbayes.tracking import page
from fedbayes.tracking.curves import Rows, curve_chart, series
from fedbayes.tracking.groups import Spread, look_up
from fedbayes.tracking.predictions import Predictions
from fedbayes.tracking.result_tables import number
from fedbayes.tracking.svg import Chart, padded

_LEARNING = (
    ("train", "loss", "Train loss", "nats per image", 4),
    ("validation", "accuracy", "Validation accuracy", "share right, mean over clients", 1),
    ("validation", "nll", "Validation NLL", "nats per image", 1),
)
_MOST_POINTS = 400


def learning(rows: Rows, clients: Rows, summary: Mapping[str, Any]) -> str:
    """Train loss, validation accuracy and validation NLL over rounds, with the middle of the clients."""
    import numpy as np

    best = look_up(summary, ("best", "round"))
    figures = []
    for phase, name, title, unit, colour in _LEARNING:
        line = series(rows, phase, name)
        if not line:
            continue
        spreads: dict[int, list[float]] = {}
        for row in clients:
            if row.get("phase") == phase and isinstance(row.get(name), int | float) and row.get("round") in line:
                spreads.setdefault(row["round"], []).append(row[name])
        band = [(at, *np.quantile(values, (0.1, 0.9)).tolist()) for at, values in sorted(spreads.items())]
        shown = [*line.values(), *(end for _, *ends in band for end in ends)]
        chart = Chart(title, "round", unit, (min(line), max(line)), padded(shown), whole_x=True)
        chart.band(band, colour)
        notes = ["Band: the middle 80 % of the clients."] if len(band) > 1 else []
        if best is not None and phase == "validation":
            chart.guide([(best, min(shown)), (best, max(shown))])
            notes.append(f"Dashed: best by validation, round {best:.0f}.")
        chart.line(list(line.items()), colour, f"{title}: {number(line[max(line)])} at the end")
        (first, start), (last, end) = min(line.items()), max(line.items())
        alt = f"A line from {number(start)} in round {first} to {number(end)} in round {last}."
        figures.append(chart.figure(alt, " ".join(notes)))
    return page.charts(*figures)


def posterior(rows: Rows) -> str:
    """What the posterior over prompts did over rounds; nothing for a method without one."""

    def lines(*wanted: tuple[str, str, str, int]) -> list[tuple[str, int, int | None, Mapping[int, Spread]]]:
        return [
            (label, colour, None, {at: Spread(value, None, 1) for at, value in series(rows, phase, name).items()})
            for phase, name, label, colour in wanted
        ]

    if not series(rows, "train", "kl"):
        return ""
    paid = list(series(rows, "train", "log_classes").values())
    worth = (
        f" Dashed: log of the number of classes, {number(paid[-1])}, all that a label can pay for it." if paid else ""
    )
    figures = [
        curve_chart(
            "KL to the prior, in training",
            "nats per image",
            lines(("train", "kl", "KL", 6)),
            guide=paid[-1] if paid else None,
            note=f"How far the codes of images are from the prior.{worth}",
        ),
        curve_chart(
            "Effective components",
            "components",
            lines(("train", "effective_components", "effective components", 5)),
            note="How many of the K + 1 components of the bound matter; 1: semi-implicit in name only.",
        ),
        curve_chart(
            "Bound saturation",
            "share of log(K + 1)",
            lines(("train", "bound_saturation", "saturation", 9)),
            guide=0.8,
            note="Above 0.8 (dashed) the bound is limited by K.",
        ),
        curve_chart(
            "Mixing ratio",
            "share of the code's variance",
            lines(
                ("train", "mixing_ratio_received", "as received by clients", 1),
                ("train", "mixing_ratio_sent", "as sent by clients", 4),
                ("validation", "mixing_ratio", "on validation", 2),
            ),
            note="Share of the code's variance that comes from the mixing; near 0: collapsed.",
        ),
    ]
    return page.charts(*figures)


def reliability(summary: Mapping[str, Any]) -> str:
    """Accuracy against confidence in bins; nothing where there is no bin with an image."""
    final = summary.get("final") or {}
    bins = final.get("reliability") or {}
    counts = [count or 0 for count in bins.get("count") or []]
    if not sum(counts):
        return ""
    size = len(counts)
    chart = Chart("Reliability", "confidence", "share right", (0.0, 1.0), (0.0, 1.0), size=(480, 340))
    filled = [index for index, count in enumerate(counts) if count and bins["accuracy"][index] is not None]
    for index in filled:
        right, sure = bins["accuracy"][index], bins["confidence"][index]
        name = f"{counts[index]} images: confidence {sure:.3f}, right {right:.3f}"
        chart.bar(((index + 0.04) / size, (index + 0.96) / size), (0.0, right), 1, name)
    chart.guide([(0, 0), (1, 1)])
    for index in filled:
        right, sure = bins["accuracy"][index], bins["confidence"][index]
        error = (sure * (1 - sure) / counts[index]) ** 0.5
        name = f"confidence {sure:.3f}, right {right:.3f} ± {error:.3f} if calibrated"
        chart.point(sure, right, 4, name, errors=(None, error), radius=3)
    ece, floor = number(final.get("ece")), number(final.get("ece_floor"))
    alt = (
        f"Share right in {size} bins of confidence against the diagonal of perfect calibration; ECE {ece}, "
        f"{floor} if perfectly calibrated."
    )
    note = f"Dashed: perfect calibration. Dots: ± 1 standard error if calibrated. ECE {ece} ({floor} if calibrated)."
    table = page.table(
        "Reliability in bins of confidence",
        ["bin", "images", "mean confidence", "share right"],
        [
            [
                f"{i / size:.2f}–{(i + 1) / size:.2f}",
                f"{counts[i]:,}",
                number(bins["confidence"][i]),
                number(bins["accuracy"][i]),
            ]
            for i in filled
        ],
    )
    return chart.figure(alt, note) + page.folded("The bins as a table", table)


def risk_coverage(found: Predictions | None, summary: Mapping[str, Any]) -> str:
    """Error rate against the share of images answered, most confident first."""
    import numpy as np

    if found is None:
        return ""
    coverage, risk = found.risk_coverage()
    kept = np.unique(np.linspace(0, len(risk) - 1, min(len(risk), _MOST_POINTS)).round().astype(int))
    aurc = number(look_up(summary, ("final", "aurc")))
    ends = (0.0, max(float(risk[len(risk) // 20 :].max()) * 1.1, 0.02))
    chart = Chart("Risk and coverage", "share of images answered", "error rate", (0.0, 1.0), ends, size=(480, 340))
    chart.guide([(0, float(risk[-1])), (1, float(risk[-1]))])
    chart.line([(float(coverage[i]), min(float(risk[i]), ends[1])) for i in kept], 2, f"AURC {aurc}")
    half = float(risk[max(len(risk) // 2 - 1, 0)])
    note = f"Error rate where only the most confident images are answered. Dashed: all answered. AURC {aurc}."
    return chart.figure(f"Error rate {half:.3f} on the most confident half, {risk[-1]:.3f} on all; AURC {aurc}.", note)


def confidence_gap(found: Predictions | None) -> str:
    """How confident it was where right and where wrong, as shares of the images."""
    import numpy as np

    if found is None:
        return ""
    edges = np.linspace(0, 1, 16)
    shares = {}
    for name, mine in (("right", found.right), ("wrong", ~found.right)):
        shares[name] = np.histogram(found.confidence[mine], edges)[0] / max(int(mine.sum()), 1)
    top = max(float(share.max()) for share in shares.values())
    chart = Chart("Confidence, right and wrong", "confidence", "share", (0.0, 1.0), (0.0, top * 1.08), size=(480, 340))
    for offset, series_number, (name, share) in (
        (0.0, 2, ("right", shares["right"])),
        (0.5, 4, ("wrong", shares["wrong"])),
    ):
        for left, right, value in zip(edges[:-1], edges[1:], share, strict=True):
            start = left + (right - left) * (0.04 + offset * 0.92)
            text = f"{name}: {value:.3f} between {left:.2f} and {right:.2f}"
            chart.bar((start, start + (right - left) * 0.44), (0.0, float(value)), series_number, text)
    count = int((~found.right).sum())
    note = (
        f"Green: share of the {int(found.right.sum()):,} images that were right; red: of the {count:,} that were wrong."
    )
    return chart.figure("Two histograms of confidence, of images that were right and of those that were wrong.", note)


def by_round(rows: Rows) -> Sequence[tuple[str, int, Mapping[int, float]]]:
    """Seconds of each phase by round."""
    phases = list(dict.fromkeys(str(row["phase"]) for row in rows if row.get("phase")))
    return [(phase, index, series(rows, phase, "seconds")) for index, phase in enumerate(phases)]


def seconds_by_round(rows: Rows) -> str:
    """A line for the training and each evaluation."""
    lines: list[tuple[str, int, int | None, Mapping[int, Spread]]] = [
        (phase, index + 1, None, {at: Spread(value, None, 1) for at, value in line.items()})
        for phase, index, line in by_round(rows)
        if line
    ]
    return curve_chart("Seconds by round", "seconds", lines) if lines else ""

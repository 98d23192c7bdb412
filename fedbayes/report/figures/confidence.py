"""Charts of confidence, of a run or of several: whether it is calibrated, and what it is good for."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fedbayes.report.chart import SMALL, SQUARE, Chart, Series
from fedbayes.report.spread import Spread, spread
from fedbayes.storage.predictions import Predictions

_MOST_POINTS = 400
_CORRECT, _WRONG = Series(2, "correct"), Series(4, "wrong")


class Bin(NamedTuple):
    """A bin of a reliability diagram: its ends, images, and their mean confidence and accuracy (0 without images)."""

    low: float
    high: float
    images: int
    confidence: float
    accuracy: float


class RiskCurve(NamedTuple):
    """A line of a risk-coverage chart: its series, error rates by coverage, and AURC as it is shown."""

    series: Series
    points: Sequence[tuple[float, Spread]]
    aurc: str


def pooled_bins(diagrams: Sequence[Mapping[str, Any]]) -> list[Bin]:
    """Return the bins of the reliability diagrams of several runs, images of all runs together."""
    columns = [[diagram.get(name) or [] for name in Bin._fields[2:]] for diagram in map(_renamed, diagrams)]
    rows = [
        [(n or 0, sure or 0.0, right or 0.0) for n, sure, right in zip(*column, strict=True)]
        for column in columns
        if column[0]
    ]
    bins = []
    for index, each in enumerate(zip(*rows, strict=True)):
        count = sum(images for images, *_ in each)
        confidence, accuracy = (sum(row[0] * row[at] for row in each) / (count or 1) for at in (1, 2))
        bins.append(Bin(index / len(rows[0]), (index + 1) / len(rows[0]), int(count), confidence, accuracy))
    return bins


def _renamed(diagram: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**diagram, "images": diagram.get("count")}


def reliability(
    name: str, title: str, bins: Sequence[Bin], ece: str, floor: str, group: int | None = None
) -> Chart | None:
    """Draw accuracy against confidence in bins; nothing where there is no image."""
    filled = [bin_ for bin_ in bins if bin_.images]
    if not filled:
        return None
    small = group is not None
    chart = Chart(name, title, "confidence", "accuracy", SMALL if small else SQUARE)
    chart.axes.set(xlim=(0, 1), ylim=(0, 1))
    if not small:
        _histogram(chart, filled)
    for bin_ in filled:
        room = (bin_.high - bin_.low) * 0.04
        tip = f"{bin_.images:,} images: confidence {bin_.confidence:.3f}, accuracy {bin_.accuracy:.3f}"
        chart.bar((bin_.low + room, bin_.high - room), (0, bin_.accuracy), Series(1), tip)
    chart.guide([0, 1], [0, 1])
    for bin_ in filled:
        error = (bin_.confidence * (1 - bin_.confidence) / bin_.images) ** 0.5
        tip = f"confidence {bin_.confidence:.3f}, accuracy {bin_.accuracy:.3f}, ± {error:.3f} if calibrated"
        chart.dot(bin_.confidence, bin_.accuracy, Series(4), tip, (0, error), size=3 if small else 4)
    chart.description = (
        f"Accuracy in {len(bins)} bins of confidence against the diagonal of perfect calibration; ECE {ece}, {floor} "
        "if perfectly calibrated."
    )
    chart.note = f"ECE {ece} ({floor} if calibrated)."
    if not small:
        chart.note = (
            "Dashed: perfect calibration. Dots: ± 1 standard error if calibrated. Below: images in each bin. "
            + chart.note
        )
    return chart


def _histogram(chart: Chart, bins: Sequence[Bin]) -> None:
    """Add the number of images in each bin below the diagram."""
    box = chart.axes.get_position()
    part = box.height * 0.22
    chart.axes.set_position((box.x0, box.y0 + part + 0.03, box.width, box.height - part - 0.03))
    chart.axes.set_xlabel("")
    chart.axes.tick_params(labelbottom=False)
    lower = chart.add_axes((box.x0, box.y0, box.width, part), "confidence", "images")
    lower.set(xlim=(0, 1), ylim=(0, max(bin_.images for bin_ in bins) * 1.05))
    lower.yaxis.get_major_locator().set_params(nbins=2)
    middles, width = [(bin_.low + bin_.high) / 2 for bin_ in bins], (bins[0].high - bins[0].low) * 0.92
    lower.bar(middles, [bin_.images for bin_ in bins], width=width, color="#5b6068")


def averaged_risk(runs: Sequence[Predictions], most: int = _MOST_POINTS) -> list[tuple[float, Spread]]:
    """Return coverages, and mean and standard error over runs of the error rate there, most confident images first."""
    import numpy as np

    risks = [run.risk_coverage()[1] for run in runs]
    if not risks:
        return []
    images = min(map(len, risks))
    curve = []
    for answered in np.unique(np.linspace(1, images, min(images, most)).round().astype(int)).tolist():
        coverage = answered / images
        value = spread([float(risk[max(round(coverage * len(risk)), 1) - 1]) for risk in risks])
        assert value is not None, "there is a run"
        curve.append((coverage, value))
    return curve


def risk_coverage(curves: Sequence[RiskCurve]) -> Chart | None:
    """Draw the error rate against the fraction of images answered; nothing where there is no curve."""
    curves = [curve for curve in curves if curve.points]
    if not curves:
        return None
    alone = len(curves) == 1
    # The first few images decide little and swing much.
    top = max(risk.mean for curve in curves for at, risk in curve.points if at > 0.05 or at == 1)
    chart = Chart("risk_coverage", "Risk-coverage curve", "coverage: fraction of images answered", "error rate", SQUARE)
    chart.axes.set(xlim=(0, 1), ylim=(0, max(top * 1.1, 0.02)))
    for curve in curves:
        ends = [
            (at, risk.mean - risk.error, risk.mean + risk.error) for at, risk in curve.points if risk.error is not None
        ]
        chart.band(ends, curve.series)
    for curve in curves:
        x, y = [at for at, _ in curve.points], [risk.mean for _, risk in curve.points]
        if alone:
            chart.guide([0, 1], [y[-1], y[-1]])
        chart.line(x, y, curve.series, f"{curve.series.name}: AURC {curve.aurc}")
    notes = ["Error rate where only the most confident images are answered, after the last round."]
    if alone:
        notes.append(f"Dashed: all answered. AURC {curves[0].aurc}.")
    if any(risk.error is not None for curve in curves for _, risk in curve.points):
        notes.append("Line: mean over runs; band: ± standard error.")
    chart.note = " ".join(notes)
    texts = [
        f"{curve.series.name}: {min(curve.points, key=lambda point: abs(point[0] - 0.5))[1].mean:.3f} on the most "
        f"confident half, {curve.points[-1][1].mean:.3f} on all; AURC {curve.aurc}"
        for curve in curves[:12]
    ]
    more = f"; and {len(curves) - 12} more" if len(curves) > 12 else ""
    chart.description = f"Error rate. {'; '.join(texts)}{more}."
    chart.legend = [] if alone else [curve.series for curve in curves]
    return chart


def confidence_gap(predictions: Predictions) -> Chart:
    """Draw how confident a model is where it is correct and where it is wrong, as fractions of the images."""
    import numpy as np

    edges = np.linspace(0, 1, 16)
    values = [predictions.confidence[predictions.right], predictions.confidence[~predictions.right]]
    fractions = [np.histogram(each, edges)[0] / max(len(each), 1) for each in values]
    title = "Confidence where correct and where wrong"
    chart = Chart("confidence_gap", title, "confidence", "fraction of images", SQUARE)
    chart.axes.set(xlim=(0, 1), ylim=(0, max(float(each.max()) for each in fractions) * 1.08))
    for entry, offset, each in zip((_CORRECT, _WRONG), (0.0, 0.5), fractions, strict=True):
        for low, high, value in zip(edges[:-1], edges[1:], each, strict=True):
            start = low + (high - low) * (0.04 + offset * 0.92)
            tip = f"{entry.name}: {value:.3f} between {low:.2f} and {high:.2f}"
            chart.bar((start, start + (high - low) * 0.44), (0, float(value)), entry, tip)
    chart.legend = [
        entry._replace(name=f"{entry.name}: {len(each):,} images")
        for entry, each in zip((_CORRECT, _WRONG), values, strict=True)
    ]
    chart.description = "Two histograms of confidence, of images classified correctly and of those classified wrongly."
    chart.note = "Each histogram is a fraction of its own images."
    return chart

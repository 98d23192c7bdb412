"""Charts of confidence, of one run or of several over seeds: whether it is right, and what it is good for."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedbayes.report import page
from fedbayes.report.groups import Spread, spread
from fedbayes.report.result_tables import number
from fedbayes.report.svg import Chart, swatch
from fedbayes.storage.predictions import Predictions

_MOST_POINTS = 400
_RIGHT, _WRONG = 2, 4


def pooled_bins(found: Sequence[Mapping[str, Any]]) -> list[tuple[int, float, float]]:
    """The bins of reliability diagrams of several runs, images of all runs together.

    Args:
        found: `reliability` of each run's result.

    Returns:
        Images, mean confidence and share right of each bin; the latter are 0 in an empty one.
    """
    bins = []
    for each in zip(*(_bins(one) for one in found if one.get("count")), strict=True):
        count = sum(images for images, *_ in each)
        sure, right = (sum(one[0] * one[at] for one in each) / (count or 1) for at in (1, 2))
        bins.append((count, sure, right))
    return bins


def _bins(found: Mapping[str, Any]) -> list[tuple[int, float, float]]:
    columns = (found.get(name) or [] for name in ("count", "confidence", "accuracy"))
    return [(int(count or 0), sure or 0.0, right or 0.0) for count, sure, right in zip(*columns, strict=True)]


def reliability(
    title: str, bins: Sequence[tuple[int, float, float]], ece: str, floor: str, *, small: bool = False, note: str = ""
) -> str:
    """Accuracy against confidence in bins, as a chart and as a table; nothing where there is no image.

    Args:
        title: of the chart.
        bins: of `pooled_bins`.
        ece: the expected calibration error, as it is shown.
        floor: what it were if calibration were perfect, as it is shown.
        small: whether it is one of many.
        note: plain text, more that a reader should know.
    """
    if not sum(count for count, *_ in bins):
        return ""
    width = len(bins)
    size = (300, 260) if small else (480, 340)
    chart = Chart(title, "confidence", "share right", (0.0, 1.0), (0.0, 1.0), size=size)
    filled = [(index, *one) for index, one in enumerate(bins) if one[0]]
    for index, count, sure, right in filled:
        name = f"{count:,} images: confidence {sure:.3f}, right {right:.3f}"
        chart.bar(((index + 0.04) / width, (index + 0.96) / width), (0.0, right), 1, name)
    chart.guide([(0, 0), (1, 1)])
    for _, count, sure, right in filled:
        error = (sure * (1 - sure) / count) ** 0.5
        name = f"confidence {sure:.3f}, right {right:.3f} ± {error:.3f} if calibrated"
        chart.point(sure, right, 4, name, errors=(None, error), radius=2 if small else 3)
    alt = (
        f"Share right in {width} bins of confidence against the diagonal of perfect calibration; ECE {ece}, "
        f"{floor} if perfectly calibrated."
    )
    known = f"ECE {ece} ({floor} if calibrated)."
    if not small:
        known = f"Dashed: perfect calibration. Dots: ± 1 standard error if calibrated. {known}"
    rows = [
        [f"{index / width:.2f}–{(index + 1) / width:.2f}", f"{count:,}", number(sure), number(right)]
        for index, count, sure, right in filled
    ]
    table = page.table(f"{title}: means in bins of confidence", ["bin", "images", "confidence", "right"], rows)
    return chart.figure(alt, " ".join(filter(None, (known, note)))) + page.folded("The bins as a table", table)


def averaged_risk(runs: Sequence[Predictions], most: int = _MOST_POINTS) -> list[tuple[float, Spread]]:
    """Mean and standard error over runs of the error rate at shares of the images answered, most confident first."""
    import numpy as np

    risks = [found.risk_coverage()[1] for found in runs]
    if not risks:
        return []
    images = min(len(risk) for risk in risks)
    curve = []
    for kept in np.unique(np.linspace(1, images, min(images, most)).round().astype(int)).tolist():
        coverage = kept / images
        found = spread([float(risk[max(round(coverage * len(risk)), 1) - 1]) for risk in risks])
        assert found is not None, "there is a run"
        curve.append((coverage, found))
    return curve


def risk_coverage(curves: Sequence[tuple[str, int, int | None, Sequence[tuple[float, Spread]], str]]) -> str:
    """Error rate against the share of images answered, most confident first; nothing where there is no curve.

    Args:
        curves: name, series, group (None for a run alone), curve of `averaged_risk` and AURC as it is shown, of each.
    """
    curves = [curve for curve in curves if curve[3]]
    if not curves:
        return ""
    alone = len(curves) == 1
    # The first few images decide little and swing much.
    top = max(found.mean for *_, line, _ in curves for coverage, found in line if coverage > 0.05 or coverage == 1)
    ends = (0.0, max(top * 1.1, 0.02))
    chart = Chart("Risk and coverage", "share of images answered", "error rate", (0.0, 1.0), ends, size=(480, 340))
    for _, series, group, line, _ in curves:
        sure = [(at, found.mean, found.error) for at, found in line if found.error is not None]
        band = [(at, _inside(mean - error, ends), _inside(mean + error, ends)) for at, mean, error in sure]
        chart.band(band, series, group)
    for name, series, group, line, aurc in curves:
        if alone:
            chart.guide([(0, line[-1][1].mean), (1, line[-1][1].mean)])
        points = [(at, _inside(found.mean, ends)) for at, found in line]
        chart.line(points, series, f"{name}: AURC {aurc}", group)
    note = "Error rate where only the most confident images are answered, after the last round."
    if alone:
        note += f" Dashed: all answered. AURC {curves[0][4]}."
    if any(found.error is not None for *_, line, _ in curves for _, found in line):
        note += " Line: mean over seeds; band: ± standard error."
    said = "; ".join(
        f"{name}: {_at_half(line):.3f} on the most confident half, {line[-1][1].mean:.3f} on all; AURC {aurc}"
        for name, _, _, line, aurc in curves[:12]
    )
    more = f"; and {len(curves) - 12} more" if len(curves) > 12 else ""
    return chart.figure(f"Error rate. {said}{more}.", note)


def _inside(value: float, ends: tuple[float, float]) -> float:
    return min(max(value, ends[0]), ends[1])


def _at_half(line: Sequence[tuple[float, Spread]]) -> float:
    return min(line, key=lambda point: abs(point[0] - 0.5))[1].mean


def confidence_gap(found: Predictions | None) -> str:
    """How confident it was where right and where wrong, as shares of the images."""
    import numpy as np

    if found is None:
        return ""
    edges = np.linspace(0, 1, 16)
    kinds = [
        ("right", _RIGHT, 0.0, found.confidence[found.right]),
        ("wrong", _WRONG, 0.5, found.confidence[~found.right]),
    ]
    shares = [np.histogram(values, edges)[0] / max(len(values), 1) for *_, values in kinds]
    top = max(float(share.max()) for share in shares)
    chart = Chart("Confidence, right and wrong", "confidence", "share", (0.0, 1.0), (0.0, top * 1.08), size=(480, 340))
    for (name, series, offset, _), share in zip(kinds, shares, strict=True):
        for left, right, value in zip(edges[:-1], edges[1:], share, strict=True):
            start = left + (right - left) * (0.04 + offset * 0.92)
            text = f"{name}: {value:.3f} between {left:.2f} and {right:.2f}"
            chart.bar((start, start + (right - left) * 0.44), (0.0, float(value)), series, text)
    names = [(swatch(series), f"{name}: {len(values):,} images") for name, series, _, values in kinds]
    alt = "Two histograms of confidence, of images that were right and of those that were wrong."
    return chart.figure(alt, "Each as shares of its own images.", page.legend(names))

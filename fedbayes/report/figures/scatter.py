"""Charts of a comparison: a dot for each group of runs."""

from collections.abc import Sequence

from fedbayes.report.chart import SQUARE, Chart, Series, padded
from fedbayes.report.spread import Spread


def scatter(
    name: str,
    title: str,
    unit: str,
    across: Sequence[Spread | None],
    accuracy: Sequence[Spread | None],
    names: Sequence[str],
    note: str,
    *,
    is_logarithmic: bool = False,
) -> Chart | None:
    """Draw test accuracy against another number, a dot for each group; nothing where no group has both."""
    dots = [(i, x, y) for i, (x, y) in enumerate(zip(across, accuracy, strict=True)) if x is not None and y is not None]
    if not dots:
        return None
    chart = Chart(name, title, unit, "test accuracy, mean over clients", SQUARE)
    means = [x.mean for _, x, _ in dots]
    if is_logarithmic:
        chart.logarithmic(min(means) / 1.25, max(means) * 1.4)
    else:
        chart.axes.set_xlim(padded([end for _, x, _ in dots for end in _ends(x)]))
    chart.axes.set_ylim(padded([end for *_, y in dots for end in _ends(y)]))
    for index, x, y in dots:
        entry = Series(index, names[index], index)
        chart.dot(
            x.mean, y.mean, entry, f"{entry.name}: accuracy {y.text()}, {unit} {x.text()}", (x.error or 0, y.error or 0)
        )
    height = chart.axes.get_ylim()[1] - chart.axes.get_ylim()[0]
    for index, x, y in dots:
        chart.label(x.mean, y.mean, str(index + 1), Series(index, "", index), below=_is_crowded(index, dots, height))
    top = max(dots, key=lambda dot: dot[2].mean)
    chart.description = (
        f"A dot for each of {len(dots)} groups. The highest accuracy has {names[top[0]]}: {top[2].text()}, {unit} "
        f"{top[1].text()}."
    )
    chart.note = note
    return chart


def _ends(value: Spread) -> tuple[float, float]:
    return value.mean - (value.error or 0), value.mean + (value.error or 0)


def _is_crowded(index: int, dots: Sequence[tuple[int, Spread, Spread]], height: float) -> bool:
    """Whether a dot's label goes below it, since another stands right above."""
    (y,) = (value.mean for other, _, value in dots if other == index)
    return any(0 < value.mean - y < 0.05 * height for other, _, value in dots if other != index)

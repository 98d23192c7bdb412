"""A chart: matplotlib axes whose drawing a page embeds as SVG, and `plots/` has as PNG and PDF.

In a page, colours follow the style sheet (light or dark), letters grow where the page is narrow, marks have tooltips,
and those of a comparison can be filtered by their group. Nothing touches pyplot or its global state: a simulation may
run inside a notebook that has figures of its own.
"""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, final

from fedbayes.report.style import COLOURS, LETTERS, SOFT, style
from fedbayes.report.svg import Mark, embedded
from fedbayes.storage import files
from fedbayes.text import visible

WIDE, SQUARE, SMALL = (480, 300), (480, 340), (300, 260)
"""Sizes of charts in pixels of a page; `page.css` knows the two widths."""
_DASHES = ("-", (0, (7, 3)), (0, (2, 3)), (0, (9, 3, 2, 3)))
_LEFT, _RIGHT, _TOP, _BOTTOM = 68, 16, 12, 46  # pixels around the axes: room for letters that a narrow page enlarges
MOST_NAMES = 16  # below an axis
_DPI, _COLUMNS = 130, 3  # of a PNG, and of a legend in a file


class Series(NamedTuple):
    """A line, a kind of bars or a group of runs: its place among the colours, its name, and its group if it has one."""

    place: int
    name: str = ""
    group: int | None = None

    @property
    def colour(self) -> str:
        """One of ten."""
        return COLOURS[self.place % len(COLOURS)]

    @property
    def dashes(self) -> Any:
        """More than ten series differ by dashes, too."""
        return _DASHES[self.place // len(COLOURS) % len(_DASHES)]


def short(value: float) -> str:
    """Return a tick's label, as in `0.25`, `20k` or `3e-5`."""
    if value and abs(value) < 1e-3:
        return f"{value:.0e}".replace("e-0", "e-")
    power = min(int(math.log10(abs(value)) // 3), 4) if abs(value) >= 1e4 else 0
    return f"{value / 1000**power:g}{('', 'k', 'M', 'G', 'T')[power]}"


def _short(value: float, _: Any = None) -> str:
    return short(value)


def padded(values: Sequence[float]) -> tuple[float, float]:
    """Return a range that holds some numbers with room around them."""
    low, high = min(values), max(values)
    room = max((high - low) * 0.06, 1e-9, abs(high) * 1e-3)
    return low - room, high + room


@final
class Chart:
    """Axes to draw on.

    Args:
        name: of its files, and in the page of what belongs to it; unique within a page.
        title: says what is shown.
        x: label of the horizontal axis.
        y: label of the vertical axis.
        size: width and height in pixels.

    Attributes:
        axes: of matplotlib.
        description: what it shows, for those who cannot see it.
        note: plain text, what a reader should know.
        legend: series to name beside it.
    """

    def __init__(self, name: str, title: str, x: str, y: str, size: tuple[int, int] = WIDE) -> None:
        from matplotlib.figure import Figure

        self.name, self.title, self.size = name, visible(title), size
        self.description = self.note = ""
        self.legend: list[Series] = []
        self._marks: dict[str, Mark] = {}
        width, height = size
        with style():
            self.figure = Figure(figsize=(width / 100, height / 100), facecolor="none")
            box = (_LEFT / width, _BOTTOM / height, 1 - (_LEFT + _RIGHT) / width, 1 - (_TOP + _BOTTOM) / height)
            self.axes = self.add_axes(box, x, y)

    def add_axes(self, box: tuple[float, float, float, float], x: str, y: str) -> Any:
        """Add axes at left, bottom, width and height as fractions of the figure, and return them."""
        from matplotlib.ticker import MaxNLocator

        (width, height), (left, bottom, across, up) = self.size, box
        with style():
            axes = self.figure.add_axes(box, facecolor="none", xlabel=x, ylabel=y)
        # Labels stand at the edges of the figure, where larger letters of ticks do not reach them.
        axes.yaxis.set_label_coords((14 / width - left) / across, 0.5)
        axes.xaxis.set_label_coords(0.5, (22 / height - bottom) / up)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
            axis.set_major_formatter(_short)
        return axes

    def whole_numbers(self) -> None:
        """Show only whole numbers on the horizontal axis."""
        self.axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)

    def logarithmic(self, low: float, high: float) -> None:
        """Let the horizontal axis be logarithmic, from low to high."""
        from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

        axis, is_narrow = self.axes.xaxis, high < 5 * low
        self.axes.set_xscale("log")
        self.axes.set_xlim(low, high)
        axis.set_major_locator(
            MaxNLocator(6) if is_narrow else LogLocator(subs=(1,) if high > 100 * low else (1, 2, 5))
        )
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(_short)

    def names(self, names: Sequence[str]) -> None:
        """Write names below the places 0, 1, 2 of the horizontal axis, as many as fit."""
        step = -(-len(names) // MOST_NAMES) or 1
        self.axes.set_xticks(range(0, len(names), step), [*map(visible, names[::step])], parse_math=False)

    def line(self, x: Sequence[float], y: Sequence[float], series: Series, tip: str) -> None:
        """Draw a line; a single point becomes a dot."""
        marker = "o" if len(x) == 1 else ""
        (line,) = self.axes.plot(
            x, y, color=series.colour, linestyle=series.dashes, marker=marker, markersize=5, linewidth=1.4
        )
        self.mark(line, series, tip)

    def band(self, points: Sequence[tuple[float, float, float]], series: Series) -> None:
        """Shade the area between a lower and an upper line, from `(x, low, high)`."""
        if len(points) > 1:
            x, low, high = zip(*points, strict=True)
            self.mark(self.axes.fill_between(x, low, high, color=series.colour, alpha=0.16, linewidth=0), series)

    def dot(
        self, x: float, y: float, series: Series, tip: str, errors: tuple[float, float] = (0, 0), size: float = 5
    ) -> None:
        """Draw a dot, with bars of plus and minus `errors` along x and y."""
        for error, across, up in ((errors[0], 1, 0), (errors[1], 0, 1)):
            if error:
                ends = [(x - across * error, x + across * error), (y - up * error, y + up * error)]
                self.mark(self.axes.plot(*ends, color=series.colour, linewidth=0.9)[0], series)
        self.mark(self.axes.plot([x], [y], "o", color=series.colour, markersize=size)[0], series, tip)

    def dots(
        self, x: Sequence[float], y: Sequence[float], series: Series, tips: Sequence[str] = (), size: float = 3.5
    ) -> None:
        """Draw many dots as one mark, with a tooltip for each."""
        self.mark(self.axes.plot(x, y, "o", color=series.colour, markersize=size, markeredgewidth=0)[0], series, *tips)

    def bar(self, x: tuple[float, float], y: tuple[float, float], series: Series, tip: str) -> None:
        """Draw a rectangle from `x[0]` to `x[1]` and from `y[0]` to `y[1]`."""
        from matplotlib.patches import Rectangle

        bar = Rectangle((x[0], y[0]), x[1] - x[0], y[1] - y[0], color=series.colour, linewidth=0)
        self.mark(self.axes.add_patch(bar), series, tip)

    def guide(self, x: Sequence[float], y: Sequence[float]) -> None:
        """Draw a thin dashed line that is no data: a diagonal, a bound, a mean."""
        self.axes.plot(x, y, color=SOFT, linestyle=(0, (5, 4)), linewidth=0.8)

    def label(self, x: float, y: float, text: str, series: Series, *, below: bool = False) -> None:
        """Write a short text beside a point."""
        right = x <= sum(self.axes.get_xlim()) / 2 or self.axes.get_xscale() == "log"
        place: dict[str, Any] = {"xytext": (4 if right else -4, -9 if below else 3), "textcoords": "offset points"}
        place |= {"ha": "left" if right else "right", "fontsize": LETTERS, "fontweight": "bold", "parse_math": False}
        self.mark(self.axes.annotate(visible(text), (x, y), color=series.colour, **place), series)

    def mark(self, artist: Any, series: Series, *tips: str) -> None:
        """Let an artist have a tooltip, or several of them one each, and belong to its series' group."""
        if tips or series.group is not None:
            artist.set_gid(f"mark{len(self._marks)}")
            self._marks[artist.get_gid()] = (series.group, tips)

    def svg(self) -> str:
        """Return the chart as an element of a page."""
        kind = "chart narrow" if self.size == SMALL else "chart"
        return embedded(self._saved("svg").decode(), self.name, self.title, self.description, self._marks, kind)

    def save(self, folder: Path) -> list[Path]:
        """Write the chart with its title and legend as PNG and PDF, and return the paths. It is drawn on no more."""
        from matplotlib.lines import Line2D

        rows = -(-len(self.legend) // _COLUMNS)
        width, height = self.size
        below, total = 18 * rows, height + 18 * rows + 26
        boxes = [axes.get_position(original=True) for axes in self.figure.axes]
        self.figure.set_size_inches(width / 100, total / 100)
        for axes, box in zip(self.figure.axes, boxes, strict=True):
            axes.set_position((box.x0, (box.y0 * height + below) / total, box.width, box.height * height / total))
        handles = [
            Line2D([], [], color=series.colour, linestyle=series.dashes, linewidth=2.5, label=visible(series.name))
            for series in self.legend
        ]
        with style():
            self.figure.text(0.02, 1 - 8 / total, self.title, va="top", fontsize=10, fontweight="bold")
            if handles:
                self.figure.legend(handles=handles, loc="lower left", frameon=False, ncols=_COLUMNS, borderpad=0.1)
        paths = [folder / f"{self.name}.{form}" for form in ("png", "pdf")]
        for path in paths:
            files.replace(path, self._saved(path.suffix[1:]))
        return paths

    def _saved(self, form: str) -> bytes:
        output = io.BytesIO()
        metadata = {"svg": "Date", "pdf": "CreationDate", "png": "Software"}[form]  # equal charts have equal bytes
        options: dict[str, Any] = {"metadata": {metadata: None}, "dpi": _DPI if form == "png" else 72}
        if form != "svg":
            options["facecolor"] = "white"
        with style():
            self.figure.savefig(output, format=form, **options)
        return output.getvalue()

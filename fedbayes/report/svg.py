"""Charts as SVG inside a page: they follow its light or dark colours, scale with it and need no other file.

Colours come from the page's style sheet through the classes `s0` to `s9`; more than ten series also differ by dashes.
"""

import html
import math
import zlib
from collections.abc import Sequence
from typing import final

COLOURS = 10
_DASHES = ("", "7 3", "2 3", "9 3 2 3")
_LEFT, _RIGHT, _TOP, _BOTTOM = 68.0, 16.0, 12.0, 46.0  # room for letters that a narrow page draws larger
_MOST_NAMES = 16
_LETTER = 8.0  # about how wide one is

Points = Sequence[tuple[float, float]]


def style_class(series: int) -> str:
    """The class that gives a series its colour."""
    return f"s{series % COLOURS}"


def swatch(series: int) -> str:
    """A short piece of a series' line, to stand beside its name."""
    return (
        f'<svg class="swatch {style_class(series)}" viewBox="0 0 26 10" aria-hidden="true">'
        f'<line x1="1" y1="5" x2="25" y2="5"{_dashes(series)}/></svg>'
    )


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from low to high, 1, 2 or 5 times a power of ten apart."""
    if not high > low:
        return [low]
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten from low to high, with 2 and 5 times them where there are few, and even steps where all are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 2, 5)):
        found = [f * 10.0**p for p in powers for f in factors if low * (1 - 1e-9) <= f * 10.0**p <= high * (1 + 1e-9)]
        if len(found) >= 3:
            return found
    return ticks(low, high)


def padded(values: Sequence[float], least: float = 1e-9, share: float = 0.06) -> tuple[float, float]:
    """A range that holds some numbers with room around them."""
    low, high = min(values), max(values)
    room = max((high - low) * share, least, abs(high) * 1e-3)
    return low - room, high + room


def short(value: float) -> str:
    """A tick's label."""
    if value and abs(value) < 1e-3:
        return f"{value:.0e}".replace("e-0", "e-")
    if abs(value) >= 1e4:
        power = min(int(math.log10(abs(value)) // 3), 4)
        return f"{value / 1000**power:g}{('', 'k', 'M', 'G', 'T')[power]}"
    return f"{value:g}"


@final
class Chart:
    """Axes to draw on.

    Args:
        title: says what is shown; it is the chart's heading.
        x: label of the horizontal axis.
        y: label of the vertical axis.
        x_range: from left to right.
        y_range: from bottom to top.
        log_x: whether the horizontal axis is logarithmic.
        whole_x: whether only whole numbers stand on it.
        x_names: places on the horizontal axis that have names instead of numbers.
        size: width and height in pixels of a page; it shrinks with a narrow one, its letters less so. `page.css` knows
            the two widths in use, 480 and, for one of many, 300.
    """

    def __init__(
        self,
        title: str,
        x: str,
        y: str,
        x_range: tuple[float, float],
        y_range: tuple[float, float],
        *,
        log_x: bool = False,
        whole_x: bool = False,
        x_names: Sequence[tuple[float, str]] = (),
        size: tuple[int, int] = (480, 300),
    ) -> None:
        self._title, self._size, self._log = title, size, log_x
        self._x_range, self._y_range = _wide(x_range), _wide(y_range)
        self._parts: list[str] = []
        self._labels: list[tuple[float, float, int, str, str]] = []
        width, height = size
        right, bottom = width - _RIGHT, height - _BOTTOM
        for value in ticks(*self._y_range):
            at = self._y(value)
            self._parts.append(f'<line class="grid" x1="{_LEFT}" y1="{at:.1f}" x2="{right}" y2="{at:.1f}"/>')
            self._parts.append(f'<text x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{short(value)}</text>')
        found = log_ticks(*self._x_range) if log_x else ticks(*self._x_range)
        named = list(x_names[:: math.ceil(len(x_names) / _MOST_NAMES) or 1])
        named = named or [(value, short(value)) for value in found if not whole_x or value == round(value)]
        for value, name in named:
            text = html.escape(name)
            self._parts.append(f'<text x="{self._x(value):.1f}" y="{bottom + 17}" text-anchor="middle">{text}</text>')
        self._parts.append(f'<line class="axis" x1="{_LEFT}" y1="{bottom}" x2="{right}" y2="{bottom}"/>')
        middle = (_TOP + bottom) / 2
        self._parts.append(
            f'<text class="name" x="{(_LEFT + right) / 2}" y="{height - 8}" text-anchor="middle">'
            f"{html.escape(x)}</text>"
            f'<text class="name" transform="translate(14 {middle}) rotate(-90)" text-anchor="middle">'
            f"{html.escape(y)}</text>"
        )

    def line(self, points: Points, series: int, name: str, group: int | None = None, css: str = "") -> None:
        """A line through some points; a single point becomes a dot."""
        if not points:
            return
        path = " ".join(f"{self._x(x):.1f},{self._y(y):.1f}" for x, y in points)
        title = f"<title>{html.escape(name)}</title>"
        body = f'<polyline points="{path}"{_dashes(series)}>{title}</polyline>'
        if len(points) == 1:
            body += f'<circle r="3.5" cx="{self._x(points[0][0]):.1f}" cy="{self._y(points[0][1]):.1f}"/>'
        self._parts.append(f'<g class="line {style_class(series)} {css}"{_group(group)}>{body}</g>')

    def band(self, points: Sequence[tuple[float, float, float]], series: int, group: int | None = None) -> None:
        """The area between a lower and an upper line, from `(x, low, high)`."""
        if len(points) < 2:
            return
        edge = [(x, high) for x, _, high in points] + [(x, low) for x, low, _ in reversed(points)]
        path = " ".join(f"{self._x(x):.1f},{self._y(y):.1f}" for x, y in edge)
        self._parts.append(f'<polygon class="band {style_class(series)}"{_group(group)} points="{path}"/>')

    def point(
        self,
        x: float,
        y: float,
        series: int,
        name: str,
        group: int | None = None,
        *,
        errors: tuple[float | None, float | None] = (None, None),
        radius: float = 4.5,
        label: str = "",
    ) -> None:
        """A dot, with bars of plus and minus `errors` along x and y, and a label beside it."""
        at = (self._x(x), self._y(y))
        bars = ""
        for horizontal, error in zip((True, False), errors, strict=True):
            if error:
                low, high = self._x_range if horizontal else self._y_range  # a bar ends where the chart does
                ends = [min(max((x if horizontal else y) + sign * error, low), high) for sign in (-1, 1)]
                places = [(end, y) if horizontal else (x, end) for end in ends]
                (x1, y1), (x2, y2) = ((self._x(one), self._y(other)) for one, other in places)
                bars += f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'
        self._parts.append(
            f'<g class="dot {style_class(series)}"{_group(group)}>{bars}<circle r="{radius}" cx="{at[0]:.1f}" '
            f'cy="{at[1]:.1f}"><title>{html.escape(name)}</title></circle></g>'
        )
        if label:
            gap = radius + 1
            right = at[0] + gap + _LETTER * len(label) < self._size[0]
            anchor = "" if right else ' text-anchor="end"'
            place = at[0] + gap if right else at[0] - gap
            self._labels.append((place, at[1] - gap, series, label, _group(group) + anchor))

    def bar(self, x: tuple[float, float], y: tuple[float, float], series: int, name: str) -> None:
        """A rectangle from `x[0]` to `x[1]` and from `y[0]` to `y[1]`."""
        left, right = self._x(x[0]), self._x(x[1])
        low, high = self._y(y[0]), self._y(y[1])
        self._parts.append(
            f'<rect class="bar {style_class(series)}" x="{left:.1f}" y="{high:.1f}" width="{right - left:.1f}" '
            f'height="{max(low - high, 0):.1f}"><title>{html.escape(name)}</title></rect>'
        )

    def guide(self, points: Points) -> None:
        """A thin dashed line that is no data: a diagonal, a bound, a mean."""
        path = " ".join(f"{self._x(x):.1f},{self._y(y):.1f}" for x, y in points)
        self._parts.append(f'<polyline class="guide" points="{path}"/>')

    def figure(self, alt: str, note: str = "", below: str = "") -> str:
        """The chart as a figure of a page.

        Args:
            alt: what it shows, for those who cannot see it.
            note: HTML below the title, what a reader should know.
            below: HTML below the chart.
        """
        mark = f"chart-{zlib.crc32(self._title.encode()):x}"  # titles differ within a page
        width, height = self._size
        labels = "".join(
            f'<text class="label {style_class(series)}" x="{x:.1f}" y="{y:.1f}"{group}>{html.escape(text)}</text>'
            for x, y, series, text, group in _apart(self._labels)
        )
        more = f"<br><small>{note}</small>" if note else ""
        css = "chart" if width > 300 else "chart narrow"
        return (
            f'<figure><figcaption id="{mark}">{html.escape(self._title)}{more}</figcaption>'
            f'<svg class="{css}" viewBox="0 0 {width} {height}" role="img" aria-labelledby="{mark} {mark}d">'
            f'<desc id="{mark}d">{html.escape(alt)}</desc>{"".join(self._parts)}{labels}</svg>{below}</figure>'
        )

    def _x(self, value: float) -> float:
        low, high = self._x_range
        if self._log:
            low, high, value = math.log10(low), math.log10(high), math.log10(max(value, low))
        return _LEFT + (value - low) / (high - low) * (self._size[0] - _LEFT - _RIGHT)

    def _y(self, value: float) -> float:
        low, high = self._y_range
        value = min(max(value, low - (high - low)), high + (high - low))
        return self._size[1] - _BOTTOM - (value - low) / (high - low) * (self._size[1] - _TOP - _BOTTOM)


def _wide(given: tuple[float, float]) -> tuple[float, float]:
    """A range that is not empty."""
    low, high = given
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _dashes(series: int) -> str:
    dashes = _DASHES[series // COLOURS % len(_DASHES)]
    return f' stroke-dasharray="{dashes}"' if dashes else ""


def _group(group: int | None) -> str:
    return "" if group is None else f' data-group="{group}"'


def _apart(
    labels: Sequence[tuple[float, float, int, str, str]], gap: float = 14.0
) -> list[tuple[float, float, int, str, str]]:
    """Labels moved down until none stands on another."""
    placed: list[tuple[float, float, int, str, str]] = []
    for x, y, *rest in sorted(labels, key=lambda label: label[1]):
        while any(abs(x - other[0]) < 20 and abs(y - other[1]) < gap for other in placed):
            y += 2
        placed.append((x, y, *rest))  # type: ignore[arg-type]  # what was unpacked above
    return placed

"""What the posterior over prompts did over rounds, in one run or in several over seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from fedbayes.inference.thresholds import SATURATED
from fedbayes.report import page
from fedbayes.report.curves import Rows, averaged, curve_chart, series


@final
@dataclass(frozen=True)
class _Panel:
    """A chart.

    Attributes:
        title: of the chart.
        unit: label of the vertical axis.
        lines: phase and name of each number in `metrics.jsonl`, its label and its series.
        note: plain text, what a reader should know.
        guide: a level to mark.
    """

    title: str
    unit: str
    lines: tuple[tuple[str, str, str, int], ...]
    note: str
    guide: float | None = None


_KL = _Panel(
    "KL to the prior, in training",
    "nats per image",
    (("train", "kl", "KL", 6),),
    "How far the codes of images are from the prior.",
)
_OTHERS = (
    _Panel(
        "Effective components, in training",
        "components",
        (("train", "effective_components", "effective components", 5),),
        "How many of the K + 1 components of the bound matter; 1: semi-implicit in name only.",
    ),
    _Panel(
        "Bound saturation, in training",
        "share of log(K + 1)",
        (("train", "bound_saturation", "saturation", 9),),
        f"Above {SATURATED} (dashed) the bound is limited by K.",
        SATURATED,
    ),
    _Panel(
        "Mixing ratio",
        "share of the code's variance",
        (
            ("train", "mixing_ratio_received", "as received by clients", 1),
            ("train", "mixing_ratio_sent", "as sent by clients", 4),
            ("validation", "mixing_ratio", "on validation", 2),
        ),
        "Share of the code's variance that comes from the mixing; near 0: collapsed.",
    ),
)


def of_run(rows: Rows) -> str:
    """The charts of one run; nothing for a method without a posterior."""
    if not series(rows, "train", "kl"):
        return ""
    figures = []
    for panel in _panels([rows]):
        lines = [(label, colour, None, averaged([rows], phase, name)) for phase, name, label, colour in panel.lines]
        figures.append(curve_chart(panel.title, panel.unit, lines, guide=panel.guide, note=panel.note))
    return page.charts(*figures)


def of_groups(groups: Sequence[Sequence[Rows]], names: Sequence[str]) -> str:
    """The charts of several groups of runs, a line for each that has a posterior; nothing where none has.

    Args:
        groups: the rows of `metrics.jsonl` of each run, by group.
        names: of the groups.
    """
    having = [i for i, runs in enumerate(groups) if any(series(rows, "train", "kl") for rows in runs)]
    figures = []
    for panel in _panels([rows for i in having for rows in groups[i]]):
        for phase, name, label, _ in panel.lines:
            title = panel.title if len(panel.lines) == 1 else f"{panel.title}, {label}"
            lines = [(names[i], i, i, averaged(groups[i], phase, name)) for i in having]
            figures.append(curve_chart(title, panel.unit, lines, guide=panel.guide, note=panel.note))
    return page.charts(*figures)


def _panels(runs: Sequence[Rows]) -> tuple[_Panel, ...]:
    """The charts; the log of the number of classes is marked in the first where all runs share it."""
    paid = {round(value, 9) for rows in runs for value in series(rows, "train", "log_classes").values()}
    if len(paid) != 1:
        return (_KL, *_OTHERS)
    (worth,) = paid
    note = f"{_KL.note} Dashed: log of the number of classes, {worth:.3f}, all that a label can pay for it."
    return (_Panel(_KL.title, _KL.unit, _KL.lines, note, worth), *_OTHERS)

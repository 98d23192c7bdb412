"""What all pictures of a run share: the canvas, the look of axes, and colours that everybody can tell apart."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Paul Tol's "muted" set: told apart with every common colour blindness.
COLOURS = ("#332288", "#88CCEE", "#117733", "#DDCC77", "#CC6677", "#44AA99", "#882255", "#999933", "#AA4499", "#BBBBBB")
TRAIN, VALIDATION, MUTED = "#CC6677", "#332288", "#8A8A8A"
MOST_TICKS = 25  # clients that can be named one by one below an axis


def figure(width: float, height: float, title: str) -> "Figure":
    """An empty figure that lays itself out, on the Agg canvas."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(made)
    made.suptitle(title, fontsize=12, x=0.01, ha="left", fontweight="bold", parse_math=False)
    return made


def dress(axes: "Axes", title: str, x: str, y: str) -> None:
    """Title and labels, and a grid that stays behind the data."""
    axes.set_title(title, fontsize=10, loc="left", parse_math=False)
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#E4E4E4", linewidth=0.8)
    axes.set_axisbelow(True)


def palette(number: int) -> list[Any]:
    """Colours for so many names: distinct ones as long as they last, then a scale."""
    if number <= len(COLOURS):
        return list(COLOURS[:number])
    import matplotlib

    scale = matplotlib.colormaps["viridis"]
    return [scale(index / (number - 1)) for index in range(number)]


def short(name: str) -> str:
    """A name that fits beside an axis."""
    return name if len(name) <= 18 else f"{name[:17]}…"

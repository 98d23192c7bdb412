"""Colours, letters and grid of all charts, as settings of matplotlib that hold within a block."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

COLOURS = ("#332288", "#0077bb", "#117733", "#8a6d00", "#cc3311", "#00796e", "#882255", "#5a5a5a", "#a03c96", "#a85400")
"""Of series; with every common colour blindness they can be told apart. `page.css` has lighter ones for dark pages."""
INK, SOFT, LINE = "#1b1d21", "#5b6068", "#d4d7dc"
LETTERS = 8.3  # points
_STYLE: Any = {
    "text.color": INK,
    **dict.fromkeys(("axes.labelcolor", "xtick.color", "ytick.color"), SOFT),
    **dict.fromkeys(("font.size", "axes.labelsize", "xtick.labelsize", "ytick.labelsize"), LETTERS),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "axes.spines.left"), False),
    "axes.edgecolor": SOFT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "svg.fonttype": "none",  # letters stay letters, for screen readers and for style sheets
    "svg.hashsalt": "fedbayes",  # equal charts have equal bytes
    "text.parse_math": False,  # a name with a dollar sign is no formula
}


@contextmanager
def style() -> Iterator[None]:
    """Draw with our settings of matplotlib, which are the process's own again after the block."""
    import matplotlib

    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield

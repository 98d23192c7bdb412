"""Draws docs/headline.png, the picture of the README, from the tables in experiments/results.

python experiments/headline_figure.py
"""

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from results_page import HEADLINE, read

PICTURE = Path(__file__).parent.parent / "docs" / "headline.png"
SCORES = {"accuracy": "accuracy, mean over clients", "nll": "NLL (nats), lower is better"}
PROTOCOLS = {"digits_mixture": "styles mixed in each client", "digits_label_skew": "label skew"}


def draw() -> Figure:
    """Return accuracy and NLL of the methods of the headline under two protocols, with standard errors."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained", sharey=True)
    for axes, (score, label) in zip(panels, SCORES.items(), strict=True):
        for place, (name, title) in enumerate(PROTOCOLS.items()):
            table = read(name)[1].drop_duplicates("method").set_index("method").loc[list(HEADLINE)]
            heights = [row + 0.12 * (2 * place - 1) for row in range(len(table))]
            spread = table[f"{score}_se"].astype(float)
            axes.errorbar(table[score].astype(float), heights, xerr=spread, fmt="os"[place], capsize=2, label=title)
        axes.set_xlabel(label)
        axes.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(HEADLINE)), HEADLINE)
    panels[0].invert_yaxis()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    return figure


if __name__ == "__main__":
    draw().savefig(PICTURE, dpi=130, metadata={"Software": None})

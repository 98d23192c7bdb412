"""Draws docs/figures/overview.png: how an image gets its prompts, and what a semi-implicit posterior can be.

python experiments/overview_figure.py

The right half is a fit: `y = p[1] + p[0]^2 + noise` is observed, and both posteriors maximise the same bound.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor, nn

from fedbayes.inference.mixing import Pushforward
from fedbayes.inference.semi_implicit import SemiImplicitNormal

OUT = Path(__file__).parent.parent / "docs" / "figures" / "overview.png"
STEPS, SAMPLES = 1500, 1500
OBSERVED, NOISE = 1.0, 0.3
BLUE, ORANGE, GREY = "#2f6db3", "#d9822b", "#e9edf2"

BOXES = {
    "image": (0.1, 4.6, "image"),
    "below": (3.3, 4.6, "frozen blocks\nbelow"),
    "above": (6.5, 4.6, "frozen blocks\nabove"),
    "head": (9.7, 4.6, "head"),
    "feature": (0.1, 2.5, "feature z of\nthe ViT alone"),
    "generator": (3.3, 2.5, "generator"),
    "prompts": (6.5, 2.5, "prompts p\nof this image"),
    "noise": (3.3, 0.4, "noise ε"),
}
ARROWS = (
    *(("image", "below"), ("below", "above"), ("above", "head"), ("image", "feature"), ("feature", "generator")),
    *(("noise", "generator"), ("generator", "prompts"), ("prompts", "above")),
)
LEARNT = ("head", "generator")
WIDTH, HEIGHT = 2.5, 1.1


def draw_flow(axes: Axes) -> None:
    """Draw how an image gets its prompts; what clients learn together is in colour."""
    for name, (left, bottom, text) in BOXES.items():
        colour = BLUE if name in LEARNT else GREY
        box = FancyBboxPatch((left, bottom), WIDTH, HEIGHT, "round,pad=0.05", facecolor=colour, edgecolor="#8793a1")
        axes.add_patch(box)
        ink = "white" if name in LEARNT else "black"
        axes.text(left + WIDTH / 2, bottom + HEIGHT / 2, text, ha="center", va="center", color=ink, fontsize=9)
    for start, end in ARROWS:
        (x0, y0, _), (x1, y1, _) = BOXES[start], BOXES[end]
        if y0 == y1:
            ends = (x0 + WIDTH + 0.08, y0 + HEIGHT / 2), (x1 - 0.08, y1 + HEIGHT / 2)
        else:
            down = y0 > y1
            ends = (
                (x0 + WIDTH / 2, y0 - 0.08 if down else y0 + HEIGHT + 0.08),
                (x1 + WIDTH / 2, y1 + HEIGHT + 0.08 if down else y1 - 0.08),
            )
        axes.add_patch(FancyArrowPatch(*ends, arrowstyle="-|>", mutation_scale=11, color="#4b5563"))
    axes.text(6.6, 0.8, "clients send the blue parts\nand nothing else", fontsize=8.5, color=BLUE)
    axes.set(xlim=(0, 12.4), ylim=(0.1, 6), aspect="equal")
    axes.set_title("Every image gets its own prompts", fontsize=10, loc="left")
    axes.axis("off")


def log_joint(p: Tensor) -> Tensor:
    """`log p(y, p)` of the model."""
    prior = dist.Normal(0.0, 1.0).log_prob(p).sum(-1)
    return prior + dist.Normal(p[..., 1] + p[..., 0] ** 2, NOISE).log_prob(torch.tensor(OBSERVED))


def model() -> None:
    """Two unknowns, of which one curve is observed."""
    p = pyro.sample("p", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(p[..., 1] + p[..., 0] ** 2, NOISE), obs=torch.tensor(OBSERVED))


def samples(semi_implicit: bool) -> Tensor:
    """Fit a posterior and return samples `(SAMPLES, 2)`."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    net = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 2))

    def guide() -> dist.TorchDistribution:
        scale = pyro.param("scale", torch.full((2,), 0.5), constraint=dist.constraints.positive)
        if semi_implicit:
            pyro.module("net", net)
            posterior = SemiImplicitNormal(Pushforward(net, noise_dim=4), scale, 20)
        else:
            posterior = dist.Normal(pyro.param("loc", torch.zeros(2)), scale).to_event(1)
        pyro.sample("p", posterior)
        return posterior

    elbo = Trace_ELBO(num_particles=32, vectorize_particles=True, max_plate_nesting=0)
    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 0.02, "lrd": 0.05 ** (1 / STEPS)}), elbo)
    for _ in range(STEPS):
        svi.step()
    with torch.no_grad():
        return guide().sample((SAMPLES,))


def draw_posterior(axes: Axes, points: Tensor, colour: str, title: str) -> None:
    """Draw samples over the exact posterior's levels."""
    grid = torch.stack(torch.meshgrid(torch.linspace(-2.6, 2.6, 161), torch.linspace(-2.6, 1.8, 161), indexing="xy"))
    density = log_joint(grid.permute(1, 2, 0)).exp()
    density = density / density.max()
    axes.contour(*grid.numpy(), density.numpy(), levels=[0.05, 0.2, 0.4, 0.6, 0.8], colors="#6b7280", linewidths=0.8)
    axes.scatter(*points.numpy().T, s=2, color=colour, alpha=0.35, linewidths=0)
    axes.set(xlim=(-2.6, 2.6), ylim=(-2.6, 1.8), xticks=[], yticks=[])
    axes.set_title(title, fontsize=10, loc="left")


def main() -> None:
    """Fit, draw and write."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 2.9), width_ratios=(1.6, 1, 1), layout="constrained")
    draw_flow(axes[0])
    draw_posterior(axes[1], samples(False), ORANGE, "A Gaussian posterior")
    draw_posterior(axes[2], samples(True), BLUE, "A semi-implicit posterior")
    figure.savefig(OUT, dpi=130, metadata={"Software": None})


if __name__ == "__main__":
    main()

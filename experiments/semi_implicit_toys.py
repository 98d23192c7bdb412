r"""Semi-implicit inference with and without a reverse model, on three toy densities of the plane.

    OMP_NUM_THREADS=1 python experiments/semi_implicit_toys.py --out runs/toys

Every fit maximises `L_K = E[log p(z) - log h_K(z)]` for a kernel with a skip path, `z ~ N(eps + f(eps), scale^2 I)`,
the recipe of [1]. The targets are normalised, so the ELBO is minus the divergence KL(h || p), which is computed with
many components; sliced W2 stands beside the SIVI column of [1]. A second series of fits starts where the mixing may
collapse, and shows whether the diagnostic of `fedbayes.inference.diagnostics` tells those that do.

One JSON per fit in `--out`/fits: a second call makes only what is missing.

[1] Lim & Johansen, Particle Semi-Implicit Variational Inference, NeurIPS 2024 (arXiv 2407.00649).
"""

import argparse
import json
import math
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from toy_targets import TARGETS, Target, quasi_normal, sliced_wasserstein

from fedbayes.inference.bounds import lower_bound
from fedbayes.inference.diagnostics import has_collapsed, mixing_ratio, mixing_variances
from fedbayes.inference.mixing import Pushforward
from fedbayes.inference.reverse import GaussianReverse
from fedbayes.inference.semi_implicit import SemiImplicitNormal
from fedbayes.inference.thresholds import COLLAPSED
from fedbayes.report.spread import spread_text

COMPONENTS = (20_000, 40_000)  # of the mixture that stands for h; the second tells the bias of the first
POINTS = 2**12  # for the expectation in the KL
SAMPLES = 10_000  # for sliced W2
COLLAPSED_KL = 0.3  # nats, near the best single Gaussian's 0.4 on x_shaped


@dataclass(frozen=True)
class Recipe:
    """How to fit: the defaults are those of [1], but for narrower layers and a scale for each dimension.

    Attributes:
        num_extra: K.
        reverse: learn `tau(eps | z)` with it, by the same loss.
        skip: `psi = eps + f(eps)`, not `f(eps)`.
        scale: initial standard deviation of z given psi; one entry per dimension, or one for both.
        draws: of z, in every step.
        anneal: let the learning rates fall to zero along a cosine; otherwise they are constant.
        tau_rate: learning rate of tau's network.
    """

    num_extra: int = 50
    reverse: bool = False
    skip: bool = True
    noise_dim: int = 2
    width: int = 128
    scale: tuple[float, ...] = (0.5, 0.5)
    draws: int = 200
    steps: int = 15_000
    optimiser: str = "RMSprop"
    rate: float = 1e-4
    anneal: bool = False
    tau_rate: float = 1e-3
    tau_width: int = 64


def mlp(inputs: int, width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, width), nn.LeakyReLU(), nn.Linear(width, width), nn.LeakyReLU(), nn.Linear(width, outputs)
    )


class Posterior(nn.Module):
    """The trained parts, and the semi-implicit law that they make."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.f = mlp(recipe.noise_dim, recipe.width, 2)
        self.log_scale = nn.Parameter(torch.tensor(recipe.scale).log())
        self.tau = mlp(2, recipe.tau_width, GaussianReverse.outputs(recipe.noise_dim))
        for parameter in self.tau[-1].parameters():
            nn.init.zeros_(parameter)  # starts at tau = N(0, I), plain semi-implicit inference

    def psi(self, eps: Tensor) -> Tensor:
        """`eps + f(eps)`, or f alone."""
        return eps + self.f(eps) if self.recipe.skip else self.f(eps)

    def law(self) -> SemiImplicitNormal:
        """With the bound of the recipe."""
        mixing = Pushforward(self.psi, self.recipe.noise_dim)
        reverse = GaussianReverse(self.tau, self.recipe.noise_dim) if self.recipe.reverse else None
        scale, K = self.log_scale.exp(), self.recipe.num_extra
        return SemiImplicitNormal(mixing, scale, K, reverse=reverse, share_extra=True, validate_args=False)

    def log_density(self, z: Tensor, components: int) -> Tensor:
        """`log h(z)`, nats, by a mixture of quasi-random components."""
        mixing = Pushforward(self.psi, self.recipe.noise_dim, noise=quasi_normal(1))
        law = SemiImplicitNormal(mixing, self.log_scale.exp(), components, chunk=512, share_extra=True)
        return law.log_prob(z)


def fit(target: Target, recipe: Recipe, seed: int) -> Posterior:
    """Maximise L_K by stochastic gradients, tau's network included where there is one."""
    torch.manual_seed(seed)
    posterior = Posterior(recipe)
    groups = [
        {"params": [*posterior.f.parameters(), posterior.log_scale], "lr": recipe.rate},
        {"params": posterior.tau.parameters(), "lr": recipe.tau_rate},
    ]
    optimiser = getattr(torch.optim, recipe.optimiser)(groups)
    falling = recipe.anneal * math.pi / recipe.steps
    schedule = LambdaLR(optimiser, lambda step: 0.5 + 0.5 * math.cos(falling * step))
    for _ in range(recipe.steps):
        loss = -lower_bound(posterior.law(), target.log_density, recipe.draws).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return posterior


@torch.no_grad()
def evaluate(posterior: Posterior, target: Target) -> dict[str, Any]:
    """KL(h || p) in nats, sliced W2 and the diagnostics."""
    law, m = posterior.law(), posterior.recipe.noise_dim
    eps, noise = quasi_normal(0)(torch.Size((POINTS, m + 2))).split([m, 2], -1)
    z = posterior.psi(eps) + law.scale * noise
    kl, finer = ((posterior.log_density(z, n) - target.log_density(z)).mean().item() for n in COMPONENTS)
    samples = law.rsample((SAMPLES,))
    mixing, conditional = mixing_variances(posterior.psi(torch.randn(SAMPLES, m)), law.scale)
    return {
        "kl": kl,
        "kl_finer": finer,
        "sw2": sliced_wasserstein(samples, target.sample(SAMPLES)),
        "mixing_ratio": mixing_ratio(float(mixing), float(conditional)),
        "effective_components": law.mixture(samples).effective_components.mean().item(),
        "scale": law.scale.tolist(),
        "samples": [[round(x, 3) for x in point] for point in samples[:1500].tolist()],
    }


METHODS = {
    "SIVI": Recipe(),
    "SIVI, annealed": Recipe(rate=3e-4, anneal=True),  # what the schedule alone does
    "reverse": Recipe(rate=3e-4, anneal=True, reverse=True, draws=50),
}


@dataclass(frozen=True)
class Job:
    """One fit."""

    name: str
    target: str
    recipe: Recipe
    seed: int


def comparison(seeds: Sequence[int], steps: int) -> list[Job]:
    """Both methods on every target."""
    cases = product(seeds, TARGETS, METHODS.items())
    return [Job(name, target, replace(recipe, steps=steps), seed) for seed, target, (name, recipe) in cases]


def collapses(seeds: Sequence[int], steps: int) -> list[Job]:
    """Plain semi-implicit fits of x_shaped, started so that some, or none, collapse to a single Gaussian."""
    wide = Recipe(skip=False, noise_dim=3, width=50, scale=(1.0, 1.0), optimiser="Adam", rate=1e-3, steps=steps)
    recipes = {
        "K=10, from sd 1": replace(wide, num_extra=10),
        "K=100, from sd 1": replace(wide, num_extra=100),
        "K=100, from sd 0.3": replace(wide, num_extra=100, scale=(0.3, 0.3)),
        "K=100, skip, from sd 0.3": replace(wide, num_extra=100, scale=(0.3, 0.3), skip=True, noise_dim=2),
    }
    return [Job(name, "x_shaped", recipe, seed) for seed, (name, recipe) in product(seeds, recipes.items())]


def perform(job: Job, out: Path) -> dict[str, Any]:
    """The result of a fit, from its file if it is there and was made by the same recipe."""
    torch.set_num_threads(1)
    name = f"{job.target}-{job.name}-{job.seed}".replace(" ", "_").replace(",", "")
    path, asked = out / "fits" / f"{name}.json", json.loads(json.dumps(asdict(job)))
    if path.exists() and (known := json.loads(path.read_text()))["job"] == asked:
        return known
    started = time.perf_counter()
    posterior = fit(TARGETS[job.target], job.recipe, job.seed)
    seconds = time.perf_counter() - started
    result = {"job": asked, "seconds": seconds, **evaluate(posterior, TARGETS[job.target])}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".part").write_text(json.dumps(result))
    path.with_suffix(".part").replace(path)
    return result


def perform_all(jobs: Sequence[Job], out: Path, processes: int) -> list[dict[str, Any]]:
    """All results, in the order of the jobs."""
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(perform, job, out): job for job in jobs}
        for number, future in enumerate(as_completed(futures), 1):
            job, result = futures[future], future.result()
            said = f"KL {result['kl']:.4f} SW2 {result['sw2']:.3f} {result['seconds']:.0f} s"
            print(f"{number}/{len(jobs)} {job.target} {job.name} seed {job.seed}: {said}", flush=True)
    return [future.result() for future in futures]


def table(results: Sequence[dict[str, Any]], floors: dict[str, float]) -> str:
    """Both methods on every target, means over seeds."""
    lines = [
        "| target | method | KL (nats) | SW2 | published SIVI SW2 | floor | mixing ratio | effective components | s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for target, name in product(TARGETS, METHODS):
        rows = [r for r in results if (r["job"]["target"], r["job"]["name"]) == (target, name)]
        ratio, effective, seconds = (
            mean(r[key] for r in rows) for key in ("mixing_ratio", "effective_components", "seconds")
        )
        kl, sw2 = (spread_text([r[key] for r in rows], digits=4) for key in ("kl", "sw2"))
        published = "{} ± {}".format(*TARGETS[target].published_sw2) if name == "SIVI" else ""
        components = f"{effective:.1f} of {rows[0]['job']['recipe']['num_extra'] + 1}"
        lines.append(
            f"| {target} | {name} | {kl} | {sw2} | {published} | {floors[target]:.3f} | {ratio:.2f} | {components} "
            f"| {seconds:.0f} |"
        )
    return "\n".join(lines)


def collapse_table(results: Sequence[dict[str, Any]], everything: Sequence[dict[str, Any]]) -> str:
    """The second series, and how often the diagnostic agrees with the divergence in all fits."""
    lines = ["| x_shaped, plain | KL (nats), each seed | mixing ratio | collapsed |", "|---|---|---|---|"]
    for name in dict.fromkeys(r["job"]["name"] for r in results):
        rows = [r for r in results if r["job"]["name"] == name]
        kl, ratio = (", ".join(f"{r[key]:.3f}" for r in rows) for key in ("kl", "mixing_ratio"))
        lines.append(f"| {name} | {kl} | {ratio} | {sum(r['kl'] > COLLAPSED_KL for r in rows)} of {len(rows)} |")
    lines += ["", f"| all {len(everything)} fits | mixing ratio < {COLLAPSED} | at least that |", "|---|---|---|"]
    for said, truth in ((f"KL > {COLLAPSED_KL}", True), ("less", False)):
        counts = [
            sum((r["kl"] > COLLAPSED_KL, has_collapsed(r["mixing_ratio"])) == (truth, fires) for r in everything)
            for fires in (True, False)
        ]
        lines.append(f"| {said} | {counts[0]} | {counts[1]} |")
    return "\n".join(lines)


def draw(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Draws of the first seed over the regions that hold 50, 90 and 99 % of the target."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    methods = ("SIVI", "reverse")
    figure, panels = plt.subplots(len(methods), len(TARGETS), figsize=(9, 6.3), sharex="col", sharey="col")
    for (row, name), (column, (key, target)) in product(enumerate(methods), enumerate(TARGETS.items())):
        rows = [r for r in results if (r["job"]["target"], r["job"]["name"]) == (key, name)]
        panel, (left, right, bottom, top) = panels[row][column], target.window
        x, y = torch.linspace(left, right, 300), torch.linspace(bottom, top, 300)
        height = target.log_density(torch.stack(torch.meshgrid(x, y, indexing="xy"), -1))
        levels = target.log_density(target.sample(50_000)).quantile(torch.tensor([0.01, 0.1, 0.5]))
        panel.contour(x, y, height, levels=levels.tolist(), colors="#6b7c8c", linewidths=0.8, linestyles="solid")
        panel.scatter(*zip(*rows[0]["samples"], strict=True), s=4, color="#c8501e", alpha=0.5, linewidths=0)
        panel.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[])
        kl, sw2 = (mean(r[quantity] for r in rows) for quantity in ("kl", "sw2"))
        panel.set_xlabel(f"KL {kl:.4f} nats, SW2 {sw2:.3f}")
        if row == 0:
            panel.set_title(key)
    for name, panel in zip(("SIVI", "with a reverse model"), panels[:, 0], strict=True):
        panel.set_ylabel(name, fontsize=12)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def main() -> None:
    """Fit, print and draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/toys"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="processes, each with one thread")
    parser.add_argument("--steps", type=int, default=15_000, help="of the comparison; the second series takes a third")
    args = parser.parse_args()
    jobs = comparison(args.seeds, args.steps)
    more = collapses(args.seeds, args.steps // 3)
    results = perform_all([*jobs, *more], args.out, args.jobs)
    first, second = results[: len(jobs)], results[len(jobs) :]
    torch.manual_seed(0)
    pairs = {name: [(t.sample(SAMPLES), t.sample(SAMPLES)) for _ in range(10)] for name, t in TARGETS.items()}
    floors = {name: mean(sliced_wasserstein(a, b) for a, b in pair) for name, pair in pairs.items()}
    bias = max(abs(r["kl_finer"] - r["kl"]) for r in results)
    print("", table(first, floors), "", collapse_table(second, results), "", sep="\n")
    print(f"KL with {COMPONENTS[1]} components in place of {COMPONENTS[0]}: {bias:.5f} nats apart at most")
    kept = [{key: value for key, value in r.items() if key != "samples"} for r in results]
    (args.out / "results.json").write_text(json.dumps({"floors": floors, "fits": kept}, indent=1))
    draw(first, args.out / "semi_implicit_toys.png")


if __name__ == "__main__":
    main()

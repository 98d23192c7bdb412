r"""Fits two posteriors that nobody tuned for, with and without a reverse model, and says how far off each fit is.

    python experiments/semi_implicit_posteriors.py --out runs/posteriors --seeds 0 1 2

The conditional is diagonal, so whatever correlation the fit has comes from its mixing:

    p ~ N(psi, diag(scale^2)),  psi = f(eps),  eps ~ N(0, I_10),  f a 10-100-100-d network,  scale learnt

Each fit writes one JSON file, and a file that is there is not made again. `posterior_targets.py` has the posteriors and
their references. KL(q || posterior) is `log Z - ELBO`; the ELBO lies between the bounds of `fedbayes.inference.bounds`,
taken with many more draws than in training: plain ones, and for a fit with a reverse model also draws from that.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from posterior_targets import (
    LogJoint,
    Reference,
    count_joint,
    distances,
    logistic_joint,
    logistic_reference,
    moments,
    quadrature,
    waveforms,
)
from torch import Tensor, nn
from torch.distributions import Distribution, MultivariateNormal

from fedbayes.inference.bounds import lower_bound, upper_bound
from fedbayes.inference.diagnostics import mixing_ratio, mixing_variances
from fedbayes.inference.gaussian import AmortisedNormal
from fedbayes.inference.mixing import Pushforward
from fedbayes.inference.reverse import GaussianReverse
from fedbayes.inference.semi_implicit import SemiImplicitNormal
from fedbayes.report.spread import spread_text

NOISE = 10
DRAWS = 32
RATE = 2e-3
INITIAL_SCALE = 0.1
COMPONENTS = 20_000
REVERSE_COMPONENTS = 200
PLANS: dict[str, list[tuple[str, int]]] = {
    "logistic": [
        ("gaussian", 0),
        ("full", 0),
        *(("plain", K) for K in (0, 1, 10, 100, 1000)),
        *(("reverse", K) for K in (0, 10, 50)),
    ],
    "counts": [("gaussian", 0), ("full", 0), *(("plain", K) for K in (0, 10, 100)), ("reverse", 10)],
}
"""Method and K, target by target."""
EXPLICIT = ("gaussian", "full")
"""The diagonal Gaussian and one with a full covariance; they have no K."""


def network(inputs: int, outputs: int) -> nn.Sequential:
    """Two hidden layers of 100."""
    return nn.Sequential(nn.Linear(inputs, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, outputs))


class Gaussian(nn.Module):
    """An explicit Gaussian, diagonal or with a full covariance, whose ELBO needs no bound."""

    def __init__(self, dim: int, full: bool) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(dim))
        self.log_scale = nn.Parameter(torch.full((dim,), math.log(INITIAL_SCALE)))
        self.lower = nn.Parameter(torch.zeros(dim, dim)) if full else None

    def forward(self, _num_extra: int) -> Distribution:
        """The posterior as it stands; it has no K."""
        scale = self.log_scale.exp()
        if self.lower is None:
            return AmortisedNormal(self.loc, scale)
        tril = self.lower.tril(-1) + scale.diag()
        return MultivariateNormal(self.loc, scale_tril=tril, validate_args=False)


class SemiImplicit(nn.Module):
    """The semi-implicit posterior, with a network for tau(eps | p) or without one."""

    def __init__(self, dim: int, reverse: bool) -> None:
        super().__init__()
        self.mixing = network(NOISE, dim)
        self.log_scale = nn.Parameter(torch.full((dim,), math.log(INITIAL_SCALE)))
        self.tau = network(dim, GaussianReverse.outputs(NOISE)) if reverse else None
        if self.tau is not None:
            nn.init.zeros_(self.tau[-1].weight)
            nn.init.zeros_(self.tau[-1].bias)

    def forward(self, num_extra: int, *, aimed: bool = True, chunk: int | None = None) -> SemiImplicitNormal:
        """The posterior as it stands, its bound with K draws: from tau where there is one and `aimed`, else plain."""
        reverse = GaussianReverse(self.tau, NOISE) if aimed and self.tau is not None else None
        return SemiImplicitNormal(
            Pushforward(self.mixing, NOISE),
            self.log_scale.exp(),
            num_extra,
            reverse=reverse,
            chunk=chunk,
            share_extra=reverse is None,
        )


def family(method: str, dim: int) -> Gaussian | SemiImplicit:
    """What a method fits."""
    if method in EXPLICIT:
        return Gaussian(dim, full=method == "full")
    return SemiImplicit(dim, reverse=method == "reverse")


def fit(q: nn.Module, log_joint: LogJoint, num_extra: int, steps: int) -> float:
    """Raise L_K by Adam, its rate falling to zero along a cosine; returns CPU milliseconds per step."""
    adam = torch.optim.Adam(q.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    begin = time.process_time()
    for _ in range(steps):
        loss = -lower_bound(q(num_extra), log_joint, DRAWS).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        schedule.step()
    return 1000 * (time.process_time() - begin) / steps


def bracket(posterior: SemiImplicitNormal, log_joint: LogJoint, draws: int, batch: int) -> tuple[float, float, float]:
    """L_K, U_K and the standard error of L_K, nats; both bounds at the same draws of p."""
    state = torch.get_rng_state()

    def terms(bound: Callable[..., Tensor]) -> Tensor:
        torch.set_rng_state(state)
        return torch.cat([bound(posterior, log_joint, batch) for _ in range(draws // batch)])

    low, high = terms(lower_bound), terms(upper_bound)
    return float(low.mean()), float(high.mean()), float(low.std()) / math.sqrt(len(low))


@torch.no_grad()
def judged(q: Gaussian | SemiImplicit, log_joint: LogJoint, num_extra: int, exact: Reference) -> dict[str, Any]:
    """KL in nats (least, most, standard error), moments against the reference, and what the mixing has come to."""
    sample = moments(q(1).rsample((100_000,)))
    found: dict[str, Any] = {"distances": distances(sample, exact), "mean": sample.mean, "sd": sample.sd}
    if isinstance(q, Gaussian):
        terms = lower_bound(q(0), log_joint, 100_000)
        kl = exact.log_z - float(terms.mean())
        return found | {"kl": [kl, kl, float(terms.std()) / math.sqrt(len(terms))]}
    # Chunks of components: their weights at all draws of a batch are held at once.
    low, high, error = bracket(q(COMPONENTS, aimed=False, chunk=500), log_joint, 4000 if q.tau is None else 1000, 250)
    found["kl"] = found["kl_plain"] = [exact.log_z - high, exact.log_z - low, error]
    if q.tau is not None:
        low, high, error = bracket(q(REVERSE_COMPONENTS), log_joint, 10_000, 200)
        found["kl"] = [exact.log_z - high, exact.log_z - low, error]
    now = q(num_extra)
    mixing, conditional = mixing_variances(q.mixing(torch.randn(10_000, NOISE)), q.log_scale.exp())
    found["effective_components"] = float(now.mixture(now.rsample((1000,))).effective_components.mean())
    found["mixing_ratio"] = mixing_ratio(float(mixing), float(conditional))
    return found


def target(name: str) -> tuple[LogJoint, int, Callable[[], Reference]]:
    """A posterior's log joint, its dimension, and how to find its reference."""
    if name == "counts":
        mites = count_joint()
        return mites, 2, lambda: quadrature(mites, (-2.5, -4.0), (5.0, 4.0), 800)
    waves = logistic_joint(*waveforms())
    return waves, 22, lambda: logistic_reference(waves)


def kept(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What the file says, or else what is made now and written there."""
    if not path.exists():
        begin = time.perf_counter()
        found = make()
        found["minutes"] = (time.perf_counter() - begin) / 60
        path.write_text(json.dumps(found, indent=1) + "\n")
        print(f"  {path.name}: {found['minutes']:.1f} min", flush=True)
    found_there: dict[str, Any] = json.loads(path.read_text())
    return found_there


def reference(name: str) -> dict[str, Any]:
    """The target's, for its file."""
    return asdict(target(name)[2]())


def one_fit(name: str, method: str, num_extra: int, seed: int, steps: int, exact: Reference) -> dict[str, Any]:
    """Fit and judge."""
    log_joint, dim, _ = target(name)
    torch.manual_seed(seed)
    q = family(method, dim)
    ms = fit(q, log_joint, num_extra, steps)
    return {"ms_per_step": ms, "steps": steps, **judged(q, log_joint, num_extra, exact)}


def print_tables(rows: list[tuple[str, int, list[dict[str, Any]]]]) -> None:
    """One line per method and K: means over seeds, ± their standard error."""
    print("| method | K | KL (nats) | bracket | fits | ms per step | effective components | mixing ratio |")
    print("|---|---|---|---|---|---|---|---|")
    for method, num_extra, fits in rows:
        low, high = (statistics.mean(one["kl"][i] for one in fits) for i in (0, 1))
        bound = f"{low:.3f} to {high:.3f}"
        if "kl_plain" in fits[0] and method == "reverse":
            bound += " (plain: {:.3f} to {:.3f})".format(
                *(statistics.mean(f["kl_plain"][i] for f in fits) for i in (0, 1))
            )
        cells = [
            spread_text([statistics.mean(one["kl"][:2]) for one in fits]),
            bound,
            str(len(fits)),
            f"{statistics.mean(one['ms_per_step'] for one in fits):.1f}",
        ]
        for key in ("effective_components", "mixing_ratio"):
            cells.append(f"{statistics.mean(one[key] for one in fits):.2f}" if key in fits[0] else "")
        print(f"| {method} | {'' if method in EXPLICIT else num_extra} | " + " | ".join(cells) + " |")
    names = list(rows[0][2][0]["distances"])
    print("\n| method | K | " + " | ".join(names) + " |\n|---|---|" + "---|" * len(names))
    for method, num_extra, fits in rows:
        cells = [spread_text([one["distances"][name] for one in fits]) for name in names]
        print(f"| {method} | {'' if method in EXPLICIT else num_extra} | " + " | ".join(cells) + " |")


def print_marginals(exact: Reference, fits: dict[tuple[str, int], list[dict[str, Any]]]) -> None:
    """Means and standard deviations of log r and logit prob beside the exact ones."""
    print("\n| method | K | mean log r | sd | mean logit prob | sd |\n|---|---|---|---|---|---|")
    lines = [("exact", "", exact.mean, exact.sd)]
    for (method, num_extra), ones in fits.items():
        mean, sd = ([statistics.mean(one[key][i] for one in ones) for i in (0, 1)] for key in ("mean", "sd"))
        lines.append((method, "" if method in EXPLICIT else str(num_extra), mean, sd))
    for method, num_extra, mean, sd in lines:
        print(f"| {method} | {num_extra} | {mean[0]:.3f} | {sd[0]:.3f} | {mean[1]:.3f} | {sd[1]:.3f} |")


def main() -> None:
    """Fit what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/posteriors"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", choices=tuple(PLANS))
    parser.add_argument("--steps", type=int, default=10_000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    for name in [args.only] if args.only else PLANS:
        print(f"\n{name}", flush=True)
        found = kept(args.out / f"{name}-reference.json", partial(reference, name))
        exact = Reference(**{key: value for key, value in found.items() if key != "minutes"})
        print(f"log Z = {exact.log_z:.6f} ± {exact.error:.1g} nats; {exact.notes}", flush=True)
        fits: dict[tuple[str, int], list[dict[str, Any]]] = {}
        for seed in args.seeds:
            for method, num_extra in PLANS[name]:
                path = args.out / f"{name}-{method}-{num_extra}-seed{seed}-steps{args.steps}.json"
                result = kept(path, partial(one_fit, name, method, num_extra, seed, args.steps, exact))
                fits.setdefault((method, num_extra), []).append(result)
        print_tables([(method, num_extra, fits[method, num_extra]) for method, num_extra in PLANS[name]])
        if name == "counts":
            print_marginals(exact, fits)


if __name__ == "__main__":
    main()

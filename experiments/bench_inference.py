"""What the inference costs in a training step, as a share of the step: Pyro, the mixture, the reverse model.

    python experiments/bench_inference.py                    # the offline default, ten clients side by side
    python experiments/bench_inference.py --configurations   # cost per step by K, noise dimension and reverse model
    python experiments/bench_inference.py --gradients        # plain, chunked and path gradient at large K

The bare step is what any noisy prompt needs: draw a code, decode it, run the upper blocks, cross entropy, gradient and
optimiser. The full step adds the Pyro programs and the bound. Both take turns in one process, so that a busy machine
slows both; the figures are ratios of medians of processor time.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from fedbayes import build
from fedbayes.config.compose import compose
from fedbayes.inference.bounds import lower_bound
from fedbayes.inference.mixing import Pushforward
from fedbayes.inference.semi_implicit import SemiImplicitNormal
from fedbayes.optim.cohort import CohortOptimiser
from fedbayes.seeding import Streams

Step = Callable[[], None]


def steps(overrides: Sequence[str], extra: Sequence[int | None]) -> list[Step]:
    """Training steps on the first batch of all clients: a full one for each K (None: as configured), and a bare one."""
    cfg = compose([*overrides, "simulation.threads=1"])
    data = build.data(cfg)
    client = build.client(cfg, data, build.model(cfg, data, "cpu"))
    partitions = list(range(cfg.clients))
    model, optim = client.model, client.optim
    model.stack([client.initial()] * len(partitions))
    batch = next(data.epochs(partitions, 1, optim.batch_size, Streams(0, 1, partitions, "order")))
    inputs = client.inputs.plain(batch)
    noise = Streams(0, 1, partitions, "noise")
    parameters = model.trainable()
    generator = model.generator

    def step(loss: Callable[[], torch.Tensor]) -> Step:
        rates = dict.fromkeys(parameters, 1e-9)  # a step that goes nowhere, so that all steps are alike
        settings = {"momentum": optim.momentum, "weight_decay": optim.weight_decay, "clip": optim.clip}
        optimiser = CohortOptimiser(parameters, name=optim.name, learning_rates=rates, **settings)

        def run() -> None:
            gradients = torch.autograd.grad(loss(), list(parameters.values()), allow_unused=True)
            pairs = zip(parameters.items(), gradients, strict=True)
            known = {k: torch.zeros_like(p) if g is None else g for (k, p), g in pairs}
            optimiser.step(known, inputs.mask.any(1))

        return run

    def bare() -> torch.Tensor:
        eps = noise.normal((1,), inputs.counts, generator.noise_dim) if generator.noise_dim else None
        psi = generator.mixing(inputs.z, eps)
        code = psi + generator.scale(inputs.z) * noise.normal((1,), inputs.counts, generator.code_dim)
        logits = model.logits(inputs.tokens, generator.decode(code))[0]
        losses = F.cross_entropy(logits.flatten(0, 1), inputs.labels.flatten(), reduction="none")
        return (losses.view_as(inputs.weights) * inputs.weights).sum()

    def full(k: int | None) -> Callable[[], torch.Tensor]:
        def loss() -> torch.Tensor:
            client.inference.num_extra = configured if k is None else k
            return client.objective(inputs, noise, client.inference.beta).loss.sum()

        return loss

    configured = client.inference.num_extra
    return [*(step(full(k)) for k in extra), step(bare)]


def medians(functions: Sequence[Step], repeats: int) -> list[float]:
    """Milliseconds of processor time of each, taking turns."""
    found: list[list[float]] = [[] for _ in functions]
    for turn in range(repeats + 3):
        for times, function in zip(found, functions, strict=True):
            started = time.process_time()
            function()
            if turn >= 3:
                times.append(1e3 * (time.process_time() - started))
    return [statistics.median(times) for times in found]


def gradients(repeats: int) -> None:
    """One gradient of L_K for a network 10-100-100-22 and 64 independent draws, by K and kind of gradient.

    The bytes are what the graph keeps until the gradient is taken.
    """
    net = torch.nn.Sequential(
        torch.nn.Linear(10, 100), torch.nn.ReLU(), torch.nn.Linear(100, 100), torch.nn.ReLU(), torch.nn.Linear(100, 22)
    )
    log_scale = torch.zeros(22, requires_grad=True)
    kept = [0]

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[0] += tensor.numel() * tensor.element_size()
        return tensor

    def step(k: int, options: dict[str, Any]) -> Step:
        def run() -> None:
            kept[0] = 0
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                posterior = SemiImplicitNormal(Pushforward(net, 10), log_scale.exp(), k, **options)
                loss = -lower_bound(posterior, lambda p: -0.5 * p.square().sum(-1), 64).mean()
            torch.autograd.grad(loss, [*net.parameters(), log_scale])

        return run

    kinds: dict[str, dict[str, Any]] = {
        "plain": {},
        "plain, chunk=50": {"chunk": 50},
        "path": {"path_gradient": True},
        "path, chunk=50": {"path_gradient": True, "chunk": 50},
    }
    print("| K | gradient | ms | of plain | kept, MB |\n|---|---|---|---|---|")
    for k in (10, 100, 1000):
        made = [step(k, options) for options in kinds.values()]
        times = medians(made, repeats)
        for name, function, found in zip(kinds, made, times, strict=True):
            function()
            print(f"| {k} | {name} | {found:.1f} | {found / times[0]:.2f} | {kept[0] / 2**20:.2f} |")


def main() -> None:
    """Time and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--configurations", action="store_true")
    parser.add_argument("--gradients", action="store_true")
    parser.add_argument("--repeats", type=int, default=30)
    args, overrides = parser.parse_known_args()
    torch.set_num_threads(1)
    if args.gradients:
        gradients(args.repeats)
        return
    rows: dict[str, tuple[str, ...]] = {"as configured": ()}
    extra: tuple[int | None, ...] = (None,)
    if args.configurations:
        extra = (0, 1, 10, 100)
        rows = {
            f"reverse={reverse} m={m}": (f"inference.reverse={reverse}", f"generator.noise_dim={m}")
            for reverse in ("none", "gaussian")
            for m in (2, 8, 32)
        }
    made = [steps((*overrides, *row), extra) for row in rows.values()]
    times = iter(medians([step for row in made for step in row], args.repeats))
    print("| configuration | K | full step, ms | bare step, ms | inference, share of the step |\n|---|---|---|---|---|")
    for name in rows:
        *fulls, bare = (next(times) for _ in (*extra, "bare"))
        for k, full in zip(extra, fulls, strict=True):
            shown = "" if k is None else k
            print(f"| {name} | {shown} | {full:.1f} | {bare:.1f} | {100 * (full - bare) / full:.1f} % |")


if __name__ == "__main__":
    main()

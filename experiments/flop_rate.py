"""How much of the processor's matrix-multiplication rate a training step reaches.

    python experiments/flop_rate.py                              # the offline default, ten clients side by side
    python experiments/flop_rate.py --vit vit_tiny_patch16_224   # a ViT of timm's at 224 px, random weights
    python experiments/flop_rate.py --threads 2 --clients 4      # anything else as for `fedbayes`

The rate of a step is the floating-point operations that torch counts in it over its seconds; a step is the bound with
Pyro's traces, its gradient and the optimiser. The rate of the machine is that of the fastest large square product of
the same type, on as many threads. Both take turns in one process, so that a busy machine slows both; the figures are
medians, on one thread of processor time. torch counts products and attention alone: whatever else a step does lowers
its share. A step that does without some products has a lower share than its seconds deserve, so look at both.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from omegaconf import open_dict
from torch.utils.flop_counter import (
    FlopCounterMode,
    flop_registry,
    register_flop_formula,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from clients.prompt_tuning import PromptTuningClient
from fedbayes import build
from fedbayes.config.compose import compose
from fedbayes.models.backbone import FrozenViT
from fedbayes.optim.cohort import CohortOptimiser
from fedbayes.seeding import Streams
from fedbayes.simulation.hardware import keep_freed_memory

Step = Callable[[], None]
SIDES = (1024, 2048, 3072)


def _attention(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _attention_backward(
    grad: Sequence[int], query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any
) -> int:
    return int(sdpa_backward_flop_count(grad, query, key, value))


def count_flops(step: Step) -> int:
    """Floating-point operations of a step, as torch counts them, the CPU's fused attention included."""
    return sum(flops_by_operator(step).values())


def flops_by_operator(step: Step) -> dict[str, int]:
    """The same for each operator."""
    aten = torch.ops.aten
    # torch has formulas for the GPU's fused attentions alone, whose arguments begin like these.
    formulas = {
        aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    }
    for operator, formula in formulas.items():
        if operator not in flop_registry:
            register_flop_formula(operator)(formula)
    with FlopCounterMode(display=False) as counter:
        step()
    return {str(operator): flops for operator, flops in counter.get_flop_counts()["Global"].items()}


def product(side: int, device: str, dtype: torch.dtype) -> Step:
    """A product of two square matrices."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)

    def run() -> None:
        torch.mm(a, b, out=out)

    return run


def seconds(step: Step, device: str) -> float:
    """Time of a call: the processor's on one thread, where others' turns do not count, and else the clock's."""
    clock = time.process_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    if device != "cpu":
        torch.cuda.synchronize()
    started = clock()
    step()
    if device != "cpu":
        torch.cuda.synchronize()
    return clock() - started


def shares(steps: Sequence[Step], device: str, dtype: torch.dtype, repeats: int) -> list[tuple[int, float, float]]:
    """Each step's operations, seconds, and rate as a share of the machine's, all taking turns.

    The share is the median over turns of the step's rate over the fastest product's in the same turn.
    """
    counts = [count_flops(step) for step in steps]
    products = [(2 * side**3, product(side, device, dtype)) for side in SIDES]
    times: list[list[float]] = [[] for _ in steps]
    found: list[list[float]] = [[] for _ in steps]
    for turn in range(repeats + 1):
        machine = max(flops / seconds(step, device) for flops, step in products)
        for flops, step, own, share in zip(counts, steps, times, found, strict=True):
            elapsed = seconds(step, device)
            if turn > 0:
                own.append(elapsed)
                share.append(flops / elapsed / machine)
    return [
        (flops, statistics.median(own), statistics.median(share))
        for flops, own, share in zip(counts, times, found, strict=True)
    ]


def client_of(overrides: Sequence[str], vit: str | None = None, device: str = "cpu") -> PromptTuningClient:
    """The client of a configuration, its backbone replaced by a ViT of timm's with random weights if one is named."""
    cfg = compose(overrides)
    if vit is not None:
        with open_dict(cfg):
            cfg.backbone = {"_target_": f"{__name__}.random_vit", "name": vit}
    data = build.data(cfg)
    client = build.client(cfg, data, build.model(cfg, data, device))
    assert isinstance(client, PromptTuningClient), "only prompt tuning has a step"
    return client


def random_vit(
    name: str,
    image_size: int,
    checkpoint: None = None,
    pretrained: bool = False,
    random: bool = True,  # noqa: ARG001
) -> FrozenViT:
    """A backbone that has learnt nothing, which costs what any other does; it takes what `backbone=timm` names."""
    assert checkpoint is None, "random weights come from no file"
    assert not pretrained, "nor from anywhere else"
    import timm

    vit = timm.create_model(name, pretrained=False, img_size=image_size, num_classes=0)
    return FrozenViT(vit, name, (0.5,) * 3, (0.5,) * 3)


def step_of(client: PromptTuningClient, partitions: Sequence[int]) -> Step:
    """One training step of a cohort on the first batch of each client, which goes next to nowhere.

    Args:
        client: whose objective, optimiser and images to use.
        partitions: the clients trained side by side.
    """
    model, optim, data = client.model, client.optim, client.data
    client.prepare()
    # The head starts at zero; a trained one sends gradients of an ordinary size down, not denormal numbers.
    weight = client.initial()["head.weight"]
    head = np.random.default_rng(0).normal(0, 0.1, weight.shape).astype(weight.dtype)
    model.stack([{**client.initial(), "head.weight": head}] * len(partitions))
    batch = next(iter(data.epochs(partitions, 1, optim.batch_size, Streams(0, 1, partitions, "order"))))
    noise, changes = (Streams(0, 1, partitions, purpose) for purpose in ("noise", "augment"))
    parameters = {name: p for name, p in model.trainable().items() if p.numel()}
    optimiser = CohortOptimiser(
        parameters,
        name=optim.name,
        learning_rates=dict.fromkeys(parameters, 1e-9),
        momentum=optim.momentum,
        weight_decay=optim.weight_decay,
        clip=optim.clip,
    )

    def run() -> None:
        inputs = client.inputs.train(batch, changes)
        loss = client.objective(inputs, noise, client.inference.beta).loss.sum()
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        optimiser.step(dict(zip(parameters, gradients, strict=True)), batch.mask.any(1).to(loss.device))

    return run


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vit", help="a ViT of timm's instead of the configured backbone, with random weights")
    parser.add_argument("--clients", type=int, action="append", help="cohort size, may be repeated")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    args, overrides = parser.parse_known_intermixed_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    sizes = args.clients or [1 if args.vit else 10]
    overrides.append(f"clients={max(sizes)}")
    if args.vit is not None:  # few images beside the batch: their tokens are computed beforehand
        few = ["partition.max_train=32", "partition.validation=0.02", "partition.test=0.02"]
        overrides = ["data.image_size=224", *few, *overrides]
    client = client_of(overrides, args.vit)
    print("| clients | threads | GFLOP | step, ms | share of the matmul rate |\n|---|---|---|---|---|")
    for size in sizes:
        ((flops, elapsed, share),) = shares([step_of(client, range(size))], "cpu", torch.float32, args.repeats)
        print(f"| {size} | {args.threads} | {flops / 1e9:.2f} | {1e3 * elapsed:.1f} | {100 * share:.1f} % |")


if __name__ == "__main__":
    main()

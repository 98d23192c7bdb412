"""What sparse training saves in a step of deep prompts, by the blocks that are trained; `results/sparse_savings.csv`.

    python experiments/sparse_savings.py

ViT-tiny of 12 blocks at 112 px with random weights, 32 images, 16 prompts in each block. Saved are the bytes that
autograd keeps between forward and backward. Seconds are of the processor, the least of a few steps.
"""

import time
from pathlib import Path
from typing import Any

import pandas as pd
import timm
import torch

from fedbayes.models.backbone import FrozenViT
from fedbayes.models.prompted import PromptedViT
from fedbayes.models.prompts.base import FixedPrompts

IMAGES, PROMPTS, STEPS = 32, 16, 4
SETS = (tuple(range(12)), (0, 5, 11), (2, 7, 10), (6, 8, 11), (9, 10, 11))


def step(model: PromptedViT, tokens: torch.Tensor, blocks: tuple[int, ...]) -> tuple[float, float, int]:
    """Return the processor's seconds of forward and backward, and the bytes saved between them."""
    saved: dict[int, int] = {}  # by memory address: a weight that several steps keep counts once

    def count(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with model.restricted([frozenset(blocks)]), torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
        begun = time.process_time()
        loss = model.logits(tokens, model.generator.plain(tokens[:, :, 0])).square().sum()
        half = time.process_time()
    loss.backward()
    return half - begun, time.process_time() - half, sum(saved.values())


def main() -> None:
    """Measure each set of blocks and write the table."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", img_size=112, num_classes=0)
    frozen = FrozenViT(vit, "vit_tiny_patch16_224", (0.5,) * 3, (0.5,) * 3)
    sizes: dict[str, Any] = {"length": PROMPTS, "depth": "deep", "start_layer": 0, "head_std": 0.1}
    model = PromptedViT(frozen, 10, generator=FixedPrompts, seed=0, by_block=True, **sizes)
    tokens = model.entering(torch.rand(IMAGES, 3, 112, 112) * 255).unsqueeze(0)
    rows = []
    for blocks in SETS:
        steps = [step(model, tokens, blocks) for _ in range(STEPS)]
        forward, backward, _ = (min(column) for column in zip(*steps, strict=True))
        name = "all" if len(blocks) == 12 else " ".join(map(str, blocks))
        rows.append({"blocks": name, "saved_mb": steps[0][2] / 1e6, "forward_s": forward, "backward_s": backward})
    path = Path("runs/sparse_savings.csv")
    path.parent.mkdir(exist_ok=True)
    pd.DataFrame(rows).round(2).to_csv(path, index=False)
    print(path.read_text())


if __name__ == "__main__":
    main()

"""The prompts of one client's images in a plane, to see what "instance-wise" looks like."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fedbayes.data.federated import FederatedData
from fedbayes.models.prompted import PromptedViT
from fedbayes.models.prompts.coded import AbstractPosteriorPrompts
from fedbayes.seeding import generator as seeded

IMAGES = 150
"""Images at most."""
DRAWS = 3
"""Draws of each image's posterior that are shown."""
MIXING_DRAWS = 32
"""Draws of the mixing variable whose mean stands for an image."""


@torch.no_grad()
def codes_of_client(model: PromptedViT, data: FederatedData, partition: int, seed: int) -> dict[str, Any] | None:
    """Project the codes of a client's images on their first two principal components.

    Args:
        model: holds the client's parameters.
        data: of the federation.
        partition: the client.
        seed: of the run.

    Returns:
        What `gallery.json` says of them; None where all images have the same prompts, or there are fewer than 3 images.
    """
    ids = torch.cat([data.indices(partition, split) for split in ("test", "validation", "train")])[:IMAGES]
    if len(ids) < 3 or model.weights is not None:
        return None
    _, z = model.precompute(data.images.images[ids].to(model.backbone.mean.device))
    codes, draws, source = _codes(model, z, seed)
    if codes is None:
        return None
    codes = codes.double().cpu()
    centre = codes.mean(0)
    _, strength, axes = torch.linalg.svd(codes - centre, full_matrices=False)
    axes = axes[:2]
    axes = axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()  # else the sign is the library's whim
    variance = strength.square()
    explained = variance[:2] / variance.sum().clamp(min=1e-30)
    domains = data.images.domains[ids].tolist()

    def plane(rows: Tensor) -> list[list[float]]:
        return [[round(value, 4) for value in row] for row in ((rows.double().cpu() - centre) @ axes.mT).tolist()]

    spread = [] if draws is None else [plane(draw) for draw in draws]
    return {
        "partition": partition,
        "points": [[*point, domain] for point, domain in zip(plane(codes), domains, strict=True)],
        "draws": [[*point, d] for draw in spread for point, d in zip(draw, domains, strict=True)],
        "domains": list(data.images.domain_names),
        "explained": explained.tolist(),
        "what": f"{source} One dot for each of {len(ids)} images of the client, coloured by domain, in their first two "
        "principal components.",
    }


def _codes(
    model: PromptedViT, z: Float[Tensor, "n d"], seed: int
) -> tuple[Float[Tensor, "n code"] | None, Float[Tensor, "draws n code"] | None, str]:
    """A code for each image, draws from its posterior if it has one, and what they are."""
    generator, z = model.generator, z.unsqueeze(0)
    if not isinstance(generator, AbstractPosteriorPrompts):
        prompts = generator.plain(z)[0]
        alike = prompts.shape[0] == 1 or prompts.shape[1:].numel() == 0
        return None if alike else prompts.flatten(1), None, "The prompts themselves."
    rng = seeded(seed, "gallery")

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng).to(z.device)

    count, noisy = z.shape[1], generator.noise_dim
    eps = normal(MIXING_DRAWS, 1, count, noisy) if noisy else None
    psi = generator.mixing(z, eps).view(-1, count, generator.code_dim)  # (draws, n, code)
    scale = generator.scale(z)[0]
    means = psi[:DRAWS].expand(DRAWS, count, -1)
    draws = means + scale * normal(DRAWS, count, generator.code_dim)
    return psi.mean(0), draws, "Large dots: mean codes; small dots: draws from the posterior of each image."

"""How many components of the mixture matter, by the number of directions in which the mixing is wide.

    python experiments/noise_directions.py      # seconds; prints the table of docs/choosing.md

The mixing is `psi = r sigma eps` with eps standard normal in m directions, the conditional `p = psi + sigma xi`; what
lies outside of these directions is the same for all components. Means over 20,000 draws of p, K = 10 fresh components.
"""

import torch
from torch.distributions import Normal

from fedbayes.inference.mixture import Mixture

FRESH, DRAWS = 10, 20_000


def measured(directions: int, width: float) -> tuple[float, float]:
    """Effective components of `FRESH` + 1, and bound saturation; `width` is r."""
    rng = torch.Generator().manual_seed(0)
    psi = width * torch.randn(FRESH + 1, DRAWS, directions, generator=rng)
    p = psi[0] + torch.randn(DRAWS, directions, generator=rng)
    weights = Normal(psi, 1.0).log_prob(p).sum(-1)
    mixture = Mixture.of(weights, weights[0])
    return mixture.effective_components.mean().item(), mixture.bound_saturation.mean().item()


def main() -> None:
    """Print the table."""
    print(f"| directions | mixing over sigma | effective components of {FRESH + 1} | saturation |\n|---|---|---|---|")
    for width in (1.0, 3.0):
        for directions in (1, 2, 4, 8, 16, 32):
            effective, saturation = measured(directions, width)
            print(f"| {directions} | {width:g} | {effective:.2f} | {saturation:.3f} |")


if __name__ == "__main__":
    main()

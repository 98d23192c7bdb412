r"""The mixing of a semi-implicit distribution: psi, known only by its draws.

Any callable `mixing(sample_shape) -> psi` will do. A `Pushforward` also tells the noise behind psi,

    psi = f(eps),   eps ~ N(0, I_m)

which is what a reverse model `tau(eps | p)` and gradients through chunks of draws need.
"""

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor

Mixing = Callable[[torch.Size], Tensor]
"""`mixing(sample_shape) -> psi` of shape `sample_shape + batch_shape + event_shape`, reparameterised."""

Noise = Callable[[torch.Size], Tensor]
"""`noise(shape)`: standard normal draws of that shape."""


@final
class Pushforward:
    """`psi = function(eps)` with `eps ~ N(0, I_m)`, a mixing that can be asked for the noise of a draw.

    Args:
        function: maps `eps (..., *batch_shape, m)` to `psi (..., *batch_shape, *event_shape)`. It treats every element
            of the leading dimensions alike and broadcasts over sizes of one, as networks on the last dimension do.
        noise_dim: m.
        batch_shape: elements that have a mixing of their own, e.g. the images of a batch.
        noise: source of eps; the default draws from torch's global generator, in the dtype and on the device of a
            module's first parameter, or in the default dtype on the CPU for another function.

    Raises:
        ValueError: if `noise_dim` is not a positive whole number.
    """

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        noise_dim: int,
        batch_shape: torch.Size | tuple[int, ...] = (),
        noise: Noise | None = None,
    ) -> None:
        require_noise_dim(noise_dim)
        self.function, self.noise_dim, self.batch_shape = function, noise_dim, torch.Size(batch_shape)
        self.noise: Noise = noise or _like_first_parameter(function)

    def eps(self, sample_shape: torch.Size) -> Tensor:
        """Noise of shape `sample_shape + batch_shape + (m,)`."""
        return sample_noise(self.noise, torch.Size((*sample_shape, *self.batch_shape, self.noise_dim)))

    def __call__(self, sample_shape: torch.Size) -> Tensor:
        """Draws of psi."""
        return self.function(self.eps(sample_shape))


def require_noise_dim(noise_dim: int) -> None:
    """Raise ValueError if the length of eps is not a positive whole number."""
    if not isinstance(noise_dim, int) or noise_dim < 1:
        raise ValueError(f"noise_dim must be a whole number from 1 on, got {noise_dim}: it is the length of eps.")


def sample_noise(noise: Noise, shape: torch.Size) -> Tensor:
    """Draw from a source of noise; raises ValueError if the draws have another shape than asked."""
    draws = noise(shape)
    if draws.shape != shape:
        raise ValueError(f"noise({tuple(shape)}) gave draws of shape {tuple(draws.shape)}; return the shape asked for.")
    return draws


def expanded(mixing: Mixing, old: torch.Size, new: torch.Size) -> Mixing:
    """The same mixing over a larger batch, with fresh draws for every new element."""
    sizes = new[len(new) - len(old) :]
    if len(new) < len(old) or any(a not in (1, b) for a, b in zip(old, sizes, strict=True)):
        raise ValueError(f"cannot expand a batch of shape {tuple(old)} to {tuple(new)}: only size 1 can grow.")
    if isinstance(mixing, Pushforward):
        return Pushforward(mixing.function, mixing.noise_dim, new, mixing.noise)
    return _Expanded(mixing, old, new)


@final
class _Expanded:
    """A plain callable over a larger batch: it draws the new elements in front, and they are moved to where they go."""

    def __init__(self, mixing: Mixing, old: torch.Size, new: torch.Size) -> None:
        self._mixing, self._lead = mixing, new[: len(new) - len(old)]
        sizes = new[len(new) - len(old) :]
        self._stretched = [i for i, (a, b) in enumerate(zip(old, sizes, strict=True)) if a != b]
        self._sizes = tuple(sizes[i] for i in self._stretched)

    def __call__(self, sample_shape: torch.Size) -> Tensor:
        """Draws of shape `sample_shape + lead + grown batch + event`."""
        prefix = torch.Size((*sample_shape, *self._lead))
        psi = self._mixing(torch.Size((*prefix, *self._sizes)))
        for left, i in reversed(list(enumerate(self._stretched))):
            axis = len(prefix) + left  # the fresh axis; those behind it have been moved already
            place = len(prefix) + left + 1 + i  # the size-1 axis that it replaces
            psi = psi.squeeze(place).movedim(axis, place - 1)
        return psi


@final
class StandardLike:
    """A source of noise with the dtype and device of a tensor, from torch's global generator."""

    def __init__(self, like: Tensor) -> None:
        self._dtype, self._device = like.dtype, like.device

    def __call__(self, shape: torch.Size) -> Tensor:
        """Standard normal draws."""
        return torch.randn(shape, dtype=self._dtype, device=self._device)


def _like_first_parameter(function: Callable[[Tensor], Tensor]) -> Noise:
    """Noise that a module can take; of another function nothing is known, and it gets torch's defaults."""
    parameters = function.parameters() if isinstance(function, torch.nn.Module) else iter(())
    return StandardLike(next(parameters, torch.empty(0)))

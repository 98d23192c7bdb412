"""Groups that act on modules (Z/m)^count: signs, cyclic shifts, and shifts that scale every entry.

Arrays of a module have the shape `(..., count)`; an element of a group is a list of arrays with the same leading axes.
"""

from abc import ABC, abstractmethod
from typing import final

import numpy as np

from fedbayes.secure.rings import BIT, AbstractIntegers, Elements, Form, Residues, Shape, integers

Group = list[Elements]
"""An element of a group, or one for each entry of a batch."""


class AbstractAction(ABC):
    """A group that acts on (Z/modulus)^count.

    Attributes:
        module: Z/modulus.
        count: entries of the module.
    """

    def __init__(self, modulus: int, count: int) -> None:
        self.module, self.count = integers(modulus), count

    @abstractmethod
    def group(self, batch: Shape) -> list[Form]:
        """Return the forms of a batch of group elements; uniform arrays of them are uniform in the group."""

    @abstractmethod
    def act(self, g: Group, x: Elements) -> Elements:
        """Return `g x`."""


class AbstractAbelianAction(AbstractAction):
    """An action of Z/k, whose elements are whole numbers modulo k.

    Attributes:
        indices: Z/k.
    """

    indices: AbstractIntegers

    def group(self, batch: Shape) -> list[Form]:
        """Return the form of a batch of numbers modulo k."""
        return [(self.indices, batch)]


@final
class Sign(AbstractAbelianAction):
    """{+1, -1} on any module; the bit 1 stands for -1."""

    indices = BIT

    def act(self, g: Group, x: Elements) -> Elements:
        """Return `(-1)^g x`."""
        return np.where(g[0][..., None] != 0, self.module.negate(x), x)


@final
class Shift(AbstractAbelianAction):
    """Z/count, by cyclic shifts."""

    def __init__(self, modulus: int, count: int) -> None:
        super().__init__(modulus, count)
        self.indices = integers(count)

    def act(self, g: Group, x: Elements) -> Elements:
        """Return `x[(k + g) mod count]` at each k: entry 0 of the result is entry g."""
        return shifted(x, g[0])


@final
class ShiftScale(AbstractAction):
    """Shifts of a field's `count` entries, each multiplied by a number that is not 0."""

    def __init__(self, modulus: int, count: int) -> None:
        super().__init__(modulus, count)
        self._field = Residues(modulus)

    def group(self, batch: Shape) -> list[Form]:
        """Return the forms of shifts, and of multipliers less 1."""
        return [(integers(self.count), batch), (integers(self.module.modulus - 1), (*batch, self.count))]

    def act(self, g: Group, x: Elements) -> Elements:
        """Return `(1 + s[k]) x[(k + i) mod count]` at each k, for g = (i, s)."""
        return self._field.multiply(g[1] + np.uint8(1), shifted(x, g[0]))


def shifted(x: Elements, places: Elements) -> Elements:
    """Return `x[(k + places) mod count]` at each k of the last axis."""
    index = (np.arange(x.shape[-1]) + places[..., None]) % x.shape[-1]
    return np.take_along_axis(x, index, axis=-1)


ACTIONS: dict[str, type[Sign] | type[Shift] | type[ShiftScale]] = {
    "sign": Sign,
    "shift": Shift,
    "shift_scale": ShiftScale,
}

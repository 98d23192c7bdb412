"""Protocols of a group G that acts on a module A, and the comparison made of them [1].

[1] Zhang et al., A multi-party computation protocol for G-module, 2020; Cryptology ePrint Archive 2021/857.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from fedbayes.secure.actions import (
    ACTIONS,
    AbstractAbelianAction,
    AbstractAction,
    Group,
    Shift,
    ShiftScale,
    Sign,
    shifted,
)
from fedbayes.secure.dealer import AbstractCorrelation, Arrays
from fedbayes.secure.party import Party
from fedbayes.secure.rings import BIT, AbstractIntegers, Elements, Form, Residues, Shape, integers


@dataclass(frozen=True)
class _AbstractMasks(AbstractCorrelation):
    """Masks of a group and of a module, for a batch."""

    action: str
    modulus: int
    count: int
    batch: Shape

    @property
    def acting(self) -> AbstractAction:
        """The action that is meant."""
        return ACTIONS[self.action](self.modulus, self.count)

    @property
    def group(self) -> list[Form]:
        """The forms of a group element."""
        return self.acting.group(self.batch)

    @property
    def x(self) -> Form:
        """The form of an element of the module."""
        return integers(self.modulus), (*self.batch, self.count)

    def corrections(self) -> Sequence[Form]:
        """Return the form of what party 1 gets: an element of the module."""
        return [self.x]


@final
class ActionMasks(_AbstractMasks):
    """g~ for party 0, x~ for party 1, and g~ x~ in shares."""

    def samples(self) -> tuple[Sequence[Form], Sequence[Form]]:
        """Return g~ and y0; x~."""
        return [*self.group, self.x], [self.x]

    def correct(self, first: Arrays, second: Arrays) -> Arrays:
        """Return y1 = g~ x~ - y0."""
        *g, y = first
        return [integers(self.modulus).subtract(self.acting.act(g, second[0]), y)]


@final
class CrossMasks(_AbstractMasks):
    """g~ and x~ in shares, and g~ x~ in shares."""

    def samples(self) -> tuple[Sequence[Form], Sequence[Form]]:
        """Return g~0, x~0, y0; g~1, x~1."""
        return [*self.group, self.x, self.x], [*self.group, self.x]

    def correct(self, first: Arrays, second: Arrays) -> Arrays:
        """Return y1 = g~0 g~1 (x~0 + x~1) - y0."""
        module, act = integers(self.modulus), self.acting.act
        image = act(first[:1], act(second[:1], module.add(first[1], second[1])))
        return [module.subtract(image, first[2])]


@final
class RecoverMasks(_AbstractMasks):
    """g for party 0, b~ in shares, and g b~ for party 1."""

    def samples(self) -> tuple[Sequence[Form], Sequence[Form]]:
        """Return g, b~0; b~1."""
        return [*self.group, self.x], [self.x]

    def correct(self, first: Arrays, second: Arrays) -> Arrays:
        """Return g (b~0 + b~1)."""
        *g, b = first
        return [self.acting.act(g, integers(self.modulus).add(b, second[0]))]


@final
@dataclass(frozen=True)
class BitMasks(AbstractCorrelation):
    """Bits u over Z/2 and the same bits over Z/m, both in shares."""

    modulus: int
    batch: Shape

    def samples(self) -> tuple[Sequence[Form], Sequence[Form]]:
        """Return u0, c0; u1."""
        return [(BIT, self.batch), (integers(self.modulus), self.batch)], [(BIT, self.batch)]

    def corrections(self) -> Sequence[Form]:
        """Return the form of c1."""
        return [(integers(self.modulus), self.batch)]

    def correct(self, first: Arrays, second: Arrays) -> Arrays:
        """Return c1 = (u0 xor u1) - c0."""
        module = integers(self.modulus)
        return [module.subtract(module.reduce(first[0] ^ second[0]), first[1])]


def action(party: Party, acting: AbstractAbelianAction, name: str, operand: Elements) -> Elements:
    """Return a share of `g x`, where party 0 knows g and party 1 knows x.

    One round. Online log|A| + log|G| bits, offline log|A|.

    Args:
        party: who runs it.
        acting: G and A.
        name: the action's key in `ACTIONS`.
        operand: g `(...)` for party 0, x `(..., count)` for party 1.
    """
    module, indices = acting.module, acting.indices
    batch = operand.shape if party.index == 0 else operand.shape[:-1]
    with party.protocol("action"):
        masks = party.deal(ActionMasks(name, module.modulus, acting.count, batch))
        if party.index == 0:
            h = indices.subtract(operand, masks[0])
            (d,) = party.exchange([(indices, h)], [(module, (*batch, acting.count))])
            return module.add(acting.act([operand], d), acting.act([h], masks[1]))
        (h,) = party.exchange([(module, module.subtract(operand, masks[0]))], [(indices, batch)])
        return acting.act([h], masks[1])


def cross_action(party: Party, acting: AbstractAbelianAction, name: str, g: Elements, x: Elements) -> Elements:
    """Return a share of `g x` for shares of g `(...)` and x `(..., count)`.

    One round. Online 2 (log|A| + log|G|) bits, offline log|A|.
    """
    module, indices = acting.module, acting.indices
    with party.protocol("cross_action"):
        g_mask, x_mask, y = party.deal(CrossMasks(name, module.modulus, acting.count, g.shape))[:3]
        h = indices.subtract(g, g_mask)
        # Each acts with its own factor on its own masked share, so the other's factor completes the product.
        z = acting.act([g], module.subtract(x, x_mask))
        other_h, other_z = party.swap((indices, h), (module, z))
    return module.add(acting.act([g], other_z), acting.act([indices.add(h, other_h)], y))


def recover(party: Party, acting: AbstractAction, name: str, b: Elements) -> Group:
    """Return a uniform g to party 0 and `[g b]` to party 1, who learns the orbit of b and nothing else.

    Two rounds. Online 2 log|A| bits, offline log|A|.

    Args:
        party: who runs it.
        acting: G and A.
        name: the action's key in `ACTIONS`.
        b: share `(..., count)`.
    """
    module, form = acting.module, (acting.module, b.shape)
    with party.protocol("recover"):
        masks = party.deal(RecoverMasks(name, module.modulus, acting.count, b.shape[:-1]))
        if party.index == 0:
            *g, b_mask = masks
            (other,) = party.exchange([], [form])
            masked = module.add(module.subtract(b, b_mask), other)
            party.exchange([(module, acting.act(g, masked))], [])
            return g
        party.exchange([(module, module.subtract(b, masks[0]))], [])
        (w,) = party.exchange([], [form])
        return [module.add(w, masks[1])]


def module_transform(party: Party, module: AbstractIntegers, bits: Elements) -> Elements:
    """Return a share over Z/m of bits that are shared over Z/2.

    One round. Online 2 bits each, offline log m: with a random bit u in both modules, z = b xor u is opened, and
    b = z + (1 - 2 z) u.
    """
    with party.protocol("module_transform"):
        u, c = party.deal(BitMasks(module.modulus, bits.shape))
        (z,) = party.open((BIT, bits ^ u))
    signed = np.where(z != 0, module.negate(c), c)
    return module.add(signed, module.reduce(z)) if party.index == 0 else signed


def first_nonzero(party: Party, field: Residues, bits: Elements) -> Elements:
    """Return a share over Z/N of the place of the first 1 among bits `(..., N)` that are shared over a field.

    Two rounds, those of `recover`. v_k = z_1 + .. + z_k - 2 z_k + 1 is 0 at the first 1 and nowhere else, so the orbit
    of v under shifts and multipliers is the same for all bits: party 1 sees a 0 at a uniform place.

    Args:
        party: who runs it.
        field: Z/p, p at least N + 2.
        bits: share of the bits, at least one of which is 1.
    """
    count = bits.shape[-1]
    v = field.reduce(np.cumsum(bits, axis=-1, dtype=np.int64) - 2 * bits.astype(np.int64) + (party.index == 0))
    result = recover(party, ShiftScale(field.modulus, count), "shift_scale", v)
    if party.index == 0:
        return result[0]
    return integers(count).reduce(np.argmin(result[0], axis=-1))  # the only 0 is the smallest


def less(party: Party, value: Elements, width: int, *, or_equal: bool = False) -> Elements:
    """Return a share over Z/2 of `x < y`, or of `x <= y`, where party 0 knows x and party 1 knows y.

    Four rounds. With N = width + 1 and a prime p >= width + 3: online 2 width + 2 N ceil(log p) + N + ceil(log N) bits,
    offline (width + N) ceil(log p) + N.

    Args:
        party: who runs it.
        value: x or y, unsigned, below 2^width.
        width: bits of the numbers, 1 to 63.
        or_equal: compare by <=.
    """
    count, field = width + 1, Residues(next_prime(width + 3))
    places = np.arange(width - 1, -1, -1, dtype=value.dtype)
    bits = (value[..., None] >> places & value.dtype.type(1)).astype(np.uint8)  # most significant first
    with party.protocol("less"):
        z = module_transform(party, field, bits)
        guard = np.full((*value.shape, 1), party.index == 0, np.uint8)
        f = first_nonzero(party, field, np.concatenate([z, guard], axis=-1))
        acting = Shift(2, count)
        if party.index == 0:
            return action(party, acting, "shift", f)[..., 0]
        # The first place where x and y differ has the answer: y's bit there. Equal numbers differ at the guard.
        y = np.concatenate([bits, np.full((*value.shape, 1), or_equal, np.uint8)], axis=-1)
        return action(party, acting, "shift", shifted(y, f))[..., 0]


def next_prime(lowest: int) -> int:
    """Return the smallest prime that is at least `lowest`."""
    return next(p for p in range(max(lowest, 2), 2 * lowest + 2) if all(p % q for q in range(2, p)))


def reflect(party: Party, module: AbstractIntegers, sign: Elements, x: Elements) -> Elements:
    """Return a share of `(-1)^sign x`, for a bit `(...)` shared over Z/2 and a share of x `(..., count)`."""
    return cross_action(party, Sign(module.modulus, x.shape[-1]), "sign", sign, x)

"""Reply validation: the rules that a reply must keep before a strategy sees it, all in one place.

The expected form of a reply is the strategy's and the server's own, never what other clients send, so that no client
decides whether another's reply counts.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from flwr.app import Message

from fedbayes.arrays import Arrays, non_finite, norm
from fedbayes.comm.messages import ClientUpdate, read_personal, read_update
from fedbayes.errors import require_number
from fedbayes.metrics.offsite import EMULATED

LATE, FAILED, INVALID = "late", "failed", "invalid"


@final
@dataclass(frozen=True)
class Rejection:
    """Why a client's reply is not used.

    Attributes:
        kind: `late` without a reply, `failed` for one that says so, `invalid` for one that breaks a rule.
        reason: a short sentence.
        details: further lines, such as the traceback of a client's exception.
    """

    kind: str
    reason: str
    details: tuple[str, ...] = ()


@final
@dataclass(frozen=True)
class PartitionSizes:
    """Numbers of classes and domains, and of each client's images by split; empty where only clients know theirs."""

    classes: int
    domains: int
    images: Mapping[str, Sequence[int]]

    def of(self, split: str, partition: int) -> int | None:
        """Return how many images of a split a client has; None where that is not known."""
        return self.images[split][partition] if split in self.images else None


@final
class ReplyValidator:
    """Decodes replies and rejects those that would cost a result.

    Args:
        max_norm: largest Euclidean norm of all floating-point numbers of a reply together; a larger one comes from a
            client that has diverged or is malicious, and would decide an average alone.
    """

    def __init__(self, max_norm: float) -> None:
        self._max_norm = require_number("simulation.max_norm", max_norm, 0, open_low=True)

    def read(self, partition: int, reply: Message | None, images: int | None = None) -> ClientUpdate | Rejection:
        """Return the update in a client's reply, or why it is rejected; `images` is how many it has, if known."""
        if reply is None:
            return Rejection(LATE, "no reply in time")
        if reply.has_error():
            return Rejection(FAILED, first_line(reply), tuple((reply.error.reason or "").splitlines()[1:]))
        try:
            update = read_update(partition, reply.content)
        except ValueError as error:
            return Rejection(INVALID, str(error))
        if images is not None and update.num_examples > images:
            return Rejection(INVALID, f"it claims num_examples={update.num_examples}, but the client has {images}")
        if (excess := self.excess(update.arrays)) is not None:
            return Rejection(INVALID, excess)
        # A finite metric may still dominate a mean.
        wrong = [name for name, value in update.metrics.items() if not abs(value) <= self._max_norm]
        if wrong:
            return Rejection(INVALID, f"metric {wrong[0]} is {update.metrics[wrong[0]]}")
        return update

    def read_personal(self, reply: Message) -> Arrays | Rejection:
        """Return the personal parameters that a client has handed out, or why they are rejected."""
        if reply.has_error():
            return Rejection(FAILED, first_line(reply))
        try:
            arrays = read_personal(reply.content)
        except ValueError as error:
            return Rejection(INVALID, str(error))
        return arrays if (excess := self.excess(arrays)) is None else Rejection(INVALID, excess)

    def excess(self, arrays: Arrays) -> str | None:
        """Say what is infinite or too large in arrays; None for nothing."""
        length = norm(arrays.values())
        if not math.isfinite(length) and (name := non_finite(arrays)) is not None:
            return f"{name} is not finite"
        if length > self._max_norm:
            return f"its norm is {length:.3g}, above simulation.max_norm={self._max_norm:g}"
        return None


def form_problem(update: ClientUpdate, expected: Arrays) -> str | None:
    """Say where a training reply differs from the expected names, shapes and types; None where it does not."""
    for name, like in expected.items():
        array = update.arrays.get(name)
        if array is None:
            return f"it lacks {name}, expected {like.shape} {like.dtype}"
        if (array.shape, array.dtype) != (like.shape, like.dtype):
            return f"{name} is {array.shape} {array.dtype}, expected {like.shape} {like.dtype}"
    if more := [name for name in update.arrays if name not in expected]:
        return f"it has {more[0]}, which the strategy's expected_reply lacks"
    return None


def evaluation_problem(update: ClientUpdate, sizes: PartitionSizes) -> str | None:
    """Say why the arrays of a reply cannot be predictions of the client's images; None if they may be."""
    floats, highest_entropy = ("float32", "float64"), math.log(sizes.classes) + 1e-3  # rounding included
    for name, types, shape, low, high in (
        ("probabilities", floats, (sizes.classes,), 0.0, 1.001),
        ("expected_entropy", floats, (), -1e-3, highest_entropy),
        ("labels", ("int64",), (), 0, sizes.classes - 1),
        ("domains", ("int64",), (), 0, sizes.domains - 1),
    ):
        array = update.arrays.get(name)
        if array is None:
            return f"it lacks {name}"
        if str(array.dtype) not in types or array.shape != (expected := (update.num_examples, *shape)):
            return f"{name} is {array.dtype} {array.shape}, expected {types[0]} {expected}"
        if not low <= array.min() <= array.max() <= high:
            return f"{name} goes from {array.min():g} to {array.max():g}, expected {low:g} to {high:g}"
    emulated = update.arrays.get(EMULATED)
    if emulated is not None and (
        emulated.shape != update.arrays["probabilities"].shape or not 0.0 <= emulated.min() <= emulated.max() <= 1.001
    ):
        return f"{EMULATED} of shape {emulated.shape} are no probabilities of {sizes.classes} classes"
    for name, array in update.arrays.items():
        if array.shape[:1] != (update.num_examples,):
            return f"{name} has shape {array.shape} for {update.num_examples} images"
    return None


def first_line(reply: Message) -> str:
    """Return the first line of why a client failed."""
    if not reply.error.reason:
        return "error without a reason"
    line = reply.error.reason.splitlines()[0]
    flowers = re.match(r"<class '(?:\w+\.)*(\w+)'>:<['\"](.*)", line)  # how Flower tells of a lost worker
    return line if flowers is None else f"{flowers[1]}: {flowers[2]}".rstrip(">'\"")

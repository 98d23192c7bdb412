"""Which answers may be used: the rules that a reply must keep before any strategy sees it."""

import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from flwr.app import Message

from fedbayes.arrays import Arrays, non_finite, norm
from fedbayes.comm.messages import ClientUpdate, read_personal, read_update
from fedbayes.errors import require_number

log = logging.getLogger("fedbayes")

LATE, FAILED, INVALID = "late", "failed", "invalid"

ROUNDING = 1e-3
"""What probabilities and entropies may be beside the truth."""
FLOATS = ("float32", "float64")
PREDICTIONS: dict[str, tuple[tuple[str, ...], int]] = {
    "probabilities": (FLOATS, 2),
    "expected_entropy": (FLOATS, 1),
    "labels": (("int64",), 1),
    "domains": (("int64",), 1),
}
"""Arrays of an evaluation: types and dimensions."""

Form = tuple[tuple[str, tuple[int, ...], str], ...]
"""Names, shapes and types of arrays."""


@final
@dataclass(frozen=True)
class Refusal:
    """Why a client's answer is not used.

    Attributes:
        kind: `late` without an answer, `failed` for one that says so, `invalid` for one that cannot be used.
        reason: a short sentence.
    """

    kind: str
    reason: str


@final
@dataclass(frozen=True)
class Holdings:
    """What the server knows beforehand of the images that clients answer for.

    Attributes:
        classes: of their labels.
        domains: that they can come from.
        images: by split, how many each client has, in the order of partitions; empty where clients alone know.
    """

    classes: int
    domains: int
    images: Mapping[str, Sequence[int]]

    def of(self, split: str, partition: int) -> int | None:
        """How many images of a split a client has; None where that is not known."""
        return self.images[split][partition] if split in self.images else None


@final
class Guard:
    """Reads replies and refuses those that would cost a result.

    Args:
        max_norm: largest Euclidean norm of all floating-point numbers of a reply together; what is larger comes from a
            client that has diverged or lies, and would decide an average alone.

    Raises:
        ConfigError: if it is not positive.
    """

    def __init__(self, max_norm: float) -> None:
        self._max_norm = require_number("simulation.max_norm", max_norm, 0, open_low=True)

    def read(self, partition: int, reply: Message | None, images: int | None = None) -> ClientUpdate | Refusal:
        """The update in a reply, or why it may not be used.

        Args:
            partition: whose it is.
            reply: what came; None for nothing.
            images: that the client has of the split it was asked about; None if that is not known.
        """
        if reply is None:
            return Refusal(LATE, "no answer in time")
        if reply.has_error():
            log.info("client %d: %s", partition, reply.error.reason)
            return Refusal(FAILED, first_line(reply))
        try:
            update = read_update(partition, reply.content)
        except ValueError as error:
            return Refusal(INVALID, str(error))
        if images is not None and update.num_examples > images:
            return Refusal(INVALID, f"it rests on {update.num_examples} images, says the client, which has {images}")
        if (excess := self.excess(update.arrays)) is not None:
            return Refusal(INVALID, excess)
        # A finite one may still drown all others in a mean.
        odd = [name for name, value in update.metrics.items() if not abs(value) <= self._max_norm]
        if odd:
            return Refusal(INVALID, f"metric {odd[0]} is {update.metrics[odd[0]]}")
        return update

    def read_personal(self, reply: Message) -> Arrays | Refusal:
        """What a client keeps to itself, as it has handed it out, or why it may not be used."""
        if reply.has_error():
            return Refusal(FAILED, first_line(reply))
        try:
            arrays = read_personal(reply.content)
        except ValueError as error:
            return Refusal(INVALID, str(error))
        excess = self.excess(arrays)
        return arrays if excess is None else Refusal(INVALID, excess)

    def excess(self, arrays: Arrays) -> str | None:
        """What is infinite or too large in arrays; None for nothing."""
        length = norm(arrays.values())
        if not math.isfinite(length) and (bad := non_finite(arrays)) is not None:
            return f"{bad} is not finite"
        if length > self._max_norm:
            return f"its norm is {length:.3g}, above simulation.max_norm={self._max_norm:g}"
        return None


def misshapen(
    updates: Sequence[ClientUpdate], known: Sequence[Sequence[object]], like: Callable[[], Arrays]
) -> tuple[dict[int, Refusal], list[list[object]]]:
    """Refusals of trained updates whose arrays have other names, shapes or types than they should.

    Args:
        updates: answers to the same question.
        known: the form that counts, see `form_of`; empty if there is none yet.
        like: gives what an answer has at least. Of the forms that have all of it, in its shapes and types, the one that
            most of several answers have counts; without one, that with nothing beside it.

    Returns:
        Refusals by partition, and the form that later answers must have, too: empty while several have not agreed on
        one, so that nobody decides alone whose answers count.
    """
    forms = {update.partition: _form(update.arrays) for update in updates}
    usual: Form = tuple((str(name), tuple(shape), str(dtype)) for name, shape, dtype in known)  # type: ignore[arg-type]
    settled = bool(known)
    if not known:
        least = _form(like())
        count = Counter(form for form in forms.values() if set(least) <= set(form))
        usual, most = next(iter(count.most_common(1)), (least, 0))
        settled = most > max([1, *(number for form, number in count.items() if form != usual)])
        if not settled:
            usual = next((form for form in count if set(form) == set(least)), least)
    refused = {partition: _difference(form, usual) for partition, form in forms.items() if form != usual}
    return refused, [[name, list(shape), dtype] for name, shape, dtype in usual] if settled else []


def form_of(arrays: Mapping[str, np.ndarray]) -> list[list[object]]:
    """Names, shapes and types of arrays, in JSON's types."""
    return [[name, list(shape), dtype] for name, shape, dtype in _form(arrays)]


def outlandish(personal: Mapping[int, Arrays]) -> dict[int, Refusal]:
    """Refusals of what clients keep to themselves in another form than most; of all that is not nothing on a tie."""
    forms = {partition: _form(arrays) for partition, arrays in personal.items() if arrays}
    (usual, most), (_, second) = [*Counter(forms.values()).most_common(2), ((), 0), ((), 0)][:2]
    if most == second:
        return {partition: Refusal(INVALID, "clients disagree in its form") for partition in forms}
    return {partition: _difference(form, usual) for partition, form in forms.items() if form != usual}


def unreadable(updates: Sequence[ClientUpdate], holdings: Holdings | None = None) -> dict[int, Refusal]:
    """Refusals of evaluations whose numbers cannot be predictions of its images, or that lack what most others have.

    Args:
        updates: answers to the same question.
        holdings: what is known of all images; None for nothing.

    Returns:
        By partition.
    """
    wrong = {update.partition: _contradiction(update, holdings) for update in updates}
    found = {partition: Refusal(INVALID, what) for partition, what in wrong.items() if what is not None}
    rest = [update for update in updates if update.partition not in found]
    forms = {u.partition: _form({name: array[:0] for name, array in u.arrays.items()}) for u in rest}
    said = {update.partition: tuple(sorted(update.metrics)) for update in rest}
    usual = max(forms.values(), key=Counter(forms.values()).__getitem__, default=())
    metrics = max(said.values(), key=Counter(said.values()).__getitem__, default=())
    for partition, form in forms.items():
        if form != usual:
            found[partition] = _difference(form, usual)
        elif said[partition] != metrics:
            odd = ", ".join(sorted(set(said[partition]) ^ set(metrics)))
            found[partition] = Refusal(INVALID, f"its metrics differ from most clients' in {odd}")
    return found


def _contradiction(update: ClientUpdate, holdings: Holdings | None) -> str | None:
    """What is wrong with an evaluation by itself."""
    for name, array in update.arrays.items():
        if array.ndim == 0 or len(array) != update.num_examples:
            return f"{name} has shape {array.shape} for {update.num_examples} images"
    for name, (types, dimensions) in PREDICTIONS.items():
        if name not in update.arrays:
            return f"it has no {name}"
        array = update.arrays[name]
        if str(array.dtype) not in types or array.ndim != dimensions or array.size == 0:
            return f"{name} is {array.dtype} {array.shape}"
    probabilities, entropy, labels, domains = (update.arrays[name] for name in PREDICTIONS)
    classes = probabilities.shape[1]
    if holdings is not None and classes != holdings.classes:
        return f"it has probabilities of {classes} classes, and there are {holdings.classes}"
    if probabilities.min() < 0 or probabilities.max() > 1 + ROUNDING:
        return f"its probabilities go from {probabilities.min()} to {probabilities.max()}"
    sums = probabilities.sum(1, dtype=np.float64)
    if abs(sums - 1).max() > ROUNDING:
        return f"its probabilities of an image sum to {sums[abs(sums - 1).argmax()]:g}"
    if not -ROUNDING <= entropy.min() <= entropy.max() <= math.log(classes) + ROUNDING:
        return f"its expected entropies go from {entropy.min():g} to {entropy.max():g} nats for {classes} classes"
    if not 0 <= labels.min() <= labels.max() < classes:
        return f"its labels go from {labels.min()} to {labels.max()} for {classes} classes"
    if domains.min() < 0 or (holdings is not None and domains.max() >= holdings.domains):
        known = "" if holdings is None else f" for {holdings.domains} domains"
        return f"its domains go from {domains.min()} to {domains.max()}{known}"
    return None


def first_line(reply: Message) -> str:
    """Why a client did not answer, shortly."""
    if not reply.error.reason:
        return "error without a reason"
    line = reply.error.reason.splitlines()[0]
    flowers = re.match(r"<class '(?:\w+\.)*(\w+)'>:<['\"](.*)", line)  # how Flower tells of a lost worker
    return line if flowers is None else f"{flowers[1]}: {flowers[2]}".rstrip(">'\"")


def _form(arrays: Mapping[str, np.ndarray]) -> Form:
    return tuple((name, array.shape, str(array.dtype)) for name, array in arrays.items())


def _difference(form: Form, usual: Form) -> Refusal:
    """What one has and the others have not."""
    here, there = sorted(set(form) - set(usual)), sorted(set(usual) - set(form))
    if not here and not there:
        return Refusal(INVALID, "its arrays come in another order than most clients'")
    mine = ", ".join(f"{name} {shape} {dtype}" for name, shape, dtype in here[:2]) or "nothing"
    theirs = ", ".join(f"{name} {shape} {dtype}" for name, shape, dtype in there[:2]) or "nothing"
    return Refusal(INVALID, f"it has {mine} where most clients have {theirs}")

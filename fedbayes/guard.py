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

from fedbayes.errors import require_number
from fedbayes.messages import Arrays, ClientUpdate, read_update
from fedbayes.named_arrays import non_finite
from fedbayes.steps import norm

log = logging.getLogger("fedbayes")

LATE, FAILED, INVALID = "late", "failed", "invalid"

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

    def read(self, partition: int, reply: Message | None) -> ClientUpdate | Refusal:
        """The update in a reply, or why it may not be used."""
        if reply is None:
            return Refusal(LATE, "no answer in time")
        if reply.has_error():
            log.info("client %d: %s", partition, reply.error.reason)
            return Refusal(FAILED, first_line(reply))
        try:
            update = read_update(partition, reply.content)
        except ValueError as error:
            return Refusal(INVALID, str(error))
        length = norm(update.arrays.values())
        if not math.isfinite(length) and (bad := non_finite(update.arrays)) is not None:
            return Refusal(INVALID, f"{bad} is not finite")
        if length > self._max_norm:
            return Refusal(INVALID, f"its norm is {length:.3g}, above simulation.max_norm={self._max_norm:g}")
        # A finite one may still drown all others in a mean.
        odd = [name for name, value in update.metrics.items() if not abs(value) <= self._max_norm]
        if odd:
            return Refusal(INVALID, f"metric {odd[0]} is {update.metrics[odd[0]]}")
        return update


def misshapen(
    updates: Sequence[ClientUpdate], known: Sequence[Sequence[object]], like: Callable[[], Arrays]
) -> dict[int, Refusal]:
    """Refusals of trained updates whose arrays have other names, shapes or types than they should.

    Args:
        updates: answers to the same question.
        known: the form of an earlier round's, see `form_of`; without one the form that is most frequent counts.
        like: gives what the server has. An array of that name must have its shape and type, and of forms that are
            equally frequent, the one that has more of it counts.

    Returns:
        By partition.
    """
    forms = {update.partition: _form(update.arrays) for update in updates}
    usual: Form = tuple((str(name), tuple(shape), str(dtype)) for name, shape, dtype in known)  # type: ignore[arg-type]
    if not known:
        servers = {name: (shape, dtype) for name, shape, dtype in _form(like())}
        possible = [
            form
            for form in forms.values()
            if all(servers.get(name, (shape, dtype)) == (shape, dtype) for name, shape, dtype in form)
        ]
        count = Counter(possible)
        shared = {form: sum(name in servers for name, _, _ in form) for form in count}
        usual = max(count, key=lambda form: (count[form], shared[form]), default=tuple(_form(like())))
    return {partition: _difference(form, usual) for partition, form in forms.items() if form != usual}


def form_of(arrays: Mapping[str, np.ndarray]) -> list[list[object]]:
    """Names, shapes and types of arrays, in JSON's types."""
    return [[name, list(shape), dtype] for name, shape, dtype in _form(arrays)]


def unreadable(updates: Sequence[ClientUpdate]) -> dict[int, Refusal]:
    """Refusals of evaluations that lack what most have, or whose numbers cannot be predictions of its images."""
    forms = {u.partition: _form({name: array[:0] for name, array in u.arrays.items() if array.ndim}) for u in updates}
    said = {update.partition: tuple(sorted(update.metrics)) for update in updates}
    usual = max(forms.values(), key=Counter(forms.values()).__getitem__, default=())
    metrics = max(said.values(), key=Counter(said.values()).__getitem__, default=())
    found = {partition: _difference(form, usual) for partition, form in forms.items() if form != usual}
    for update in updates:
        if update.partition in found:
            continue
        what = _contradiction(update)
        if what is None and said[update.partition] != metrics:
            odd = sorted(set(said[update.partition]) ^ set(metrics))
            what = f"its metrics differ from most clients' in {', '.join(odd)}"
        if what is not None:
            found[update.partition] = Refusal(INVALID, what)
    return found


def _contradiction(update: ClientUpdate) -> str | None:
    """What is wrong with an evaluation by itself."""
    for name, array in update.arrays.items():
        if array.ndim == 0 or len(array) != update.num_examples:
            return f"{name} has shape {array.shape} for {update.num_examples} images"
    probabilities, labels = update.arrays.get("probabilities"), update.arrays.get("labels")
    if probabilities is None or labels is None or probabilities.ndim != 2:
        return "it has no probabilities and labels"
    if probabilities.min() < 0 or probabilities.max() > 1 + 1e-3:
        return f"its probabilities go from {probabilities.min()} to {probabilities.max()}"
    if not 0 <= labels.min() <= labels.max() < probabilities.shape[1]:
        return f"its labels go from {labels.min()} to {labels.max()} for {probabilities.shape[1]} classes"
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

r"""pFedPG's server: a generator of client-specific prompts (Yang, Wang & Wang, ICCV 2023, arXiv 2308.15367).

With a basis of K prompts `P_base (K, l)`, a descriptor `d_n (K, l)` of client n and attention of width `l_k`, it sends

    P_n = P_base + softmax(d_n W_Q (P_base W_K)^T / sqrt(l_k)) (P_base W_V) W_O

The client trains P_n together with a head of its own, which stays with it, and returns P'_n. Its loss falls along
`P'_n - P_n`, so the generator's parameters phi = (P_base, W, d) descend by the chain rule,

    phi <- phi + lr sum_n (dP_n / dphi)^T (P'_n - P_n),

a step of gradient descent on `1/2 sum_n |P_n(phi) - P'_n|^2`. Ours are, for federations of few rounds: several `steps`
of it in one round, towards the same P'_n; halving `lr` for the rest of them where a step would lead away; and the mean
over n in place of the sum where clients share a parameter, so that `lr` does not depend on their number. Ours are also
details that the paper leaves open: a descriptor has a row for each prompt; scores start of order one, and W_O at zero,
so that the method starts as VPT does; a client that never trained is sent the prompts of the mean trained descriptor.
"""

import math
from collections.abc import Sequence
from typing import final

import numpy as np
import torch
from torch import Tensor

from fedbayes.arrays import Arrays
from fedbayes.comm.messages import ClientUpdate
from fedbayes.errors import ConfigError, require_number, require_whole
from fedbayes.models.prompts.base import BASE as PROMPTS
from fedbayes.seeding import generator as seeded
from strategies.base import SERVER, AbstractStrategy, sendable, weighted_mean

LEARNT = tuple(SERVER + name for name in ("basis", "query", "key", "value", "out"))
BASIS, DESCRIPTORS, TRAINED = LEARNT[0], SERVER + "descriptors", SERVER + "trained"


@final
class PFedPG(AbstractStrategy):
    """Generates each client's prompts, and averages whatever else clients share.

    `seed` keys the initial weights; `lr` and `steps` are of the server's descent in a round, `width` is l_k. If there
    are no prompts to generate, the first message is a ConfigError.
    """

    def __init__(self, *, clients: int, seed: int, lr: float, steps: int, width: int) -> None:
        super().__init__()
        self.clients, self.seed = require_whole("clients", clients, 1), require_whole("seed", seed, 0)
        self.lr = require_number("method.strategy.lr", lr, 0, open_low=True)
        self.steps = require_whole("method.strategy.steps", steps, 1)
        self.width = require_whole("method.strategy.width", width, 1)

    def outgoing(self, server_round: int, partition: int) -> Arrays:  # noqa: ARG002
        """Return the prompts of the client, and what it shares beside them."""
        self._start()
        if self.shared[TRAINED][partition]:
            return {**sendable(self.shared), PROMPTS: self._prompts(self.shared[DESCRIPTORS][partition])}
        return {**sendable(self.shared), PROMPTS: self._mean_prompts()}

    def aggregate(self, updates: Sequence[ClientUpdate]) -> None:
        """Descend towards the prompts that came back; the prompts in `shared` are those of the mean descriptor."""
        self._start()
        partitions = [update.partition for update in updates]
        returned = np.stack([update.arrays[PROMPTS].reshape(self.shared[BASIS].shape) for update in updates])
        descriptors, trained = self.shared[DESCRIPTORS].copy(), self.shared[TRAINED].copy()
        learnt, descriptors[partitions] = descend(self.shared, descriptors[partitions], returned, self.lr, self.steps)
        trained[partitions] = True
        self.shared = {**weighted_mean(updates), **learnt, DESCRIPTORS: descriptors, TRAINED: trained}
        self.shared[PROMPTS] = self._mean_prompts()

    def _prompts(self, descriptor: np.ndarray) -> np.ndarray:
        """Return the prompts of a descriptor, shaped as clients have them."""
        prompts: np.ndarray = generate(self.shared, descriptor[None]).reshape(self.shared[PROMPTS].shape)
        return prompts

    def _mean_prompts(self) -> np.ndarray:
        """Return the prompts of the mean descriptor of trained clients; before the first round, of all."""
        trained, descriptors = self.shared[TRAINED], self.shared[DESCRIPTORS]
        rows = descriptors[trained] if trained.any() else descriptors
        return self._prompts(np.asarray(rows.mean(0, dtype=np.float64), dtype=rows.dtype))

    def _start(self) -> None:
        """Add the initial parameters around the prompts that clients start from, once."""
        if DESCRIPTORS in self.shared:
            return
        base = self.shared.get(PROMPTS, np.zeros(0))
        if base.size == 0:
            raise ConfigError(
                f"pFedPG generates {PROMPTS}, but clients share none; use generator.kind=fixed, prompts.length=1 "
                "or more, and leave generator out of method.client.personal."
            )
        basis = base.reshape(-1, base.shape[-1])
        size, rng = basis.shape[1], seeded(self.seed, "prompt generator")

        def normal(*shape: int) -> np.ndarray:
            return torch.randn(shape, generator=rng, dtype=torch.float64).numpy()

        query, key, value = normal(3, size, self.width) / math.sqrt(size)
        key = key / np.sqrt(np.mean(np.square(basis, dtype=np.float64)))  # prompts are short, and scores shall not be
        weights = [basis, query, key, value, np.zeros((self.width, size)), normal(self.clients, *basis.shape)]
        start = dict(zip((*LEARNT, DESCRIPTORS), (array.astype(base.dtype) for array in weights), strict=True))
        self.shared = {**self.shared, **start, TRAINED: np.zeros(self.clients, dtype=bool)}


def generate(learnt: Arrays, descriptors: np.ndarray) -> np.ndarray:
    """Return P_n for descriptors d_n, both `(n, K, l)`, in the basis's own precision.

    `learnt` has, in the order of `LEARNT`, P_base `(K, l)`, W_Q, W_K and W_V `(l, l_k)`, W_O `(l_k, l)`.
    """
    arrays = [*(learnt[name] for name in LEARNT), descriptors]
    prompts = _attend(*(torch.from_numpy(array).double() for array in arrays))
    return np.asarray(prompts.numpy(), dtype=learnt[BASIS].dtype)


def descend(
    learnt: Arrays, descriptors: np.ndarray, returned: np.ndarray, lr: float, steps: int
) -> tuple[Arrays, np.ndarray]:
    """Descend on `1/2 |P_n - P'_n|^2`: in d_n for its own client, in all else for the mean over clients.

    The clients are those that returned P'_n, `(n, K, l)`. The learning rate is halved, for the steps that are left,
    whenever a step would not come closer.
    """
    arrays = [*(learnt[name] for name in LEARNT), descriptors]
    scales = [1 / len(descriptors)] * len(LEARNT) + [1.0]
    values, goal = [torch.from_numpy(array).double() for array in arrays], torch.from_numpy(returned).double()

    def distance(values: Sequence[Tensor]) -> Tensor:
        return (_attend(*values) - goal).square().sum() / 2

    for _ in range(steps):
        leaves = [value.requires_grad_() for value in values]
        now = distance(leaves)
        slopes = torch.autograd.grad(now, leaves)
        with torch.no_grad():
            while True:
                values = [leaf - lr * scale * slope for leaf, scale, slope in zip(leaves, scales, slopes, strict=True)]
                if distance(values) <= now or lr == 0:
                    break
                lr /= 2  # a step too far leads away, in the end to infinity, and takes every later round with it
    after = [value.detach().numpy().astype(array.dtype) for value, array in zip(values, arrays, strict=True)]
    return dict(zip(LEARNT, after[:-1], strict=True)), after[-1]


def _attend(basis: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, descriptors: Tensor) -> Tensor:
    """Return P_n by the formula of the module docstring."""
    scores = descriptors @ query @ (basis @ key).mT / math.sqrt(key.shape[1])  # (n, K, K)
    return basis + scores.softmax(-1) @ (basis @ value) @ out

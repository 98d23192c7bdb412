"""Local training of a cohort, block after block: the same for every client that learns by gradients."""

from collections.abc import Callable, Mapping, Sequence
from itertools import islice

import torch
from torch import Tensor

from clients.inputs import Inputs, InputSource
from fedbayes.data.federated import FederatedData
from fedbayes.inference.elbo import Objective
from fedbayes.optim.local_training import LocalTraining
from fedbayes.seeding import Streams


def local_streams(seed: int, server_round: int, partitions: Sequence[int], lead: str = "") -> tuple[Streams, ...]:
    """The cohort's streams for the order of images, the noise of the objective, and the changes of images.

    Args:
        seed: of the run.
        server_round: keys the draws.
        partitions: the cohort.
        lead: begins the names of the purposes; two trainings of one client in a round differ in it.
    """
    return tuple(Streams(seed, server_round, partitions, lead + what) for what in ("order", "noise", "augment"))


def fit_blocks(
    optim: LocalTraining,
    data: FederatedData,
    inputs: InputSource,
    parameters: Mapping[str, Tensor],
    objective: Callable[[Inputs], Objective],
    partitions: Sequence[int],
    order: Streams,
    changes: Streams,
    steps: int | None = None,
) -> dict[str, Tensor]:
    """Train parameters in place on the cohort's training images.

    Args:
        optim: epochs, batches and, for a round, blocks.
        data: whose training images.
        inputs: of those.
        parameters: by name, each `(C, ...)`.
        objective: losses of a batch, one per client.
        partitions: the cohort.
        order: shuffles each client's images.
        changes: draws the augmentation.
        steps: of an adaptation before an evaluation, which trains everything, the same number for all clients; None
            for a round's local epochs.

    Returns:
        Each term of the objective, `(C,)`, its mean over blocks.
    """
    epochs, size = optim.local_epochs if steps is None else steps, optim.batch_size
    taken = data.count_steps(partitions, epochs, size) if steps is None else [steps] * len(partitions)
    found = [
        optim.fit(
            optim.block(parameters, parts),
            (inputs.train(batch, changes) for batch in islice(data.epochs(partitions, epochs, size, order), steps)),
            objective,
            taken,
        )
        for parts in (optim.blocks if steps is None else [()])
    ]
    return {name: torch.stack([one[name] for one in found]).mean(0) for name in found[0]}

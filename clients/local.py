"""Local training of a cohort, block after block: the same for every client that learns by gradients."""

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from itertools import islice

import torch
from torch import Tensor

from clients.base import AbstractClient
from clients.inputs import Inputs
from fedbayes.comm.messages import ClientRequest
from fedbayes.data.federated import FederatedData
from fedbayes.errors import ConfigError
from fedbayes.inference.elbo import Objective
from fedbayes.optim.local_training import LocalTraining
from fedbayes.seeding import Streams


def fit_cohort(
    client: AbstractClient,
    optim: LocalTraining,
    requests: Sequence[ClientRequest],
    parameters: Mapping[str, Tensor],
    objective: Callable[[Inputs, Streams], Objective],
    *,
    data: FederatedData | None = None,
    purpose: str = "",
    steps: int | None = None,
) -> dict[str, Tensor]:
    """Train parameters in place on the cohort's training images.

    Args:
        client: gives seed and inputs.
        optim: epochs, batches and, for a round, blocks.
        requests: of the cohort.
        parameters: by name, each `(C, ...)`.
        objective: losses of a batch, one per client, with noise from the given streams.
        data: whose training images are used; None for the client's.
        purpose: begins the names of the random streams; two trainings of a client in a round differ in it.
        steps: of an adaptation before an evaluation, which trains everything; None for a round's local epochs.

    Returns:
        Each term of the objective, `(C,)`, its mean over blocks.
    """
    data = client.data if data is None else data
    partitions, server_round = [request.partition for request in requests], requests[0].server_round
    order, noise, augment = (
        Streams(client.seed, server_round, partitions, purpose + name) for name in ("order", "noise", "augment")
    )
    epochs, size = optim.local_epochs if steps is None else steps, optim.batch_size
    taken = data.count_steps(partitions, epochs, size) if steps is None else [steps] * len(partitions)
    metrics = []
    for parts in optim.blocks if steps is None else [()]:
        batches = islice(data.epochs(partitions, epochs, size, order), steps)
        inputs = (client.inputs.train(batch, augment) for batch in batches)
        chosen = optim.block(parameters, parts)
        learners = client.model.learners(chosen)
        metrics.append(optim.fit(chosen, inputs, lambda batch: objective(batch, noise), taken, learners))
    return {name: torch.stack([block[name] for block in metrics]).mean(0) for name in metrics[0]}


def adaptation_steps(optim: LocalTraining, requests: Sequence[ClientRequest]) -> int:
    """Return the steps on training images before an evaluation: the requests' number, or `optim.finetune_steps`."""
    return optim.finetune_steps if requests[0].adapt is None else requests[0].adapt


def halved(optim: LocalTraining) -> LocalTraining:
    """Return the same training for half as many epochs; raise ConfigError if their number is odd."""
    if optim.local_epochs % 2:
        raise ConfigError(
            f"optim.local_epochs={optim.local_epochs} cannot be halved between the shared and the personal part; "
            "choose an even number."
        )
    half = copy(optim)
    half.local_epochs = optim.local_epochs // 2
    return half

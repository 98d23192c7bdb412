"""The clients of a finished run: what the server would send each of them next, and what each predicts with."""

from typing import Any, final

from fedbayes.arrays import Arrays
from fedbayes.comm.messages import ClientRequest
from fedbayes.errors import ConfigError
from fedbayes.server.strategy import ServerStrategy
from fedbayes.storage.checkpoint import Checkpoint


@final
class TrainedClients:
    """Gives the parameters that clients predict with after the last round, as in its evaluation.

    `shares_personal` is whether somebody who never trained may have the mean of the personal parameters.

    Raises:
        ConfigError: if the checkpoint's parameters are not those that the client starts from.
    """

    def __init__(
        self,
        client: Any,
        strategy: ServerStrategy,
        checkpoint: Checkpoint,
        *,
        finetune_steps: int,
        shares_personal: bool,
    ) -> None:
        for name, like in client.initial().items():
            array = checkpoint.server.get(name)
            if array is None or array.shape != like.shape:
                has = "lacks it" if array is None else f"has {array.shape}"
                raise ConfigError(f"{name} is {like.shape} but the checkpoint {has}; it is another configuration's.")
        strategy.restore(checkpoint.strategy)
        self.client, self.checkpoint, self._strategy = client, checkpoint, strategy
        self._finetune_steps = finetune_steps
        # Without the noise of privacy the mean of personal parameters leaves no client.
        self._others = checkpoint.personal_of(None) if shares_personal else {}

    def outgoing(self, partition: int) -> Arrays:
        """Return what the server would send to a client next."""
        self._strategy.shared = dict(self.checkpoint.server)
        return self._strategy.arrays_for(self.checkpoint.server_round + 1, partition)

    def parameters(self, partition: int | None) -> Arrays:
        """Return what a client predicts with; None is somebody new, who has no images to adapt to.

        Raises:
            ConfigError: for somebody new where clients train on their own images before they predict.
        """
        if partition is None:
            if self._finetune_steps:
                raise ConfigError(
                    f"optim.finetune_steps={self._finetune_steps}: clients of this method train on their own images "
                    "before they predict; give the partition of a client."
                )
            self._strategy.shared = dict(self.checkpoint.server)
            new: Arrays = self.client.for_new_clients({**self._strategy.evaluated, **self._others})
            return new
        personal = self.checkpoint.personal.get(partition, {})
        shared = self.outgoing(partition) | ({} if personal else self._others)
        request = ClientRequest(partition, self.checkpoint.server_round, "evaluate", "test", shared, personal)
        adapted: Arrays = self.client.adapt([{**shared, **personal}], [request])[0]
        return adapted

"""A run at work, as a round and an evaluation see it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, final

from flwr.app import RecordDict

from fedbayes.arrays import Arrays
from fedbayes.comm.messages import encode_once, write_request
from fedbayes.server.federation import Federation
from fedbayes.server.state import Progress
from fedbayes.server.strategy import ServerStrategy
from fedbayes.simulation.faults import Fault
from fedbayes.simulation.jammer import UplinkGame


class RoundLog(Protocol):
    """Takes what happens in the rounds."""

    def log(self, row: Mapping[str, Any]) -> None:
        """Take one row for a round and phase."""

    def log_clients(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Take one row per client."""

    def note(self, text: str) -> None:
        """Take a sentence for the reader."""


@final
@dataclass(frozen=True, eq=False)
class Session:
    """The clients, the strategy, and what the run has come to.

    Attributes:
        expected: arrays with the names, shapes and types of each training reply.
        log: takes what happens.
        uplinks: that a jammer makes replies get lost on; None for none.
    """

    federation: Federation
    strategy: ServerStrategy
    progress: Progress
    expected: Arrays
    log: RoundLog
    uplinks: UplinkGame | None = None

    def messages(
        self,
        requests: Mapping[int, Arrays],
        server_round: int,
        split: str,
        seconds: float | None,
        *,
        adapt: int | None = None,
        faults: Mapping[int, Fault] | None = None,
    ) -> dict[int, RecordDict]:
        """Return the contents of requests by partition; see `fedbayes.comm.messages.write_request`."""
        return {
            partition: write_request(
                record,
                server_round,
                split,
                accepted=self.progress.accepted.get(partition, 0),
                adapt=adapt,
                fault=faults[partition].kind if faults else "",
                seconds=seconds,
            )
            for partition, record in encode_once(requests).items()
        }

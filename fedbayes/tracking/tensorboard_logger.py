"""TensorBoard as a second home of a run's numbers; the files in the run directory remain the first."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np

from fedbayes.errors import ConfigError
from fedbayes.storage.run_dir import TENSORBOARD, plain


@final
class TensorBoard:
    """Writes rows to `tensorboard/` in the run directory, with torch's `SummaryWriter`.

    A resumed run hides what an earlier process wrote of the rounds that are done again.

    Args:
        run_dir: the run's directory.
        config: the resolved configuration, shown as text.

    Raises:
        ConfigError: if TensorBoard is not installed.
    """

    def __init__(self, run_dir: Path, config: Mapping[str, Any]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(
                "tracking=tensorboard: TensorBoard is not installed; install fedbayes[tensorboard]."
            ) from error
        self._folder, self._config = run_dir / TENSORBOARD, config
        self._make = SummaryWriter
        self._writer: SummaryWriter | None = None

    def log(self, row: Mapping[str, Any]) -> None:
        """Writes a row's numbers as `phase/name` at the step of its round."""
        phase, step = row.get("phase", "run"), row.get("round")
        for name, value in row.items():
            if name != "round" and isinstance(value, int | float) and not isinstance(value, bool):
                self._open(step).add_scalar(f"{phase}/{name}", value, step)

    def log_clients(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes how accuracy and NLL spread over the clients, a histogram for each phase."""
        for phase in dict.fromkeys(str(row.get("phase", "run")) for row in rows):
            clients = [row for row in rows if row.get("phase", "run") == phase]
            for name in ("accuracy", "nll"):
                if values := [row[name] for row in clients if row.get(name) is not None]:
                    step = clients[0].get("round")
                    self._open(step).add_histogram(f"{phase}/clients/{name}", np.array(values), step)

    def finish(self, run_dir: Path, summary: Mapping[str, Any] | None) -> str | None:  # noqa: ARG002  (the contract's)
        """Closes the files and says how to look at them."""
        if self._writer is None:
            return None
        self._writer.close()
        return f"TensorBoard: tensorboard --logdir {run_dir / TENSORBOARD}"

    def _open(self, step: object) -> Any:
        """Return the writer; the first step of a process is where it takes over."""
        if self._writer is None:
            self._writer = self._make(str(self._folder), purge_step=step)
            self._writer.add_text("config", "\n".join(f"    {line}" for line in _lines(plain(self._config))))
        return self._writer


def _lines(config: Mapping[str, Any]) -> list[str]:
    """Return a configuration as YAML, line by line."""
    import yaml

    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True).splitlines()

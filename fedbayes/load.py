"""A finished run, read back: `fedbayes.load(RUN_DIR).predict(images)`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import numpy as np
from omegaconf import DictConfig

from fedbayes import build
from fedbayes.config import stored as stored_configuration
from fedbayes.data.pixels import Images, to_square
from fedbayes.errors import RunError
from fedbayes.seeding import Streams
from fedbayes.storage import checkpoint
from fedbayes.storage.run_dir import SUMMARY, read_summary
from fedbayes.text import fraction


@final
@dataclass(frozen=True, eq=False)
class Prediction:
    """What a run says of N images; entropies in nats.

    Attributes:
        probabilities: `(N, classes)`, the mean over draws of prompts.
        entropy: of those probabilities, `(N,)`: expected entropy plus prompt uncertainty.
        expected_entropy: mean entropy of a single draw, `(N,)`.
        prompt_uncertainty: mutual information between prompts and label, `(N,)`; 0 without a posterior.
        classes: class names, in the order of the columns.
    """

    probabilities: np.ndarray
    entropy: np.ndarray
    expected_entropy: np.ndarray
    prompt_uncertainty: np.ndarray
    classes: tuple[str, ...]

    @property
    def labels(self) -> list[str]:
        """The most probable class of each image."""
        return [self.classes[i] for i in self.probabilities.argmax(1)]


@final
@dataclass(frozen=True, eq=False, repr=False)
class Run:
    """A run's configuration, summary and learnt parameters.

    Attributes:
        directory: where it lies.
        config: resolved.
        summary: the object of `summary.json`.
    """

    directory: Path
    config: DictConfig
    summary: dict[str, Any]
    _parts: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        of, accuracy = self.config, fraction(self.summary["final"]["accuracy"]["mean"])
        what = f"{of.names.method} on {of.names.data} ({of.names.partition}), seed {of.seed}"
        return f"<Run {self.directory}: {what}, {of.clients} clients, {of.rounds} rounds, accuracy {accuracy}>"

    def predict(self, images: Images, partition: int | None = None) -> Prediction:
        """Predict new images with the parameters after the last round.

        Args:
            images: uint8 pixels `(N, 3, H, W)` or `(N, H, W, 3)`, PIL images or paths of image files, of any size; or a
                single image of these kinds.
            partition: use what this client kept to itself and what the server would send it, adapted to the client's
                own images where the method does that (`fedbabu`, `pep_fedpt`); None uses what the server has, and the
                clients' mean of what is theirs, which means little where they share nothing (`local_vpt`).

        Returns:
            Probabilities and uncertainty of each image. Equal calls give equal numbers; an image's draws of prompts
            depend on its place in the call, so that equal images at two places differ by the error of those draws.

        Raises:
            ConfigError: for None where clients train on their own images before they predict.
            RunError: if the checkpoint is missing or damaged, or there is no such client.
            DataError: if an image cannot be read.
        """
        client, data, stored = self._restore()
        size = data.images.images.shape[-1]
        pixels = to_square(images, size)
        if partition is not None and not 0 <= partition < self.config.clients:
            raise RunError(f"partition={partition} is none of the run's {self.config.clients} clients.")
        parameters = build.predicts_with(self.config, client, stored, partition)
        streams = Streams(self.config.seed, stored.server_round, [0], "predict")
        (said,), _ = client.predict(client.inputs.of_images(pixels), [parameters], streams)
        return Prediction(
            probabilities=said.probabilities.double().numpy(),
            entropy=said.entropy.double().numpy(),
            expected_entropy=said.expected_entropy.double().numpy(),
            prompt_uncertainty=said.prompt_uncertainty.double().numpy(),
            classes=data.images.classes,
        )

    def _restore(self) -> tuple[Any, Any, checkpoint.Checkpoint]:
        """The client with its backbone, the data and the checkpoint; built at the first call."""
        if not self._parts:
            stored = checkpoint.latest(self.directory)
            client, data = build.stored(self.config, stored)
            self._parts.update(client=client, data=data, stored=stored)
        return self._parts["client"], self._parts["data"], self._parts["stored"]


def load(run_dir: str | Path) -> Run:
    """Read a finished run.

    Raises:
        RunError: if the directory does not hold one, or its configuration is of another version or names what may not
            be called; see `fedbayes.config.stored`.
    """
    directory = Path(run_dir)
    if not (directory / SUMMARY).is_file():
        raise RunError(f"{directory} holds no finished run (no {SUMMARY}); give a run directory, or resume it first.")
    return Run(directory, stored_configuration.read(directory), read_summary(directory))

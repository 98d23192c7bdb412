"""A finished run, read back: `fedbayes.load(RUN_DIR).predict(images)`."""

import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, final

import numpy as np
from omegaconf import DictConfig

from fedbayes import build
from fedbayes.config import stored as stored_configuration
from fedbayes.data.pixels import Images, to_square
from fedbayes.errors import RunError
from fedbayes.seeding import Streams
from fedbayes.server.trained import TrainedClients
from fedbayes.storage import checkpoint
from fedbayes.storage.run_dir import SUMMARY, read_summary
from fedbayes.text import fraction
from fedbayes.tracking.inputs import require_same_inputs


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
        class_prior: `(classes,)`, what the scores were combined with; None with `head.prior=none`.
    """

    probabilities: np.ndarray
    entropy: np.ndarray
    expected_entropy: np.ndarray
    prompt_uncertainty: np.ndarray
    classes: tuple[str, ...]
    class_prior: np.ndarray | None

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
                own images where the method does that (`fedbabu`, `pep_fedpt`), and its class prior; None uses what the
                server has, the clients' mean of what is theirs, which means little where they share nothing
                (`local_vpt`), and a uniform class prior.

        Returns:
            Probabilities and uncertainty of each image. Equal calls give equal numbers; an image's draws of prompts
            depend on its place in the call, so that equal images at two places differ by the error of those draws.

        Raises:
            ConfigError: for None where clients train on their own images before they predict.
            RunError: if the checkpoint is missing or damaged, or there is no such client.
            DataError: if an image cannot be read.
        """
        client, seen = self.clients.client, self.clients.client.data.images
        pixels = to_square(images, seen.images.shape[-1])
        if partition is not None and not 0 <= partition < self.config.clients:
            raise RunError(f"partition={partition} must be in 0..{self.config.clients - 1}; give such a client.")
        parameters = self.clients.parameters(partition)
        streams = Streams(self.config.seed, self.clients.checkpoint.server_round, [0], "predict")
        inputs = client.inputs.of_images(pixels, partition)
        (predictive,), _ = client.predict(inputs, [parameters], streams)
        return Prediction(
            probabilities=predictive.probabilities.double().numpy(),
            entropy=predictive.entropy.double().numpy(),
            expected_entropy=predictive.expected_entropy.double().numpy(),
            prompt_uncertainty=predictive.prompt_uncertainty.double().numpy(),
            classes=seen.classes,
            class_prior=None if inputs.log_prior is None else inputs.log_prior[0, 0].exp().cpu().numpy(),
        )

    @cached_property
    def clients(self) -> TrainedClients:
        """The run's clients with the parameters after its last round; data and backbone are read at the first use."""
        stored = checkpoint.latest(self.directory)
        parts = build.assemble(self.config, build.NoEngine())
        require_same_inputs(self.directory, parts)
        return build.trained(self.config, parts, stored)


def load(run_dir: str | Path) -> Run:
    """Read a finished run.

    Raises:
        RunError: if the directory does not hold one, or its configuration is of another version or names what may not
            be called; see `fedbayes.config.stored`.
    """
    directory = Path(run_dir).expanduser()
    if not (directory / SUMMARY).is_file():
        raise RunError(f"{directory} holds no finished run (no {SUMMARY}); give a run directory, or resume it first.")
    return Run(directory, stored_configuration.read(directory), read_summary(directory))


@final
class _CallableModule(ModuleType):
    """Makes `fedbayes.load(RUN_DIR)` work although Python, once it has imported this module, takes the name for it."""

    def __call__(self, run_dir: str | Path) -> Run:
        return load(run_dir)


sys.modules[__name__].__class__ = _CallableModule

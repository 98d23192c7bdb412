"""A finished run, read back: `fedbayes.load(RUN_DIR).predict(images)`."""

import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, final, overload

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
@dataclass(frozen=True, eq=False)
class PrivatePrediction:
    """Labels of N images, computed on secret shares, and what that took for all of them together.

    Attributes:
        labels: the class of each image, which the client alone learns.
        bits: `online` between the two parties, `offline` from the dealer, `input` from client and owner of the head
            to the parties, `output` from the parties to the client.
        rounds: of messages between the parties.
        seconds: of both parties and the dealer, in threads of one process.
        rows: bits, bytes, messages and rounds by phase and protocol.
    """

    labels: list[str]
    bits: dict[str, int]
    rounds: int
    seconds: float
    rows: list[dict[str, str | int]]


@final
@dataclass(frozen=True, eq=False, repr=False)
class Run:
    """A run's resolved configuration, its summary (the object of `summary.json`), and learnt parameters."""

    directory: Path
    config: DictConfig
    summary: dict[str, Any]

    def __repr__(self) -> str:
        cfg, names, accuracy = self.config, self.config.names, fraction(self.summary["final"]["accuracy"]["mean"])
        title = f"{names.method} on {names.data} ({names.partition}), seed {cfg.seed}"
        return f"<Run {self.directory}: {title}, {cfg.clients} clients, {cfg.rounds} rounds, accuracy {accuracy}>"

    @overload
    def predict(
        self, images: Images, partition: int | None = None, *, private: Literal[False] = False
    ) -> Prediction: ...
    @overload
    def predict(self, images: Images, partition: int | None = None, *, private: Literal[True]) -> PrivatePrediction: ...
    def predict(
        self, images: Images, partition: int | None = None, *, private: bool = False
    ) -> Prediction | PrivatePrediction:
        """Predict new images with the parameters after the last round.

        Equal calls give equal numbers. An image's samples of prompts depend on its place in the call, so that equal
        images at two places differ by the error of those samples.

        Args:
            images: uint8 pixels `(N, 3, H, W)` or `(N, H, W, 3)`, PIL images or paths of image files, of any size; or a
                single image of these kinds.
            partition: the client whose personal parameters and class prior are used, with what the server would send
                it, adapted to its images where the method does that (`fedbabu`, `pep_fedpt`). None uses the server's
                parameters, the mean of personal ones, which means little where clients share nothing (`local_vpt`),
                and a uniform class prior.
            private: predict on secret shares, so that nobody but the owner of the images learns features or labels, and
                nobody but the owner of the head learns that; for methods without prompts. See `docs/secure.md`.

        Raises:
            ConfigError: for None where clients train on their own images before they predict; with `private`, for a
                method whose scores are no product of frozen features with a head.
            RunError: if the checkpoint is missing or damaged, or there is no such client.
            DataError: if an image cannot be read.
        """
        client, data = self.clients.client, self.clients.client.data.images
        pixels = to_square(images, data.images.shape[-1])
        if partition is not None and not 0 <= partition < self.config.clients:
            raise RunError(f"partition={partition} must be in 0..{self.config.clients - 1}; give such a client.")
        parameters = self.clients.parameters(partition)
        inputs = client.inputs.of_images(pixels, partition)
        if private:
            return _private(client.linear_scores(inputs, parameters), data.classes)
        streams = Streams(self.config.seed, self.clients.checkpoint.server_round, [0], "predict")
        (predictive,), _ = client.predict(inputs, [parameters], streams)
        numbers = ("probabilities", "entropy", "expected_entropy", "prompt_uncertainty")
        return Prediction(
            **{name: getattr(predictive, name).double().numpy() for name in numbers},
            classes=data.classes,
            class_prior=None if inputs.log_prior is None else inputs.log_prior[0, 0].exp().cpu().numpy(),
        )

    @cached_property
    def clients(self) -> TrainedClients:
        """The run's clients with the parameters after its last round; data and backbone are read at the first use."""
        latest = checkpoint.latest(self.directory)
        parts = build.assemble(self.config, build.NoEngine())
        require_same_inputs(self.directory, parts)
        return build.trained(self.config, parts, latest)


def _private(linear: Any, classes: tuple[str, ...]) -> PrivatePrediction:
    """Predict on shares from what a client's `linear_scores` returned."""
    from fedbayes.secure.prediction import QuantisedLinear, predict

    head = QuantisedLinear.of(linear.weights.double().numpy(), linear.bias.double().numpy())
    result = predict(linear.features.double().numpy(), head)
    transcript = result.transcript
    bits = {phase: transcript.total(phase).bits for phase in ("online", "offline")}
    return PrivatePrediction(
        labels=[classes[i] for i in result.classes],
        bits=bits | {"input": result.input_bits, "output": result.output_bits},
        rounds=transcript.total("online").rounds,
        seconds=result.seconds,
        rows=transcript.rows(),
    )


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

"""The command `fedbayes`: configuration in, run directory out.

    config -> data -> partition -> client (frozen ViT, prompt generator, head)
           -> message -> strategy -> next round -> report

Everything is built before the run directory is touched.
"""

import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fedbayes.commands.command_line import Actions, command_line
from fedbayes.config.compose import compose, require_alone, resolved
from fedbayes.config.stored import read as stored_configuration
from fedbayes.errors import RunError


def run(cfg: DictConfig, run_dir: Path, engine: Any = None, *, resumed: bool = False) -> dict[str, Any]:
    """Run one experiment, from images to report.

    Args:
        cfg: the composed configuration, with the names of its groups under `names`.
        run_dir: where everything goes; it is touched only once all parts have been built.
        engine: runs the clients; None for the one that the configuration names.
        resumed: whether the directory holds this very run, to go on from its newest checkpoint.

    Returns:
        The object of `summary.json`.

    Raises:
        FedbayesError: for what a user can mend.
    """
    from fedbayes import build
    from fedbayes.report.gallery import write_gallery
    from fedbayes.report.run_page import publish
    from fedbayes.storage.claim import run_directory
    from fedbayes.storage.predictions import write_predictions
    from fedbayes.tracking.begin import begin
    from fedbayes.tracking.summary import summarise

    started = time.perf_counter()
    resolved(cfg)  # says what is missing before anything is built
    parts = build.assemble(cfg, engine)
    with (
        run_directory(run_dir, OmegaConf.to_yaml(cfg, resolve=True), resumed=resumed) as restart,
        begin(run_dir, cfg, parts, restart, resumed=resumed) as tracker,
    ):
        progress = parts.engine.run(
            client_factory=build.ClientFactory(cfg, parts.client),
            clients=len(parts.data),
            serve=lambda grid: parts.loop.run(
                grid,
                parts.strategy,
                parts.client.initial(),
                tracker,
                build.partition_sizes(cfg, parts.data, parts.attack),
                save=tracker.keep,
                stored=restart.checkpoint,
            ),
        )
        write_predictions(run_dir, progress.final)
        summary = summarise(cfg, parts, progress, started)
        write_gallery(run_dir, cfg, parts)
        tracker.report(summary, publish)
    return summary


def resume(run_dir: Path) -> dict[str, Any]:
    """Go on with a run that broke off, from its newest checkpoint that is whole, or from the start if there is none.

    Args:
        run_dir: of the run; one that has finished is left as it is.

    Returns:
        The object of `summary.json`: but for times, what the run would have had without the break.

    Raises:
        FedbayesError: if there is no run, another process is at work on it, or it cannot go on.
    """
    from fedbayes.report.run_page import publish
    from fedbayes.storage.run_dir import REPORT, SUMMARY, read_summary

    cfg = stored_configuration(run_dir)
    summary = read_summary(run_dir)
    if not summary:
        return run(cfg, run_dir, resumed=True)
    if not (run_dir / REPORT).exists():  # it was ended between its summary and its pictures
        publish(run_dir)
    accuracy = OmegaConf.select(OmegaConf.create(summary), "final.accuracy.mean")
    if not isinstance(accuracy, float | int):
        raise RunError(f"{run_dir / SUMMARY} is no summary of a finished run; remove it, and resume again.")
    print(f"{run_dir} has finished: {summary.get('rounds')} rounds, accuracy {accuracy:.3f}", flush=True)
    return summary


def simulate(overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Run one experiment from Python, as `fedbayes` does from a shell.

    Args:
        overrides: as on the command line, e.g. `["method=fedvpt", "rounds=3"]`, or `["resume=RUN_DIR"]`.

    Returns:
        The object of `summary.json`, with the run directory under `run_dir`; `fedbayes.frame` makes a table of it. With
        `dry_run=true`, what `dry_run` returns.
    """
    cfg = compose(overrides)
    if cfg.resume is not None:
        require_alone(overrides)
        return {**resume(Path(cfg.resume)), "run_dir": str(cfg.resume)}
    if cfg.dry_run:
        return dry_run(cfg)
    run_dir = run_dir_of(cfg)
    return {**run(cfg, run_dir), "run_dir": str(run_dir)}


def dry_run(cfg: DictConfig) -> dict[str, Any]:
    """Print what a run would cost, without a run directory; see `fedbayes.commands.dry_run`.

    Returns:
        The fields of `fedbayes.commands.dry_run.Estimate`, and `minutes`.
    """
    from fedbayes.commands.dry_run import estimate

    resolved(cfg)  # refuses what a run would refuse
    costs = estimate(cfg)
    print("\n".join(costs.lines()), flush=True)
    return costs.values()


def run_dir_of(cfg: DictConfig) -> Path:
    """Return `run_dir` if the user chose one, else a new folder under `runs/`."""
    if cfg.run_dir is not None:
        return Path(cfg.run_dir)
    now = datetime.now()
    name = f"{now:%H-%M-%S}-{cfg.names.method}-{cfg.names.data}-s{cfg.seed}"
    first = Path("runs") / f"{now:%Y-%m-%d}" / name
    taken = (first.with_name(f"{name}-{number}") for number in range(2, 1000))
    return first if not first.exists() else next(path for path in taken if not path.exists())


def main() -> None:
    """Entry point of the command; see `fedbayes.commands.command_line`."""
    command_line(Actions(run, resume, dry_run, run_dir_of))


if __name__ == "__main__":
    main()

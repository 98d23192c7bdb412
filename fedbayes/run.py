"""The command `fedbayes`: configuration in, run directory out.

    config -> data -> partition -> client (frozen ViT, prompt generator, head)
           -> message -> strategy -> next round -> report

Everything is built before the run directory is touched.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fedbayes.commands.command_line import Actions, command_line
from fedbayes.config.compose import compose, require_alone, resolved
from fedbayes.config.stored import read as stored_configuration
from fedbayes.errors import RunError


def run(cfg: DictConfig, run_dir: Path | None = None, engine: Any = None, *, resumed: bool = False) -> dict[str, Any]:
    """Run one experiment, from images to report.

    Args:
        cfg: the composed configuration, with the names of its groups under `names`.
        run_dir: None for a new folder `runs/<date>/<time>-<method>-<data>-s<seed>`.
        engine: runs the clients; None for the one that the configuration names.
        resumed: whether the directory holds this very run, to go on from its newest checkpoint.

    Returns:
        The object of `summary.json`, with the run directory under `run_dir`.

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
        run_directory(run_dir, cfg, resumed=resumed) as restart,
        begin(cfg, parts, restart) as tracker,
    ):
        progress = parts.engine.run(
            client_factory=build.ClientFactory(cfg, parts.client),
            clients=len(parts.data),
            serve=lambda grid: parts.loop.run(
                grid,
                parts.strategy,
                parts.client.initial(),
                tracker,
                parts.sizes,
                save=tracker.keep,
                checkpoint=restart.checkpoint,
                uplinks=parts.uplinks,
            ),
        )
        write_predictions(restart.run_dir, progress.final)
        summary = summarise(cfg, parts, progress, started)
        write_gallery(restart.run_dir, cfg, parts)
        tracker.report(summary, publish)
    return {**summary, "run_dir": str(restart.run_dir)}


def resume(run_dir: Path) -> dict[str, Any]:
    """Go on with a run that broke off, from its newest checkpoint that is whole, or from the start if there is none.

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
        `dry_run=true`, the estimated costs.
    """
    cfg = compose(overrides)
    if cfg.resume is not None:
        require_alone(overrides)
        return {**resume(Path(cfg.resume)), "run_dir": str(cfg.resume)}
    if cfg.dry_run:
        return dry_run(cfg)
    return run(cfg, None if cfg.run_dir is None else Path(cfg.run_dir))


def dry_run(cfg: DictConfig) -> dict[str, Any]:
    """Print and return what a run would cost, without a run directory; see `fedbayes.commands.dry_run`."""
    from fedbayes.commands.dry_run import estimate

    resolved(cfg)  # refuses what a run would refuse
    costs = estimate(cfg)
    print("\n".join(costs.lines()), flush=True)
    return costs.values()


def main() -> None:
    """Entry point of the command; see `fedbayes.commands.command_line`."""
    command_line(Actions(run, resume, dry_run))


if __name__ == "__main__":
    main()

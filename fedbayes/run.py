"""The command `fedbayes`: configuration in, run directory out.

    config -> data -> partition -> client (frozen ViT, prompt generator, head)
           -> message -> strategy -> next round -> report

Everything is built before the run directory is touched.
"""

import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fedbayes.commands import sweep
from fedbayes.commands.resume_sweep import sweep_again
from fedbayes.config.compose import (
    CONF,
    compose,
    in_one_line,
    is_hydras,
    named,
    require_alone,
    require_options,
    resolved,
)
from fedbayes.config.stored import read as stored_configuration
from fedbayes.config.stored import require_trusted
from fedbayes.errors import ConfigError, FedbayesError, RunError
from fedbayes.storage.names import CONFIG

INTERRUPTED = 130
"""Exit status after Ctrl-C or SIGTERM, as shells have it."""


def run(cfg: DictConfig, run_dir: Path, simulation: Any = None, *, resumed: bool = False) -> dict[str, Any]:
    """One experiment, from images to report.

    Args:
        cfg: the composed configuration, with the names of its groups under `names`.
        run_dir: where everything goes; it is touched only once all parts have been built.
        simulation: the engine; None for the one that the configuration names.
        resumed: whether the directory holds this very run, to go on from its newest checkpoint.

    Returns:
        The object of `summary.json`.

    Raises:
        FedbayesError: for what a user can mend.
    """
    from fedbayes import build
    from fedbayes.data.partitions.splits import describe
    from fedbayes.report.gallery import write_gallery
    from fedbayes.report.run_page import publish
    from fedbayes.simulation.hardware import slow_numbers
    from fedbayes.storage import checkpoint
    from fedbayes.storage.run_dir import PARTITION, PREDICTIONS, claimed, reopened, rounds_written, write_json
    from fedbayes.tracking.provenance import differences, provenance
    from fedbayes.tracking.summary import summarise
    from fedbayes.tracking.tracker import Tracker

    started = time.perf_counter()
    config = resolved(cfg)
    loop = build.loop(cfg)
    strategy = build.strategy(cfg, loop)  # turns replies into the next message
    simulation = build.simulation(cfg) if simulation is None else simulation
    simulation.prepare()
    data = build.data(cfg)  # images -> clients, split once by partition.seed
    model = build.model(cfg, data, simulation.device)  # frozen ViT + prompt generator + head
    client = build.client(cfg, data, model)
    attack, sizes = build.attack(cfg), build.partition_sizes(cfg, data)

    with reopened(run_dir) if resumed else claimed(run_dir, OmegaConf.to_yaml(cfg, resolve=True)):
        stored, damage = checkpoint.newest(run_dir, rounds_written(run_dir)) if resumed else (None, [])
        history = {} if stored is None else stored.history
        if len(data.images):  # deployed clients know their own, and nobody else's
            write_json(run_dir / PARTITION, describe(data.clients, data.images, cfg.names.partition))
        title = f"{cfg.names.method} on {cfg.names.data}, seed {cfg.seed}"
        after = (0 if stored is None else stored.server_round) if resumed else None
        with Tracker(
            run_dir, cfg.rounds, title, config, build.destinations(cfg, run_dir), resumed_after=after
        ) as tracker:
            here = cfg.names.simulation != "flower"  # or else this processor says nothing of the clients'
            slow = slow_numbers(cfg.simulation.precision, simulation.device) if here else None
            for text in filter(None, (*damage, *differences(history.get("made_by")), slow)):
                tracker.note(text)
            made_by = provenance()

            def keep(found: checkpoint.Checkpoint) -> None:
                tracker.settle()
                checkpoint.save(run_dir, replace(found, history={**found.history, "made_by": made_by}))

            progress = simulation.run(
                client_factory=build.ClientFactory(cfg, client),
                clients=len(data),
                serve=lambda grid: loop.run(grid, strategy, client.initial(), tracker, sizes, save=keep, stored=stored),
            )
            if progress.final is not None:
                checkpoint.write_arrays(run_dir / PREDICTIONS, progress.final.arrays())
            seconds = {"total": time.perf_counter() - started + progress.before, "setup": progress.started - started}
            hostile = () if attack is None else attack.hostile(build.sampling(cfg).known)
            privacy = strategy.privacy_spent(cfg.rounds)
            summary = summarise(cfg, progress, data.images.domain_names, seconds, simulation.device, hostile, privacy)
            write_gallery(run_dir, cfg, data, model)
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
    found = estimate(cfg)
    print("\n".join(found.lines()), flush=True)
    return {**asdict(found), "minutes": found.minutes}


def main() -> None:
    """Entry point of the command; exits with 2 and one line if the user asked for something that cannot work.

    In a sweep the other jobs still run; each failed one is named when it fails, and all of them again at the end with
    their errors, as in the sweep's own folder; see `fedbayes.commands.sweep`.
    Ctrl-C and SIGTERM end it with 130; what the run has written until then stays.
    """
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException, InstantiationException
    from hydra.types import RunMode
    from omegaconf.errors import OmegaConfBaseException

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    full_error = os.environ.get("HYDRA_FULL_ERROR", "0")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises what it would print over several lines
    failed: list[str] = []

    def fail(error: Exception) -> None:
        failed.append(sweep.one_line(error))
        print(failed[-1], file=sys.stderr, flush=True)

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
    def start(cfg: DictConfig) -> float | None:
        hydra_cfg = HydraConfig.get()
        if hydra_cfg.mode == RunMode.MULTIRUN and cfg.dry_run:
            raise ConfigError("dry_run=true estimates one run; leave out -m, and choose one value of each.")
        if hydra_cfg.mode == RunMode.MULTIRUN:
            named(cfg, hydra_cfg.runtime.choices)
            run_dir = run_dir_of(cfg, Path(hydra_cfg.runtime.output_dir))
            return sweep.job(cfg, hydra_cfg, run_dir, partial(_job, cfg, run_dir))
        try:
            named(cfg, hydra_cfg.runtime.choices)
            if cfg.resume is not None:
                require_alone(hydra_cfg.overrides.task)
                resume(Path(cfg.resume))
            elif cfg.dry_run:
                dry_run(cfg)
            else:
                run(cfg, run_dir_of(cfg))
        except FedbayesError as error:
            fail(error)
        return None

    try:
        require_options(sys.argv[1:])
        sys.argv[1:] = sweep_again(sys.argv[1:])
        start()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(INTERRUPTED)  # threads of an engine that wait for lost workers would keep the process for ever
    except FedbayesError as error:
        if not failed:
            fail(error)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        if full_error == "1" or isinstance(error, InstantiationException) or not is_hydras(error):
            raise
        fail(in_one_line(error, sys.argv[1:]))
    finally:
        os.environ["HYDRA_FULL_ERROR"] = full_error
    if lines := sweep.failures():
        print(f"{len(lines)} failed{_how_again()}:", *lines, sep="\n  ", file=sys.stderr, flush=True)
    if failed or lines:
        sys.exit(2)


def _how_again() -> str:
    """What runs this process's failed jobs again, to be put behind their number."""
    if not sweep.Watch.again:
        return ""
    try:
        sweep_again([f"resume={sweep.Watch.folder}"])
    except RunError as error:  # it names a folder or code of one's own
        return f"; to run them again: {error}".removesuffix(".")
    return f"; `fedbayes resume={sweep.Watch.folder}` runs them again"


def _job(cfg: DictConfig, run_dir: Path) -> dict[str, Any]:
    """A job of a sweep: a new run, or in a sweep that goes on whatever its directory needs."""
    if cfg.resume is None:
        return run(cfg, run_dir)
    require_trusted(cfg, f"the sweep in {cfg.resume}")
    cfg.resume = None
    if not (run_dir / CONFIG).is_file():
        return run(cfg, run_dir)
    if resolved(stored_configuration(run_dir)) != resolved(cfg):
        raise RunError(f"{run_dir} holds a run of another configuration; move it away, or run the sweep elsewhere.")
    return resume(run_dir)


def run_dir_of(cfg: DictConfig, job: Path | None = None) -> Path:
    """`run_dir` if given, else a job's folder of the sweep, else a new folder under `runs/`."""
    if cfg.run_dir is not None:
        return Path(cfg.run_dir)
    if job is not None:
        return job
    now = datetime.now()
    name = f"{now:%H-%M-%S}-{cfg.names.method}-{cfg.names.data}-s{cfg.seed}"
    first = Path("runs") / f"{now:%Y-%m-%d}" / name
    taken = (first.with_name(f"{name}-{number}") for number in range(2, 1000))
    return first if not first.exists() else next(path for path in taken if not path.exists())


if __name__ == "__main__":
    main()

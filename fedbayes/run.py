"""The command `fedbayes`: configuration in, run directory out.

    config -> data -> partition -> client (frozen ViT, prompt generator, head)
           -> message -> strategy -> next round -> report

Everything is built before the run directory is touched.
"""

import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")  # read once, when flwr is first imported
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

from omegaconf import DictConfig, OmegaConf

from fedbayes.configuration import CONF, compose, in_one_line, named, resolved
from fedbayes.errors import FedbayesError

INTERRUPTED = 130
"""Exit status after Ctrl-C or SIGTERM, as shells have it."""


def run(cfg: DictConfig, run_dir: Path, simulation: Any = None) -> dict[str, Any]:
    """One experiment, from images to report.

    Args:
        cfg: the composed configuration, with the names of its groups under `names`.
        run_dir: where everything goes; it is touched only once all parts have been built.
        simulation: the engine; None for the one that the configuration names.

    Returns:
        The object of `summary.json`.

    Raises:
        FedbayesError: for what a user can mend.
    """
    from fedbayes import build, checkpoint
    from fedbayes.data.partition import describe
    from fedbayes.summary import summarise
    from fedbayes.tracking.run_dir import CONFIG, PARTITION, PREDICTIONS, claimed, write_json
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

    with claimed(run_dir):
        OmegaConf.save(cfg, run_dir / CONFIG, resolve=True)
        if len(data.images):  # deployed clients know their own, and nobody else's
            write_json(run_dir / PARTITION, describe(data.clients, data.images, cfg.names.partition))
        title = f"{cfg.names.method} on {cfg.names.data}, seed {cfg.seed}"
        with Tracker(run_dir, cfg.rounds, title, config, build.destinations(cfg, run_dir)) as tracker:
            progress = simulation.run(
                client_factory=build.ClientFactory(cfg, client),
                clients=len(data),
                serve=lambda grid: loop.run(grid, strategy, client.initial(), tracker),
            )
            checkpoint.save(run_dir, progress.checkpoint())
            if progress.final is not None:
                checkpoint.write_arrays(run_dir / PREDICTIONS, progress.final.arrays())
            seconds = {"total": time.perf_counter() - started, "setup": progress.started - started}
            summary = summarise(cfg, progress, data.images.domain_names, seconds, simulation.device)
            tracker.report(summary)
    return summary


def simulate(overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Run one experiment from Python, as `fedbayes` does from a shell.

    Args:
        overrides: as on the command line, e.g. `["method=fedvpt", "rounds=3"]`.

    Returns:
        The object of `summary.json`, with the run directory under `run_dir`.
    """
    cfg = compose(overrides)
    run_dir = run_dir_of(cfg)
    return {**run(cfg, run_dir), "run_dir": str(run_dir)}


def main() -> None:
    """Entry point of the command; exits with 2 and one line if the user asked for something that cannot work.

    In a sweep the other jobs still run; each failed one is named when it fails, and all of them again at the end.
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

    def fail(error: Exception, job: str = "") -> None:
        kind = "" if isinstance(error, FedbayesError) else "a fault of fedbayes, please report it: "
        failed.append(job)
        print(f"{job and f'{job}: '}{kind}{type(error).__name__}: {error}", file=sys.stderr, flush=True)

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
    def start(cfg: DictConfig) -> None:
        hydra_cfg = HydraConfig.get()
        named(cfg, hydra_cfg.runtime.choices)
        if hydra_cfg.mode == RunMode.RUN:
            try:
                run(cfg, run_dir_of(cfg))
            except FedbayesError as error:
                fail(error)
            return
        folder = Path(hydra_cfg.runtime.output_dir)
        try:
            run(cfg, run_dir_of(cfg, folder))
        except Exception as error:
            if not isinstance(error, FedbayesError):
                traceback.print_exc()
            fail(error, f"job {hydra_cfg.job.num} ({hydra_cfg.job.override_dirname})")
            with suppress(OSError):  # Hydra has made it, maybe for nothing
                folder.rmdir()
            raise  # Hydra still runs the other jobs, and tells us at the end even from another process

    try:
        start()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(INTERRUPTED)  # threads of an engine that wait for lost workers would keep the process for ever
    except FedbayesError:
        failed = failed or ["a job in another process"]
    except (HydraException, OmegaConfBaseException) as error:
        if full_error == "1" or isinstance(error, InstantiationException):
            raise
        fail(in_one_line(error, sys.argv[1:]))
    finally:
        os.environ["HYDRA_FULL_ERROR"] = full_error
    if len(failed) > 1 or any(failed):
        print(f"{len(failed)} failed: {'; '.join(failed)}", file=sys.stderr, flush=True)
    if failed:
        sys.exit(2)


def run_dir_of(cfg: DictConfig, sweep: Path | None = None) -> Path:
    """`run_dir` if given, else a job's folder of the sweep, else a new folder under `runs/`."""
    if cfg.run_dir is not None:
        return Path(cfg.run_dir)
    if sweep is not None:
        return sweep
    now = datetime.now()
    name = f"{now:%H-%M-%S}-{cfg.names.method}-{cfg.names.data}-s{cfg.seed}"
    first = Path("runs") / f"{now:%Y-%m-%d}" / name
    taken = (first.with_name(f"{name}-{number}") for number in range(2, 1000))
    return first if not first.exists() else next(path for path in taken if not path.exists())


if __name__ == "__main__":
    main()

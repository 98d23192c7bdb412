"""The command `fedbayes`: configuration in, run directory out.

    config -> data -> partition -> client (frozen ViT, prompt generator, head) -> message -> strategy -> next round -> report
"""

import os
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")  # read once, when flwr is first imported
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

from omegaconf import DictConfig, OmegaConf, open_dict

from fedbayes.errors import FedbayesError

CONF = Path(__file__).resolve().parent.parent / "conf"
GROUPS = ("method", "data", "partition", "backbone", "simulation")


def run(cfg: DictConfig, run_dir: Path) -> dict[str, Any]:
    """One experiment, from images to report.

    Args:
        cfg: the composed configuration, with the names of its groups under `names`.
        run_dir: where everything goes; it is touched only once all parts have been built.

    Returns:
        The object of `summary.json`.

    Raises:
        FedbayesError: for what a user can mend.
    """
    from fedbayes import build, checkpoint
    from fedbayes.data.partition import describe
    from fedbayes.summary import summarise
    from fedbayes.tracking.run_dir import CONFIG, PARTITION, claim, write_json
    from fedbayes.tracking.tracker import Tracker

    started = time.perf_counter()
    loop = build.loop(cfg)
    simulation = build.simulation(cfg)
    simulation.prepare()
    data = build.data(cfg)  # images -> clients, split once by partition.seed
    model = build.model(cfg, data, simulation.device)  # frozen ViT + prompt generator + head
    client = build.client(cfg, data, model)
    strategy = build.strategy(cfg, client.initial())  # turns replies into the next message

    claim(run_dir)
    OmegaConf.save(cfg, run_dir / CONFIG, resolve=True)
    write_json(run_dir / PARTITION, describe(data.clients, data.images, cfg.names.partition))
    title = f"{cfg.names.method} on {cfg.names.data}, seed {cfg.seed}"
    destinations = build.destinations(cfg, run_dir)
    config = OmegaConf.to_container(cfg, resolve=True)
    with Tracker(run_dir, cfg.rounds, title, config, destinations) as tracker:  # type: ignore[arg-type]
        setup = time.perf_counter() - started
        progress = simulation.run(
            client_factory=lambda: client,
            clients=len(data),
            serve=lambda grid: loop.run(grid, strategy, client.initial(), tracker),
        )
        checkpoint.save(run_dir, progress.checkpoint())
        seconds = {"total": time.perf_counter() - started, "setup": setup}
        summary = summarise(cfg, progress, data.images.domain_names, seconds)
        tracker.report(summary)
    return summary


def simulate(overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Run one experiment from Python, as `fedbayes` does from a shell.

    Args:
        overrides: as on the command line, e.g. `["method=fedvpt", "rounds=3"]`.

    Returns:
        The object of `summary.json`, with the run directory under `run_dir`.
    """
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        cfg = compose("config", overrides=list(overrides), return_hydra_config=True)
    choices = dict(cfg.hydra.runtime.choices)
    with open_dict(cfg):
        del cfg["hydra"]
    run_dir = _run_dir(_named(cfg, choices))
    return {**run(cfg, run_dir), "run_dir": str(run_dir)}


def main() -> None:
    """Entry point of the command; exits with 2 and one line if the user asked for something that cannot work."""
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    failed: list[str] = []

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
    def job(cfg: DictConfig) -> None:
        hydra_cfg = HydraConfig.get()
        _named(cfg, dict(hydra_cfg.runtime.choices))
        sweep = Path(hydra_cfg.runtime.output_dir) if hydra_cfg.mode == RunMode.MULTIRUN else None
        try:
            run(cfg, _run_dir(cfg, sweep))
        except FedbayesError as error:
            failed.append(f"{type(error).__name__}: {error}")
            print(failed[-1], file=sys.stderr, flush=True)

    job()
    if failed:
        sys.exit(2)


def _named(cfg: DictConfig, choices: dict[str, Any]) -> DictConfig:
    """Write down which choice of each group was made; a configuration alone does not tell."""
    with open_dict(cfg):
        cfg.names = {group: choices[group] for group in GROUPS}
    return cfg


def _run_dir(cfg: DictConfig, sweep: Path | None = None) -> Path:
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

"""What the command `fedbayes` does around a run: its options, one line for a user's mistake, signals and sweeps.

Exit status: 0; 2 with one line if the user asked for something that cannot work; 130 after Ctrl-C or SIGTERM, where
what the run has written until then stays. Every other exception keeps its traceback.
"""

import os
import signal
import sys
from argparse import ArgumentError
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, final

from omegaconf import DictConfig

from fedbayes.commands import sweep
from fedbayes.commands.resume_sweep import sweep_again
from fedbayes.config import stored
from fedbayes.config.compose import (
    CONF,
    CONFIGURATION_ERRORS,
    expand_home,
    explain,
    name_choices,
    quoted,
    require_alone,
    require_overrides,
    resolved,
    suggestion,
)
from fedbayes.errors import ConfigError, FedbayesError, RunError
from fedbayes.storage.claim import new_folder
from fedbayes.storage.names import CONFIG

MULTIRUN = {"-m", "--multirun", "hydra.mode=MULTIRUN"}
"""Words that ask for a sweep."""

INTERRUPTED = 130
"""Exit status after Ctrl-C or SIGTERM, as shells have it."""


@final
@dataclass(frozen=True)
class Actions:
    """What the command can do; `fedbayes.run` has each.

    Attributes:
        run: a new run in a directory; None for a new one under `runs/`.
        resume: the run of a directory that broke off.
        dry_run: says what a run would cost.
    """

    run: Callable[[DictConfig, Path | None], dict[str, Any]]
    resume: Callable[[Path], dict[str, Any]]
    dry_run: Callable[[DictConfig], dict[str, Any]]


def command_line(actions: Actions) -> None:
    """Do what the words of the command ask for.

    In a sweep the other jobs still run; each failed one is named when it fails, and all of them again at the end with
    their errors, as in the sweep's own folder; see `fedbayes.commands.sweep`.
    """
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import InstantiationException
    from hydra.types import RunMode

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    full_error = os.environ.get("HYDRA_FULL_ERROR", "0")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises what it would print over several lines
    failed = is_composed = False

    def fail(error: Exception) -> None:
        nonlocal failed
        failed = True
        print(sweep.one_line(error), file=sys.stderr, flush=True)

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
    def start(cfg: DictConfig) -> float | None:
        nonlocal is_composed
        is_composed = True
        hydra_cfg = HydraConfig.get()
        if hydra_cfg.mode != RunMode.MULTIRUN:
            try:
                _single(actions, name_choices(cfg, hydra_cfg.runtime), hydra_cfg.overrides.task)
            except FedbayesError as error:
                fail(error)
            return None
        if cfg.dry_run:
            raise ConfigError("dry_run=true estimates one run; leave out -m, and choose one value of each.")
        name_choices(cfg, hydra_cfg.runtime)
        run_dir = Path(hydra_cfg.runtime.output_dir if cfg.run_dir is None else cfg.run_dir)
        return sweep.job(cfg, hydra_cfg, run_dir, partial(_job, actions, cfg, run_dir))

    words = expand_home(sys.argv[1:])
    folder = None
    try:
        if require_options(words):
            return
        words = sweep_again(words)
        if MULTIRUN & set(words) and not any(word.startswith("hydra.sweep.dir=") for word in words):
            folder = new_folder(datetime.now().strftime("runs/%Y-%m-%d/%H-%M-%S-sweep"))
            words.append(f"hydra.sweep.dir={quoted(folder)}")  # no other sweep of this second has it
        sys.argv[1:] = words
        start()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(INTERRUPTED)  # threads of an engine that wait for lost workers would keep the process for ever
    except FedbayesError as error:
        if not failed:
            fail(error)
    except CONFIGURATION_ERRORS as error:
        is_of_the_run = isinstance(error, InstantiationException) or (is_composed and isinstance(error, UnicodeError))
        if full_error == "1" or is_of_the_run:
            raise
        fail(explain(error, words))
    finally:
        os.environ["HYDRA_FULL_ERROR"] = full_error
        if folder is not None:
            with suppress(OSError):  # something lies in it, but for a sweep that could not begin
                folder.rmdir()
    if lines := sweep.failures():
        print(f"{len(lines)} failed{_how_again()}:", *lines, sep="\n  ", file=sys.stderr, flush=True)
    if failed or lines:
        sys.exit(2)


def require_options(words: Sequence[str]) -> bool:
    """Refuse options that Hydra's command line has not, or not alone, and words that it cannot read.

    Args:
        words: of the command.

    Returns:
        Whether the words have been answered: `--version` prints fedbayes's.

    Raises:
        ConfigError: naming the first.
    """
    from hydra._internal.utils import get_args_parser

    if "--version" in words:
        print(f"fedbayes {version('fedbayes')}")
        return True
    parser = get_args_parser()
    parser.exit_on_error = False
    try:
        known, unknown = parser.parse_known_args(list(words))
    except ArgumentError as error:
        raise ConfigError(f"{error}; see `fedbayes --help` for values, `fedbayes --hydra-help` for options.") from error
    if unknown:
        key = unknown[0].lstrip("-").partition("=")[0].replace("-", "_")
        instead = f"did you mean {key}" if (CONF / key).is_dir() else suggestion(key)
        raise ConfigError(f"{unknown[0]} is no option; values are given as KEY=VALUE, without dashes; {instead}.")
    if known.resolve and not (known.cfg or known.help):
        raise ConfigError("--resolve shows nothing by itself; `fedbayes --cfg job --resolve` shows the configuration.")
    require_overrides(known.overrides)
    return False


def _single(actions: Actions, cfg: DictConfig, words: Sequence[str]) -> None:
    if cfg.resume is not None:
        require_alone(words)
        actions.resume(Path(cfg.resume))
    elif cfg.dry_run:
        actions.dry_run(cfg)
    else:
        actions.run(cfg, None if cfg.run_dir is None else Path(cfg.run_dir))


def _job(actions: Actions, cfg: DictConfig, run_dir: Path) -> dict[str, Any]:
    """A job of a sweep: a new run, or in a sweep that goes on whatever its directory needs."""
    if cfg.resume is None:
        return actions.run(cfg, run_dir)
    stored.require_trusted(cfg, f"the sweep in {cfg.resume}")
    cfg.resume = None
    if not (run_dir / CONFIG).is_file():
        return actions.run(cfg, run_dir)
    if resolved(stored.read(run_dir)) != resolved(cfg):
        raise RunError(f"{run_dir} holds a run of another configuration; move it away, or run the sweep elsewhere.")
    return actions.resume(run_dir)


def _how_again() -> str:
    """What runs this process's failed jobs again, to be put behind their number."""
    if not sweep.Watch.again:
        return ""
    try:
        sweep_again([f"resume={sweep.Watch.folder}"])
    except RunError as error:  # it names a folder or code of one's own
        return f"; to run them again: {error}".removesuffix(".")
    return f"; `fedbayes resume={sweep.Watch.folder}` runs them again"

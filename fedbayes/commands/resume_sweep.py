"""A sweep's own words read back from its directory, whoever wrote it: values and choices, and nothing that is called.

`resume=SWEEP_DIR` types for the user what Hydra wrote into the folder. So of Hydra's own settings only those that name
no file and call nothing may come along; anything else is refused, for the user to type.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from fedbayes.config.compose import CONF, quoted
from fedbayes.config.stored import values
from fedbayes.errors import RunError

MULTIRUN = "multirun.yaml"
"""What Hydra writes into the folder of a sweep."""
SEARCH = "optimization_results.yaml"
"""What Optuna's sweeper writes into the folder of a search."""
HYDRA = re.compile(
    r"hydra/launcher=(basic|joblib|submitit_local|submitit_slurm)|hydra/sweeper=(basic|optuna|search)|hydra\.mode=\w+"
    r"|hydra\.launcher\.(n_jobs|batch_size|pre_dispatch|verbose|timeout)=[\w*-]+"
    r"|hydra\.launcher\.(timeout_min|nodes|gpus_per_node|tasks_per_node|mem_gb|cpus_per_task|array_parallelism)=\d+"
    r"|hydra\.launcher\.(partition|qos|account)=[\w-]+"
    r"|hydra\.sweeper\.(n_trials|n_jobs|direction|max_failure_rate|max_batch_size|sampler\.seed)=[\w.-]+"
    r"|hydra\.sweep\.subdir=(?!.*\.\.)[\w.,=-]+"
)
"""What of Hydra's own settings a sweep may bring along, word for word: nothing that names a file or is called."""
CHOICE = re.compile(r"[\w,()*'\"-]+")
"""A choice in a group: names of files in `conf/`, and no way out of it."""


def sweep_again(words: Sequence[str]) -> list[str]:
    """The command's words, with `resume=SWEEP_DIR` replaced by the sweep that it names.

    Raises:
        RunError: if the sweep's file cannot be read, or asks for more than values and choices.
    """
    folders = [Path(word.partition("=")[2].strip("'\"")).expanduser() for word in words if word.startswith("resume=")]
    if folders and (folders[0] / SEARCH).is_file():
        raise RunError(
            f"resume={folders[0]} names a search, whose next values depend on all results before; start it again."
        )
    if not folders or not (folders[0] / MULTIRUN).is_file():
        return list(words)
    if len(words) > 1:
        if "-m" in words or "--multirun" in words:  # somebody writes the whole sweep down again
            return list(words)
        raise RunError(f"resume={folders[0]} names a sweep, which goes on as it began; leave out the other words.")
    folder = folders[0].absolute()
    plain: Any = OmegaConf.to_container(values(folder / MULTIRUN))  # references stay text
    overrides = (plain.get("hydra") or {}).get("overrides") or {}
    task, options = ([str(word) for word in overrides.get(name) or ()] for name in ("task", "hydra"))
    options = [word for word in options if not word.startswith(("hydra.sweep.dir=", "hydra.mode="))]
    task = [word for word in task if not _sets(word, "resume")]  # of an earlier time that it went on
    outside = [word for word in task if _sets(word, "run_dir") and not _inside(word.partition("=")[2], folder)]
    refused = [
        *outside,
        *(word for word in task if not _is_value(word)),
        *(word for word in options if not HYDRA.fullmatch(word)),
    ]
    again = [f"hydra.sweep.dir={quoted(folder)}", f"resume={quoted(folder)}"]
    if refused:
        raise RunError(
            f"{folder / MULTIRUN} sets {refused[0]}, which may call or write anything; if you trust it, type the sweep "
            f"again: fedbayes -m ... {' '.join(again)}, with modules of your own in the variable FEDBAYES_TRUST."
        )
    return ["-m", *task, *options, *again]


def _sets(word: str, name: str) -> bool:
    """Whether a word of a sweep sets that value."""
    return word.partition("=")[0].lstrip("+~").partition("@")[0].strip() == name


def _inside(path: str, folder: Path) -> bool:
    """Whether a path, as a word of a sweep gives it, is a single one that lies in the sweep's folder."""
    plain = path.strip("'\"")
    return re.fullmatch(r"[\w./ -]+", plain) is not None and Path(plain).resolve().is_relative_to(folder.resolve())


def _is_value(word: str) -> bool:
    """Whether a word of a sweep sets a value or makes a choice, and nothing of Hydra's own."""
    key, equals, value = word.partition("=")
    key = key.lstrip("+~").partition("@")[0]
    if not equals or not re.match(r"\w", key) or key.partition("/")[0].partition(".")[0] == "hydra" or "${" in word:
        return False
    return CHOICE.fullmatch(value) is not None if "/" in key or (CONF / key).is_dir() else True

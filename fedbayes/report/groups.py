"""Finished runs, gathered: those that differ in nothing but their seeds, and have the same test images, are a group."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, final

from fedbayes.errors import RunError
from fedbayes.report.spread import Spread, flatten, look_up, spread
from fedbayes.storage.names import CONFIG, SUBJECT
from fedbayes.storage.run_dir import FINISHED, METRICS, SUMMARY, SWEEP, read_jobs, read_rows, read_summary

# Where a run lies, how it is shown and saved, and on what it ran, do not make it another experiment.
_NO_EXPERIMENT = ("run_dir", "resume", "dry_run", "tracking", "checkpoint", "hydra")
_MACHINE = (
    *(f"simulation.{name}" for name in ("engine", "threads", "device", "cohort", "cache_mb", "timeout", "patience")),
    "evaluate.gallery",
)
_REPEATED = ("emulator._target_", "sparse._target_")
"""What the name of a choice says already."""

_SHARED = (
    "rounds",
    "clients",
    "participation",
    "evaluate",
    "attack",
    "update_clipping",
    "faults",
    "privacy",
    *SUBJECT[1:],
)
"""Sections that say what the experiment is, rather than the method: to be equal where methods are compared."""

_Key = tuple[Any, ...]
_Settings = dict[_Key, dict[str, str]]


@final
@dataclass(frozen=True)
class Group:
    """Runs that are equal up to seeds.

    Attributes:
        names: method, data, partition and backbone.
        settings: in which it differs from other groups of the same names, as in `num_extra=10`, and in which its
            experiment differs from that of any other group, as in `rounds=5`.
        runs: directories and summaries of its runs.
        unlike: names of those settings that belong to the experiment.
        seeds: of each run, by name, as in `{"seed": "0", "partition.seed": "0"}`.
    """

    names: tuple[str, ...]
    settings: tuple[str, ...]
    runs: tuple[tuple[Path, dict[str, Any]], ...]
    unlike: tuple[str, ...] = ()
    seeds: tuple[Mapping[str, str], ...] = ()

    @property
    def varied(self) -> tuple[str, ...]:
        """Names of the seeds in which the runs differ: all that their spread tells of."""
        names = dict.fromkeys(name for seeds in self.seeds for name in seeds)
        return tuple(name for name in names if len({seeds.get(name) for seeds in self.seeds}) > 1)

    def values(self, *path: str) -> list[float]:
        """The number at a place of each summary, as in `values("final", "nll")`; runs without it are passed over."""
        numbers = [look_up(summary, path) for _, summary in self.runs]
        return [value for value in numbers if value is not None]

    def spread(self, *path: str) -> Spread | None:
        """Mean and standard error of the number at a place of each summary."""
        return spread(self.values(*path))


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """The finished runs in and below some folders, each once.

    Args:
        folders: run directories, or folders that hold some at any depth.

    Raises:
        RunError: if a folder is missing or holds no finished run.
    """
    unique: dict[Path, Path] = {}
    for folder in (folder.expanduser() for folder in folders):
        if not folder.is_dir():
            raise RunError(f"{folder} is not a folder; name a run directory, or a folder that holds some.")
        runs = sorted(path.parent for path in folder.rglob(SUMMARY))
        if not runs:
            begun = sum(1 for _ in folder.rglob(METRICS))
            state = f"{begun} unfinished" if begun else f"no {SUMMARY} in or below it"
            raise RunError(f"{folder} holds no finished run ({state}); name a folder of finished runs.")
        for run in runs:
            unique.setdefault(run.resolve(), run)
    return list(unique.values())


def group_runs(runs: Sequence[Path]) -> tuple[list[Group], int]:
    """Gathers runs that are equal up to seeds.

    Args:
        runs: directories of finished runs.

    Returns:
        The groups, and how many runs are left out because a later one has the same seeds and settings.

    Raises:
        RunError: if a file of a run is broken.
    """
    collected: dict[_Key, dict[_Key, tuple[Path, dict[str, Any]]]] = {}
    settings: _Settings = {}
    repeated = 0
    for run in sorted(runs, key=lambda run: (run / SUMMARY).stat().st_mtime):
        summary = read_run(run)
        flat = {name: str(value) for name, value in flatten(_config(run))}
        names = tuple(str(summary.get(name) or "–") for name in SUBJECT)
        fixed = {
            key: value
            for key, value in flat.items()
            if not _is_seed(key) and not key.startswith((*_MACHINE, *_REPEATED))
        }
        if flat.get("rounds") == _rounds_of_method(names[0]):  # of a method without training
            fixed.pop("rounds", None)
        fixed["test clients and images"] = coverage(summary) or "all"
        seeds = (("seed", str(summary.get("seed"))), *((key, flat[key]) for key in sorted(flat) if _is_seed(key)))
        key = (names, tuple(sorted(fixed.items())))
        settings[key] = fixed
        members = collected.setdefault(key, {})
        repeated += seeds in members  # the same run again would make the standard error look smaller than it is
        members[seeds] = (run, summary)
    groups = []
    for key, members in collected.items():
        unlike = _unlike(key, settings)
        ordered = sorted(members.items())
        runs_of_group, seeds_of_runs = tuple(run for _, run in ordered), tuple(dict(seeds) for seeds, _ in ordered)
        labels = tuple(_differences(key, settings, unlike))
        groups.append(Group(key[0], labels, runs_of_group, tuple(unlike), seeds_of_runs))
    return groups, repeated


def read_run(run: Path) -> dict[str, Any]:
    """Return a run's summary, with `validation`: accuracy and NLL in the round that is best by validation.

    Raises:
        RunError: if a file of the run is broken.
    """
    summary = read_summary(run)
    rows = [row for row in read_rows(run / METRICS) if row.get("phase") == "validation"]
    best = look_up(summary, ("best", "round"))
    chosen = next((row for row in rows if row.get("round") == best), {})
    return {**summary, "validation": {name: chosen.get(name) for name in ("accuracy", "nll")}}


def coverage(summary: Mapping[str, Any]) -> str:
    """Return of how many clients and images the final numbers are, as in `1 of 4 clients, 14 of 56 images`.

    Returns:
        Nothing where all clients that were asked have answered, or a run does not say.
    """
    final = summary.get("final") or {}
    numbers = [(name, look_up(final, (name,)), look_up(final, (f"{name}_expected",))) for name in ("clients", "images")]
    if all(expected is None or count == expected for _, count, expected in numbers):
        return ""
    texts = [f"{count:,}" + (f" of {total:,}" if total else "") + f" {name}" for name, count, total in numbers if count]
    return ", ".join(texts)


def trials(runs: Sequence[Path]) -> dict[Path, bool]:
    """Return the runs that are trials of a search on validation, and whether each is its search's winner."""
    winners: dict[Path, bool] = {}
    for folder, rows in _sweeps(runs):
        jobs = [row for row in rows if row.get("is_search") and row.get("validation") is not None]
        best = max(jobs, key=lambda row: float(row["validation"]), default=None)
        for row in jobs:
            path = folder / str(row.get("folder"))
            winners |= {run: row is best for run in runs if run.resolve() == path.resolve()}
    return winners


def unfinished(runs: Sequence[Path]) -> list[str]:
    """The jobs without a result of the sweeps that runs belong to, a line for each such sweep."""
    lines = []
    for folder, jobs in _sweeps(runs):
        left = [",".join(map(str, row["overrides"])) for row in jobs if row.get("status") != FINISHED]
        if left:
            lines.append(f"{len(left)} of {len(jobs)} jobs of {folder} have no result: {'; '.join(left)}.")
    return lines


def _sweeps(runs: Sequence[Path]) -> Iterator[tuple[Path, list[dict[str, Any]]]]:
    """Folders and jobs of the sweeps that runs belong to."""
    for folder in sorted({run.parent for run in runs if (run.parent / SWEEP).is_file()}):
        yield folder, read_jobs(folder)


def _differences(key: _Key, settings: Mapping[_Key, Mapping[str, str]], unlike: Sequence[str]) -> list[str]:
    """The settings in which a group differs from others of its names, and its experiment from that of any other."""
    rivals = [fixed for other, fixed in settings.items() if other[0] == key[0]]
    chosen = settings[key]
    names = [name for name in _differing(chosen, rivals) if name not in unlike]
    names = [name for name in names if not any(name.endswith(f".{other}") for other in names)]  # one repeats the other
    ends = [name.split(".")[-1] for name in names]
    short = [end if ends.count(end) == 1 else name for name, end in zip(names, ends, strict=True)]
    labels = sorted([*zip(short, names, strict=True), *((name, name) for name in unlike)], key=lambda pair: pair[1])
    return [f"{label}={chosen.get(name, '–')}" for label, name in labels]


def _unlike(key: _Key, settings: Mapping[_Key, Mapping[str, str]]) -> list[str]:
    """The settings of the experiment in which a group differs from any other of its data, partition or backbone."""
    names = []
    for section in _SHARED:
        place = SUBJECT.index(section) if section in SUBJECT else None
        rivals = [fixed for other, fixed in settings.items() if place is None or other[0][place] == key[0][place]]
        if section == "rounds":  # absent for a method without training
            rivals = [fixed for fixed in rivals if {"rounds"} <= settings[key].keys() & fixed.keys()]
        names += [name for name in _differing(settings[key], rivals) if name.split(".")[0] == section]
    return sorted(names)


def _differing(chosen: Mapping[str, str], rivals: Sequence[Mapping[str, str]]) -> list[str]:
    names = sorted({name for fixed in rivals for name in fixed})
    return [name for name in names if any(fixed.get(name) != chosen.get(name) for fixed in rivals)]


@cache
def _rounds_of_method(method: str) -> str | None:
    """The rounds that a method's file sets, as one does that does not train; None where the user chooses."""
    from fedbayes.config.compose import CONF
    from fedbayes.config.stored import values

    path = CONF / "method" / f"{method}.yaml"
    rounds = values(path).get("rounds") if path.is_file() else None
    return None if rounds is None else str(rounds)


def _is_seed(key: str) -> bool:
    return key.split(".")[-1] == "seed"


def _config(run: Path) -> Mapping[str, Any]:
    """A run's configuration; empty where it was not kept."""
    from omegaconf import OmegaConf

    from fedbayes.config.stored import values

    path = run / CONFIG
    content: Any = OmegaConf.to_container(values(path)) if path.exists() else {}
    return {str(name): value for name, value in content.items() if name not in _NO_EXPERIMENT}

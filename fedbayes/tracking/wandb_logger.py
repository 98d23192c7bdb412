"""Weights & Biases as a second home of a run's numbers; the files in the run directory remain the first."""

import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, final
from urllib.parse import urlparse

from fedbayes.errors import ConfigError, RunError, require_choice
from fedbayes.storage import checkpoint, files
from fedbayes.storage.names import CONFIG
from fedbayes.storage.run_dir import CLIENTS, METRICS, PLOTS, REPORT, REPORTS, SWEEP, plain, read_rows, require_own

if TYPE_CHECKING:
    import wandb

_MODES = ("auto", "online", "offline", "disabled")
_HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")  # the default server has moved once already
_SECONDS_TO_CONNECT = 30.0
_KEY = ("round", "phase", "partition")  # tells rows apart


def has_key(environment: Mapping[str, str], home: Path) -> bool:
    """Whether W&B would find credentials, told from variables and files alone: no network, no prompt.

    Args:
        environment: the process's variables.
        home: where `.netrc` and `.config/wandb/settings` lie.
    """
    if environment.get("WANDB_API_KEY") or environment.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    lines = [line.partition("=") for line in _words(home / ".config" / "wandb" / "settings", by_line=True)]
    servers = [value.strip() for key, _, value in lines if key.strip() == "base_url"]
    hosts = {*_HOSTS, *(urlparse(server).netloc for server in (environment.get("WANDB_BASE_URL", ""), *servers))}
    named = environment.get("NETRC")
    files = [Path(named).expanduser()] if named else [home / ".netrc", home / "_netrc"]
    return any(hosts & set(_words(path)) for path in files)


def _words(path: Path, *, by_line: bool = False) -> list[str]:
    """The words of a file, or its lines; none of a file that cannot be read."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return text.splitlines() if by_line else text.split()


def choose_mode(requested: str, environment: Mapping[str, str], home: Path) -> str:
    """The mode to start W&B in: `auto` follows `WANDB_MODE`, then goes online with a key and offline without.

    Args:
        requested: "auto", "online", "offline" or "disabled".
        environment: the process's variables.
        home: the user's home directory.

    Raises:
        ConfigError: for another word, here or in `WANDB_MODE`.
        RunError: if online was asked for and there is no key; W&B would stop and ask for one.
    """
    require_choice("tracking.destinations.mode", requested, _MODES)
    mode = environment.get("WANDB_MODE") or "auto" if requested == "auto" else requested
    if mode not in (*_MODES, "run", "dryrun", "shared"):
        raise ConfigError(f"WANDB_MODE={mode!r} is unknown; set it to online, offline or disabled, or unset it.")
    known = has_key(environment, home)
    if mode == "auto":
        return "online" if known else "offline"
    if mode in ("online", "run", "shared") and not known:
        raise RunError(f"W&B was asked to be {mode} but has no key; set WANDB_API_KEY, or choose mode=auto.")
    return mode


@final
class WeightsAndBiases:
    """Sends rows, pictures and the report to Weights & Biases, or to files that `wandb sync` sends later.

    Args:
        run_dir: the run's directory; W&B's own files go to `wandb/` inside it. A resumed run goes on as the W&B run
            that is there.
        config: the resolved configuration.
        project: the W&B project.
        group: a name that runs of one sweep share; None takes that of the sweep's folder for a job of one.
        mode: "auto", "online", "offline" or "disabled"; see `choose_mode`.

    Raises:
        ConfigError: for an unknown mode.
        RunError: if online was asked for and W&B cannot be reached; `auto` goes on offline.
    """

    def __init__(
        self,
        run_dir: Path,
        config: Mapping[str, Any],
        project: str = "fedbayes",
        group: str | None = None,
        mode: str = "auto",
    ) -> None:
        import wandb
        from wandb.errors import CommError, UsageError

        if os.environ.get("WANDB_MODE") == "":  # W&B takes it for a mode
            del os.environ["WANDB_MODE"]
        chosen = choose_mode(mode, os.environ, Path.home())
        if group is None and (run_dir.parent / SWEEP).exists():
            group = run_dir.parent.name
        before = _id_of(run_dir)

        def begin(chosen: str) -> "wandb.Run":
            return wandb.init(
                project=project,
                group=group,
                name=run_dir.name,
                dir=str(run_dir),
                config=plain(config),
                id=before,
                resume=None if before is None or chosen == "offline" else "allow",  # offline, the id alone joins them
                mode=chosen,  # type: ignore[arg-type]  # one of W&B's words, see choose_mode
                reinit="create_new",  # several runs of one process stay apart
                settings=wandb.Settings(init_timeout=_SECONDS_TO_CONNECT, console="off", silent=True),
            )

        try:
            self._run = begin(chosen)
        except (CommError, UsageError) as error:
            reason = str(error).partition("\n")[0]
            if mode != "auto" or chosen != "online":
                raise RunError(
                    f"W&B did not start in mode {chosen} ({reason}); check the key, or mode=offline."
                ) from error
            logging.getLogger("fedbayes").warning("W&B cannot be reached (%s); its run is kept offline.", reason)
            self._run = begin("offline")
        self._run_dir, self._behind = run_dir, before is not None
        self._step = 0
        self._clients: dict[str, list[dict[str, Any]]] = {}

    def log(self, row: Mapping[str, Any]) -> None:
        """Logs a row's numbers as `phase/name` at the step of its round."""
        self._catch_up(row.get("round"))
        phase, at = row.get("phase", "run"), row.get("round")
        values: dict[str, Any] = {
            f"{phase}/{name}": value
            for name, value in row.items()
            if name != "round" and isinstance(value, int | float) and not isinstance(value, bool)
        }
        if isinstance(at, int) and at < self._step:
            values[f"{phase}/round"] = at  # it is shown at a later step
        self._log(values, at)

    def log_clients(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Logs how accuracy and NLL spread over the clients; the last rows of a phase become its table at the end."""
        import wandb

        self._catch_up(rows[0].get("round") if rows else None)
        by_phase: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            by_phase.setdefault(str(row.get("phase", "run")), []).append(dict(row))
        for phase, found in by_phase.items():
            self._clients[phase] = found
            spread = {}
            for name in ("accuracy", "nll"):
                values = [row[name] for row in found if row.get(name) is not None]
                if values:
                    spread[f"{phase}/clients/{name}"] = wandb.Histogram(values)
            if spread:
                self._log(spread, found[0].get("round"))

    def finish(self, run_dir: Path, summary: Mapping[str, Any] | None) -> str:
        """Sends tables, pictures, summary, report and newest checkpoint; ends the W&B run, without a summary as failed.

        Returns:
            Where the W&B run is found, in one line.
        """
        import wandb

        self._catch_up(math.inf)
        folder = Path(self._run.dir).parent
        where = f"W&B: offline; `wandb sync {folder}` sends it" if self._run.offline else f"W&B: {self._run.url}"
        if summary is None:
            self._run.finish(exit_code=1)
            return where
        require_own(run_dir)  # what is sent is the run's, and no file elsewhere
        tables = dict(self._clients)
        if summary.get("per_client"):
            tables["final"] = [dict(row) for row in summary["per_client"]]
        last: dict[str, Any] = {}
        for phase, rows in tables.items():
            columns: list[str | int] = list(dict.fromkeys(name for row in rows for name in row))
            last[f"clients/{phase}"] = wandb.Table(
                columns=columns, data=[[row.get(str(name)) for name in columns] for row in rows]
            )
        for picture in sorted((run_dir / PLOTS).glob("*.png")):
            last[f"plots/{picture.stem}"] = wandb.Image(str(picture))
        if last:
            self._log(last, None)
        self._run.summary.update(plain(summary))
        if (run_dir / REPORT).exists():
            report = wandb.Artifact(f"report-{self._run.id}", type="report")
            for path in (run_dir / name for name in REPORTS):  # with the tables that the page links to
                if path.exists():
                    report.add_file(str(path))
            self._run.log_artifact(report)
        if stored := checkpoint.finished(run_dir):
            model = wandb.Artifact(
                f"checkpoint-{self._run.id}", type="model", metadata={"round": summary.get("rounds")}
            )
            for path in stored[-1].iterdir():
                files.require_file(path)
            model.add_dir(str(stored[-1]))
            if (run_dir / CONFIG).exists():
                model.add_file(str(run_dir / CONFIG))
            self._run.log_artifact(model)
        self._run.finish()
        return where

    def _catch_up(self, before: object) -> None:
        """Log the rounds of earlier processes once: what W&B had not written when they ended is lost to it.

        Offline each process has a folder of its own, so the newest then holds every round.
        """
        if not self._behind:
            return
        self._behind = False
        rows = {name: read_rows(self._run_dir / name, _KEY) for name in (METRICS, CLIENTS)}
        last = before if isinstance(before, int | float) else 0
        for done in sorted({row["round"] for row in rows[METRICS] if row.get("round", last) < last}):
            for row in rows[METRICS]:
                if row.get("round") == done:
                    self.log(row)
            if of_clients := [row for row in rows[CLIENTS] if row.get("round") == done]:
                self.log_clients(of_clients)

    def _log(self, values: Mapping[str, Any], step: object) -> None:
        """Logs at a round's step; W&B drops what goes back to an earlier one, so the step never decreases."""
        if isinstance(step, int):
            self._step = max(self._step, step)
        self._run.log(dict(values), step=self._step)


def _id_of(run_dir: Path) -> str | None:
    """The id of the W&B run that an earlier process began in this directory, if any; its folder's name ends with it."""
    folders = sorted(run_dir.glob("wandb/*run-*-*"))
    return folders[0].name.rpartition("-")[2] if folders else None

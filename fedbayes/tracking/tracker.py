"""What a run leaves behind: rows as they come, a log, and at the end its summary, pictures and report."""

import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TextIO, final

from fedbayes.storage.names import CONFIG
from fedbayes.storage.run_dir import CLIENTS, LOG, METRICS, REPORT, SECURE, SUMMARY, keep_rounds, plain, write_json
from fedbayes.text import visible
from fedbayes.tracking.console import RoundProgress

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from fedbayes.storage.checkpoint import Checkpoint

_LOGGERS = ("fedbayes", "flwr")


class Destination(Protocol):
    """Somewhere else that wants a run's rows, besides its directory."""

    def log(self, row: Mapping[str, Any]) -> None:
        """Takes one row of `metrics.jsonl`."""

    def log_clients(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Takes the rows of `clients.jsonl` of one round and phase."""

    def finish(self, run_dir: Path, summary: Mapping[str, Any] | None) -> str | None:
        """Ends the run; the directory holds summary, plots and report, unless the summary is None: it broke off.

        Returns:
            Where to find the run there, in one line, or None.
        """


@final
class _LogFile(logging.FileHandler):
    """A log whose trouble, such as a full disk, ends the run; Python's own prints it and goes on."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802, ARG002  (logging's name)
        raise  # it is called while the error is handled


@final
class _Lines(logging.Formatter):
    """A record of the log is a line: what names and errors bring along neither begins one nor acts on a terminal."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  (logging's name)
        record.message = "\t".join(map(visible, record.message.split("\t")))  # Flower indents by tabs
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802
        lines = []
        for entry in traceback.format_exception(*ei):
            mark = "" if entry.startswith("  ") else "    "  # further lines of an error's own text
            lines.append(f"\n{mark}".join(map(visible, entry.rstrip("\n").split("\n"))))
        return "\n".join(lines)


@final
class Tracker:
    """Writes a run down while it goes on; a context manager around the rounds.

    Args:
        run_dir: the run's directory, as `claim` returned it.
        rounds: the last round of the run.
        title: what runs, in a few words.
        destinations: who else wants the rows. One that fails is noted and left out; the run goes on.
        console: where to show progress and results; standard output by default.
        resumed_after: the round a resumed run goes on from; later rows of its files are dropped.
    """

    def __init__(
        self,
        run_dir: Path,
        rounds: int,
        title: str,
        destinations: Sequence[Destination] = (),
        console: "Console | None" = None,
        resumed_after: int | None = None,
    ) -> None:
        from rich.console import Console

        self._run_dir = run_dir
        self._title = title
        self._destinations = list(destinations)
        self._console = Console(file=sys.stdout) if console is None else console
        self._progress = RoundProgress(self._console, rounds, title)
        self._resumed_after = resumed_after
        self._provenance: dict[str, Any] | None = None
        self._files: dict[str, TextIO] = {}
        self._handler: logging.Handler = logging.NullHandler()
        self._level = logging.NOTSET
        self._consoles: dict[logging.Handler, int] = {}

    def __enter__(self) -> Self:
        """Opens the files and the display."""
        for name in (METRICS, CLIENTS):
            if self._resumed_after is not None:
                keep_rounds(self._run_dir / name, self._resumed_after)
            self._files[name] = (self._run_dir / name).open("a", encoding="utf-8")
        self._handler = _LogFile(self._run_dir / LOG, encoding="utf-8")
        self._handler.setFormatter(_Lines("%(asctime)s %(levelname)-7s %(message)s"))
        # What Flower's own strategies tell of each round goes to the file; the terminal has the progress.
        self._consoles = {handler: handler.level for handler in logging.getLogger("flwr").handlers}
        for handler, level in self._consoles.items():
            handler.setLevel(max(level, logging.WARNING))
        for name in _LOGGERS:
            logging.getLogger(name).addHandler(self._handler)
        ours = logging.getLogger("fedbayes")
        self._level = ours.level
        if ours.getEffectiveLevel() > logging.INFO:
            ours.setLevel(logging.INFO)
        go_on = "" if self._resumed_after is None else f", resumed after round {self._resumed_after}"
        self._record(logging.INFO, f"{self._title}{go_on}; its configuration is in {CONFIG}")
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes everything; what breaks the run off stands in `run.log` with its traceback."""
        self._progress.stop()
        if error is not None:
            # Ctrl-C has no text of its own.
            text = "interrupted" if isinstance(error, KeyboardInterrupt) else f"broken off by {type(error).__name__}"
            with suppress(OSError):  # a full disk may be why it breaks off
                self._record(logging.ERROR, f"{text}: {error}".rstrip(": "), error)
        self._finish(None)
        logging.getLogger("fedbayes").setLevel(self._level)
        for name in _LOGGERS:
            logging.getLogger(name).removeHandler(self._handler)
        for handler, level in self._consoles.items():
            handler.setLevel(level)
        with suppress(OSError):
            self._handler.close()
        for file in self._files.values():
            with suppress(OSError):
                file.close()

    def keep(self, stored: "Checkpoint") -> None:
        """Stores a checkpoint, once the disk holds every row that it counts on."""
        from fedbayes.storage import checkpoint  # torch takes seconds to load, and pages need none of it
        from fedbayes.tracking.provenance import provenance

        for file in self._files.values():
            os.fsync(file.fileno())
        if self._provenance is None:
            self._provenance = provenance()
        history = {**stored.history, "made_by": self._provenance}
        checkpoint.save(self._run_dir, replace(stored, history=history))

    def log(self, row: Mapping[str, Any]) -> None:
        """Writes a row of `metrics.jsonl` and shows it.

        Args:
            row: `round`, `phase` ("train", "validation", "test", "held_out", "triggered", "new_clients_N" for N steps)
                and numbers; NaN and infinity become null.
        """
        kept = plain(row)
        self._write(METRICS, [kept])
        self._progress.log(kept)
        for destination in list(self._destinations):
            try:
                destination.log(kept)
            except Exception as error:
                self._leave_out(destination, error)

    def log_clients(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes rows of `clients.jsonl`: `round`, `phase`, `partition`, `images` and numbers, one row per client."""
        kept = [plain(row) for row in rows]
        self._write(CLIENTS, kept)
        for destination in list(self._destinations):
            try:
                destination.log_clients(kept)
            except Exception as error:
                self._leave_out(destination, error)

    def replay(self, records: Sequence[logging.LogRecord]) -> None:
        """Write to `run.log` what was logged before there was one."""
        for record in records:
            self._handler.handle(record)

    def note(self, text: str) -> None:
        """Writes a line to `run.log` and shows it."""
        self._record(logging.INFO, text)
        self._progress.note(text)

    def report(self, summary: Mapping[str, Any], publish: "Callable[[Path], RenderableType]") -> None:
        """Ends the run: summary, pictures and report on disk, the table on the terminal.

        Args:
            summary: the object of `summary.json`.
            publish: draws the pictures and the page of a run directory, and returns the table to print.
        """
        kept = plain(summary)
        self._progress.stop()
        if kept.get("secure"):
            write_json(self._run_dir / SECURE, kept["secure"])
        write_json(self._run_dir / SUMMARY, kept)
        self._console.print(publish(self._run_dir))
        self._finish(kept)
        where = f"report: {self._run_dir / REPORT}"
        self._console.print(visible(where), markup=False, highlight=False, soft_wrap=True)
        self._record(logging.INFO, f"finished; {where}")

    def _write(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Appends rows to a file, visible to readers at once."""
        file = self._files[name]
        file.write("".join(json.dumps(row, allow_nan=False, ensure_ascii=False) + "\n" for row in rows))
        file.flush()

    def _record(self, level: int, text: str, error: BaseException | None = None) -> None:
        """Writes to `run.log` alone: through the logger it would appear on a console that others set up, too."""
        trace = None if error is None else (type(error), error, error.__traceback__)
        self._handler.handle(logging.LogRecord("fedbayes", level, __file__, 0, text, None, trace))

    def _finish(self, summary: Mapping[str, Any] | None) -> None:
        """Ends every destination, once."""
        while self._destinations:
            destination = self._destinations.pop(0)
            try:
                where = destination.finish(self._run_dir, summary)
            except Exception as error:
                self._leave_out(destination, error)
            else:
                if where:
                    self.note(where)

    def _leave_out(self, destination: Destination, error: Exception) -> None:
        """Goes on without a destination: hours of training matter more than a copy of their numbers."""
        if destination in self._destinations:
            self._destinations.remove(destination)
        text = f"{type(destination).__name__} failed ({type(error).__name__}: {error}); going on without it"
        self._record(logging.WARNING, text, error)
        self._progress.note(text)

"""What a running simulation shows: a live bar on a terminal, one plain line per round everywhere else."""

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, final

from fedbayes.text import duration, fraction, visible

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress


@final
class RoundProgress:
    """Shows rounds as they end: live where the console is a terminal, else as plain lines, never both.

    Args:
        console: where to show it.
        rounds: the last round of the run.
        title: what runs, in a few words.
        clock: seconds from any origin.
    """

    def __init__(
        self, console: "Console", rounds: int, title: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._console = console
        self._rounds = rounds
        self._title = title
        self._clock = clock
        # FORCE_COLOR makes rich call a pipe a terminal; a bar that redraws itself would still be noise there.
        self._live = console.is_terminal and not console.is_dumb_terminal and console.file.isatty()
        self._bar: Progress | None = None
        self._round: int | None = None  # the round in hand, whose line is not out yet
        self._train: Mapping[str, Any] = {}
        self._validation: Mapping[str, Any] = {}
        self._origin: tuple[int, float] | None = None  # (rounds done, clock) when the first row's phase began

    def start(self) -> None:
        """Begins to show and to count time."""
        self._line(self._title)
        if not self._live:
            return
        from rich.progress import BarColumn, Progress, TextColumn
        from rich.table import Column

        one_line = Column(no_wrap=True)
        self._bar = Progress(
            TextColumn("round {task.completed}/{task.total}", table_column=one_line),
            BarColumn(bar_width=None),  # what the numbers leave of the line
            TextColumn("{task.fields[values]}", markup=False, table_column=one_line.copy()),
            console=self._console,
            expand=True,
            refresh_per_second=4,
        )
        self._bar.add_task("", total=self._rounds, values="")
        self._bar.start()

    def log(self, row: Mapping[str, Any]) -> None:
        """Takes a row of `metrics.jsonl`; train and validation rows of a round make one line."""
        phase, current = row.get("phase"), row.get("round")
        if phase not in ("train", "validation") or not isinstance(current, int):
            return
        if current != self._round:
            self._flush()
            self._round, self._train = current, {}
            if self._bar is None:  # the bar goes on showing the last validation it knows
                self._validation = {}
        if self._origin is None:
            # Counted from the first phase's own start, so that loading data does not look like a slow round.
            seconds = row.get("seconds") or 0.0
            self._origin = (current - (phase == "train"), self._clock() - seconds)
        if phase == "train":
            self._train = row
        else:
            self._validation = row
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=current, values=self._values())
        elif phase == "validation":
            self._flush()

    def note(self, text: str) -> None:
        """Shows a line of text, above the bar where there is one."""
        self._line(text)

    def stop(self) -> None:
        """Ends the display; the last state stays in sight, without what was to come."""
        self._flush(over=True)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], values=self._values())
            self._bar.stop()
            self._bar = None

    def _flush(self, *, over: bool = False) -> None:
        """Ends the round in hand, with its line where lines are plain; `over` if nothing comes after it."""
        if self._round is not None and not self._live:
            width = len(str(self._rounds)) + 1
            rest = [] if over else self._rest()
            self._line("  ".join([f"round {self._round:>{width}}/{self._rounds}", *self._numbers(), *rest]))
        self._round = None

    def _values(self) -> str:
        """What the bar shows."""
        return "  ".join([*self._numbers(), *self._rest()])

    def _numbers(self) -> list[str]:
        """Of the round in hand, as far as they are there."""
        found = []
        if "loss" in self._train:
            loss = self._train["loss"]
            found.append("loss –" if loss is None else f"loss {loss:.3f}")
        if (accuracy := self._validation.get("accuracy")) is not None:
            found.append(f"val acc {fraction(accuracy)}")
        if (nll := self._validation.get("nll")) is not None:
            found.append(f"nll {fraction(nll)}")
        if (speed := self._train.get("images_per_second")) is not None:
            found.append(f"{speed:,.0f} images/s")
        if dropped := self._train.get("dropped"):
            found.append(f"{dropped} dropped")
        return found

    def _rest(self) -> list[str]:
        """What is to come: the rounds at the mean pace so far, then a test of unknown length; no time before a pace."""
        if self._round is None or self._origin is None:
            return []
        if self._round >= self._rounds:
            return ["final test to come"]
        done, begun = self._origin
        if self._round <= done:
            return []
        left = (self._clock() - begun) / (self._round - done) * (self._rounds - self._round)
        return [f"{duration(left)} left"]

    def _line(self, text: str) -> None:
        self._console.print(visible(text), markup=False, highlight=False, soft_wrap=True)

import io
import json
import logging
import math
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from fedbayes.errors import RunError
from fedbayes.report.run_page import publish
from fedbayes.storage.run_dir import plain, read_json, read_rows, write_json
from fedbayes.tracking.console import RoundProgress, duration, fraction
from fedbayes.tracking.tracker import Tracker


class Terminal(io.StringIO):
    def isatty(self):
        return True


def console_to(file, **options):
    return Console(file=file, width=120, **options)


def make_tracker(run_dir, **options):
    options.setdefault("console", console_to(io.StringIO()))
    return Tracker(run_dir, 3, "pfedbayespt on digits", **options)


def test_json_has_no_nan_keeps_the_order_and_leaves_no_temporary(tmp_path):
    path = tmp_path / "summary.json"
    write_json(
        path, {"z": math.nan, "a": [math.inf, 1, True], "t": torch.tensor([1.0, math.nan]), "n": np.float32(0.5)}
    )
    assert list(json.loads(path.read_text()).items()) == [
        ("z", None),
        ("a", [None, 1, True]),
        ("t", [1.0, None]),
        ("n", 0.5),
    ]
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "summary.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError, match="object"):
        write_json(path, {"a": object()})
    assert read_json(path) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]


def test_plain_turns_paths_tuples_and_zero_dimensional_arrays_into_json():
    assert plain({"p": Path("a"), "t": (1, 2), "x": torch.tensor(2), "b": np.True_}) == {
        "p": "a",
        "t": [1, 2],
        "x": 2,
        "b": True,
    }


def test_read_json_names_a_broken_file(tmp_path):
    (tmp_path / "summary.json").write_text('{"a": ')
    with pytest.raises(RunError, match=r"summary\.json"):
        read_json(tmp_path / "summary.json")


def test_a_row_is_on_disk_when_log_returns_and_nan_is_null(tmp_path):
    with make_tracker(tmp_path) as tracker:
        tracker.log({"round": 1, "phase": "train", "loss": math.nan, "other": 3})
        assert read_rows(tmp_path / "metrics.jsonl") == [{"round": 1, "phase": "train", "loss": None, "other": 3}]
        tracker.log_clients([{"round": 1, "phase": "test", "partition": i, "accuracy": 0.5} for i in range(2)])
        assert len((tmp_path / "clients.jsonl").read_text().splitlines()) == 2


def test_a_resumed_run_drops_rows_of_later_rounds_and_half_lines(tmp_path):
    with make_tracker(tmp_path) as tracker:
        for r in (1, 2, 3):
            tracker.log({"round": r, "phase": "train", "loss": float(r)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"round": 4, "pha')
    with make_tracker(tmp_path, resumed_after=2) as tracker:
        tracker.log({"round": 3, "phase": "train", "loss": 9.0})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["round"], row["loss"]) for row in lines] == [(1, 1.0), (2, 2.0), (3, 9.0)]


def test_the_log_takes_both_loggers_and_lets_go_of_them(tmp_path):
    ours, flower = logging.getLogger("fedbayes"), logging.getLogger("flwr")
    before = (ours.level, list(ours.handlers), list(flower.handlers))
    levels = [handler.level for handler in flower.handlers]
    with make_tracker(tmp_path) as tracker:
        logging.getLogger("fedbayes.server.rounds").info("round %d begins", 1)
        flower.warning("a reply is late")
        assert all(handler.level >= logging.WARNING for handler in before[2]), "no line of Flower's in the progress"
        tracker.note("client 3 left out")
    flower.warning("not ours any more")
    text = (tmp_path / "run.log").read_text()
    for part in ("round 1 begins", "WARNING a reply is late", "client 3 left out", "configuration is in config.yaml"):
        assert part in text
    assert "not ours" not in text
    assert (ours.level, list(ours.handlers), list(flower.handlers)) == before
    assert [handler.level for handler in flower.handlers] == levels


@pytest.mark.parametrize(
    ("error", "text_of_error"),
    [(ValueError("bad [red] batch"), "ValueError: bad [red] batch"), (KeyboardInterrupt(), "interrupted")],
)
def test_what_breaks_a_run_off_stands_in_the_log_with_its_traceback(tmp_path, error, text_of_error):
    with pytest.raises(type(error)), make_tracker(tmp_path):
        raise error
    text = (tmp_path / "run.log").read_text()
    assert text_of_error in text
    assert "Traceback" in text


class Elsewhere:
    def __init__(self, fails=False):
        self.fails, self.rows, self.finished = fails, [], []

    def log(self, row):
        if self.fails:
            raise ConnectionError("no network")
        self.rows.append(row)

    def log_clients(self, rows):
        self.rows.extend(rows)

    def finish(self, run_dir, summary):
        self.finished.append((summary, (run_dir / "report.html").exists()))


def test_destinations_get_rows_and_end_once_after_the_report(tmp_path):
    elsewhere = Elsewhere()
    with make_tracker(tmp_path, destinations=[elsewhere]) as tracker:
        tracker.log({"round": 1, "phase": "train", "loss": math.inf})
        tracker.log_clients([{"round": 1, "partition": 0}])
        tracker.report({"method": "m", "seed": 0}, publish)
    assert elsewhere.rows == [{"round": 1, "phase": "train", "loss": None}, {"round": 1, "partition": 0}]
    assert elsewhere.finished == [({"method": "m", "seed": 0}, True)]


def test_a_destination_hears_that_a_run_broke_off(tmp_path):
    elsewhere = Elsewhere()
    with pytest.raises(KeyboardInterrupt), make_tracker(tmp_path, destinations=[elsewhere]):
        raise KeyboardInterrupt
    assert elsewhere.finished == [(None, False)]


def test_a_failing_destination_does_not_end_the_run(tmp_path):
    output = io.StringIO()
    broken, sound = Elsewhere(fails=True), Elsewhere()
    with make_tracker(tmp_path, destinations=[broken, sound], console=console_to(output)) as tracker:
        for r in (1, 2):
            tracker.log({"round": r, "phase": "train", "loss": 1.0})
    assert len(sound.rows) == 2
    assert output.getvalue().count("no network") == 1
    assert "no network" in (tmp_path / "run.log").read_text()


def test_report_writes_everything_and_says_where(tmp_path):
    output = io.StringIO()
    with make_tracker(tmp_path, console=console_to(output)) as tracker:
        tracker.log({"round": 1, "phase": "train", "loss": 1.0})
        tracker.report({"method": "m", "final": {"round": 1, "nll": math.nan, "accuracy": {"mean": 0.75}}}, publish)
    assert read_json(tmp_path / "summary.json")["final"] == {"round": 1, "nll": None, "accuracy": {"mean": 0.75}}
    assert (tmp_path / "plots" / "train_loss.png").stat().st_size > 1000
    assert "0.750" in output.getvalue()
    assert f"report: {tmp_path / 'report.html'}" in output.getvalue().replace("\n", "")


def run_rounds(progress, tick):
    progress.start()
    for r in (1, 2, 3):
        tick()
        progress.log({"round": r, "phase": "train", "loss": 1.2341, "images_per_second": 1520.4, "seconds": 10.0})
        progress.log({"round": r, "phase": "validation", "accuracy": 0.812, "nll": 0.612})
    progress.stop()


@pytest.fixture
def clock():
    now = [100.0]

    def read():
        return now[0]

    read.tick = lambda: now.__setitem__(0, now[0] + 10.0)
    return read


def test_without_a_terminal_progress_is_one_plain_line_per_round(clock, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as in many CI systems
    output = io.StringIO()
    run_rounds(RoundProgress(console_to(output), 3, "digits [bold]", clock), clock.tick)
    assert "\x1b" not in output.getvalue()
    assert output.getvalue().splitlines() == [
        "digits [bold]",
        "round  1/3  loss 1.234  val acc .812  nll .612  1,520 images/s  0:20 left",
        "round  2/3  loss 1.234  val acc .812  nll .612  1,520 images/s  0:10 left",
        "round  3/3  loss 1.234  val acc .812  nll .612  1,520 images/s  final test to come",
    ]


def test_a_round_without_validation_has_its_line_too(clock):
    output = io.StringIO()
    progress = RoundProgress(console_to(output), 2, "digits", clock)
    progress.start()
    progress.log({"round": 1, "phase": "train", "loss": None, "dropped": 2})
    progress.log({"round": 2, "phase": "train", "loss": 0.5})
    progress.log({"round": 2, "phase": "test", "accuracy": 0.1})
    progress.stop()
    assert output.getvalue().splitlines()[1:] == [
        "round  1/2  loss –  2 dropped  0:00 left",
        "round  2/2  loss 0.500",
    ]


def test_on_a_terminal_progress_is_a_bar_and_no_lines(clock, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    output = Terminal()
    run_rounds(RoundProgress(console_to(output, force_terminal=True), 3, "digits", clock), clock.tick)
    assert "\x1b" in output.getvalue()
    assert "3/3" in output.getvalue()
    assert "round  3/3  loss" not in output.getvalue()


def test_the_bar_says_that_a_test_is_to_come_until_it_is_over(clock, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    output = Terminal()
    progress = RoundProgress(console_to(output, force_terminal=True), 1, "digits", clock)
    progress.start()
    progress.log({"round": 1, "phase": "validation", "accuracy": 0.812})
    end = time.monotonic() + 20
    while "val acc .812  final test to come" not in output.getvalue():  # drawn by a thread
        assert time.monotonic() < end
        time.sleep(0.05)
    progress.stop()
    assert "to come" not in output.getvalue().rpartition("1/1")[2]


def test_numbers_read_as_in_a_paper():
    assert [fraction(value) for value in (0.8124, 1.0, 1.5, 0.9996, None)] == [".812", "1.000", "1.500", "1.000", "–"]
    assert [duration(seconds) for seconds in (0, 41.2, 3723)] == ["0:00", "0:41", "1:02:03"]


def test_a_name_forges_no_line_of_the_log_and_acts_on_no_terminal(tmp_path):
    forged = "x\n1999-01-01 03:00:00,000 INFO    finished\u2028\r\x1b]0;owned\x07"
    console = Console(file=io.StringIO(), width=80)

    def run():
        with Tracker(tmp_path, 1, forged, console=console) as tracker:
            tracker.note(forged)
            logging.getLogger("flwr").warning("\tindented")
            raise ValueError(forged)

    with pytest.raises(ValueError, match="x"):
        run()
    output = r"x\n1999-01-01 03:00:00,000 INFO    finished\u2028\r\x1b]0;owned\x07"
    text = (tmp_path / "run.log").read_text()
    assert text.count(output) == 3
    assert "WARNING \tindented" in text
    assert not any(line.startswith("1999-01-01") for line in text.splitlines())
    assert console.file.getvalue().count(output) == 2
    assert "\x1b" not in text + console.file.getvalue()

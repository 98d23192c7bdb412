"""A run's folder that somebody else made: links, pipes and devices in it lead nowhere, and nothing else is touched."""

import os

import pytest
from breaking import broken
from run_files import write_run

from fedbayes.errors import RunError
from fedbayes.report.cli import main as report
from fedbayes.report.run_page import publish, write_html
from fedbayes.run import resume
from fedbayes.storage import checkpoint
from fedbayes.storage.claim import claim, reopened
from fedbayes.storage.run_dir import read_json, read_rows

SMALL = ["experiment=smoke", "simulation.threads=1", "method=fedvpt"]


@pytest.fixture
def elsewhere(tmp_path):
    """A file of the user's, which must stay as it is."""
    path = tmp_path / "bashrc"
    path.write_text("private\n")
    yield path
    assert path.read_text() == "private\n"


@pytest.fixture
def run(tmp_path):
    write_run(tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.usefixtures("no_pictures")
def test_a_run_that_was_handed_over_writes_through_none_of_its_links(tmp_path, monkeypatch, elsewhere):
    run_dir = tmp_path / "run"
    broken([*SMALL, "rounds=2", f"run_dir={run_dir}"], monkeypatch, 1)
    for name in ("run.log", "predictions.safetensors", "metrics.jsonl", "report.md"):
        content = (run_dir / name).read_bytes() if (run_dir / name).exists() else None
        (run_dir / name).unlink(missing_ok=True)
        (run_dir / name).symlink_to(elsewhere)
        with pytest.raises(RunError, match=rf"{name} is a link"):
            resume(run_dir)
        (run_dir / name).unlink()
        if content is not None:
            (run_dir / name).write_bytes(content)
    link = tmp_path / "runs"
    link.symlink_to(tmp_path)  # that the folder itself is reached through a link is the user's own doing
    assert resume(link / "run")["rounds"] == 2


def test_a_folder_of_checkpoints_elsewhere_is_neither_read_nor_written(tmp_path):
    saved = checkpoint.save(tmp_path / "other", checkpoint.Checkpoint(7, {}, {}))
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "checkpoint").symlink_to(saved.parent)
    for use in (checkpoint.latest, checkpoint.newest, lambda d: checkpoint.save(d, checkpoint.Checkpoint(1, {}, {}))):
        with pytest.raises(RunError, match="checkpoint is a link"):
            use(run_dir)
    assert saved.is_dir()


def test_only_what_a_run_names_like_its_own_is_cleared_away(tmp_path):
    for name in ("round-notes", ".round-notes", "round-7", "round-00001", "round-00002", ".round-00003.12"):
        (tmp_path / "checkpoint" / name).mkdir(parents=True)
    for number in (4, 5):
        checkpoint.save(tmp_path, checkpoint.Checkpoint(number, {}, {}))
    names = {path.name for path in (tmp_path / "checkpoint").iterdir()}
    assert names == {"round-notes", ".round-notes", "round-7", "round-00004", "round-00005"}


@pytest.mark.parametrize("name", ["clients.png", "train_loss.png"])
def test_pictures_are_neither_written_nor_read_through_links(run, elsewhere, name, capsys):
    (run / "plots").mkdir()
    (run / "plots" / name).symlink_to(elsewhere)
    for make in (publish, write_html):
        with pytest.raises(RunError, match=rf"{name} is a link"):
            make(run)
    assert report([str(run)]) == 2
    assert "is a link" in capsys.readouterr().err


def test_a_folder_of_pictures_elsewhere_gets_none(run, tmp_path):
    (tmp_path / "other").mkdir()
    (run / "plots").symlink_to(tmp_path / "other")
    with pytest.raises(RunError, match="plots is a link"):
        publish(run)
    assert not list((tmp_path / "other").iterdir())


def test_pictures_are_replaced_and_not_written_into(run):
    publish(run)
    first, twin = run / "plots" / "clients.png", run.parent / "twin.png"
    os.link(first, twin)
    before = twin.read_bytes()
    first.write_bytes(b"")
    publish(run)
    assert first.read_bytes() == before
    assert twin.read_bytes() == b""


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("summary.json", "device"),
        ("metrics.jsonl", "huge"),
        ("partition.json", "pipe"),
        ("gallery.json", "huge"),
        ("config.yaml", "pipe"),
        ("predictions.safetensors", "huge"),
    ],
)
def test_what_never_ends_is_not_read(run, name, kind, capsys):
    (run / name).unlink(missing_ok=True)
    if kind == "device":
        (run / name).symlink_to("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(run / name)
    else:
        (run / name).touch()
        os.truncate(run / name, 2**40)
    assert report([str(run)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert name in line


def test_a_new_run_takes_no_folder_with_links(tmp_path, elsewhere):
    (tmp_path / "clients.jsonl").symlink_to(elsewhere)
    with pytest.raises(RunError, match="is a link"):
        claim(tmp_path, "")
    with pytest.raises(RunError, match="is a link"), reopened(tmp_path):
        pass


@pytest.mark.parametrize(("read", "name"), [(read_json, "summary.json"), (read_rows, "metrics.jsonl")])
def test_a_link_to_nothing_is_a_link(tmp_path, read, name):
    (tmp_path / name).symlink_to(tmp_path / "none")
    with pytest.raises(RunError, match="is a link"):
        read(tmp_path / name)

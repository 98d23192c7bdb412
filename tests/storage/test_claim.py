"""Of processes that want the same directory at the same time, one gets it, and the others take another or say so."""

import contextlib
import threading

import pytest

from fedbayes.errors import RunError
from fedbayes.storage.claim import claim, new_folder
from fedbayes.storage.run_dir import read_rows


def at_once(work):
    """Call a function in eight threads at the same moment."""
    barrier = threading.Barrier(8)
    threads = [threading.Thread(target=lambda: (barrier.wait(), work())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_claim_makes_a_directory_with_its_parents_and_takes_one_that_holds_something_else(tmp_path):
    (tmp_path / "notes.txt").touch()
    for place in (tmp_path / "runs" / "today" / "first", tmp_path):
        assert claim(place, "seed: 0\n") == place
        assert (place / "config.yaml").read_text() == "seed: 0\n"
        assert read_rows(place / "metrics.jsonl") == []


@pytest.mark.parametrize("mark", ["config.yaml", "metrics.jsonl", "summary.json"])
def test_claim_refuses_a_used_directory(tmp_path, mark):
    (tmp_path / mark).write_text("")
    with pytest.raises(RunError, match=rf"{mark}.*run_dir"):
        claim(tmp_path, "seed: 0\n")
    assert [path.name for path in tmp_path.iterdir()] == [mark]


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_claim_refuses_a_place_that_cannot_be_a_directory(tmp_path, place):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=rf"run_dir=.*{place}"):
        claim(tmp_path / place, "seed: 0\n")


def test_of_many_that_claim_at_once_one_wins(tmp_path):
    winners = []

    def ask():
        with contextlib.suppress(RunError):
            winners.append(claim(tmp_path / "run", "seed: 0\n"))

    at_once(ask)
    assert len(winners) == 1


def test_folders_of_the_same_second_have_each_a_process(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = []
    at_once(lambda: folders.append(new_folder("runs/2026-01-01/12-00-00-sweep")))
    assert len(set(folders)) == 8
    assert all(folder.is_dir() for folder in folders)
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="file"):
        new_folder("file/below")

"""Of processes that want the same directory at the same time, one gets it, and the others take another or say so."""

import contextlib
import threading

import pytest

from fedbayes.errors import RunError
from fedbayes.storage.claim import claim, new_folder
from fedbayes.storage.run_dir import read_rows


def test_claim_makes_a_directory_with_its_parents(tmp_path):
    run_dir = claim(tmp_path / "runs" / "today" / "one", "seed: 0\n")
    assert run_dir.is_dir()
    assert read_rows(run_dir / "metrics.jsonl") == []


def test_claim_takes_a_directory_that_holds_something_else(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    assert claim(tmp_path, "seed: 0\n") == tmp_path


@pytest.mark.parametrize("mark", ["config.yaml", "metrics.jsonl", "summary.json"])
def test_claim_refuses_a_used_directory_and_says_what_to_do(tmp_path, mark):
    (tmp_path / mark).write_text("")
    with pytest.raises(RunError, match=rf"{mark}.*choose another run_dir or remove"):
        claim(tmp_path, "seed: 0\n")
    assert [path.name for path in tmp_path.iterdir()] == [mark]


def test_claim_refuses_a_place_that_cannot_be_a_directory(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(RunError, match="choose another"):
            claim(place, "seed: 0\n")


def test_of_many_that_claim_at_once_one_wins(tmp_path):
    won, barrier = [], threading.Barrier(8)

    def ask():
        barrier.wait()
        with contextlib.suppress(RunError):
            won.append(claim(tmp_path / "run", "seed: 0\n"))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1


def test_folders_of_one_second_have_each_a_process(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders, barrier = [], threading.Barrier(8)

    def ask():
        barrier.wait()
        folders.append(new_folder("runs/2026-01-01/12-00-00-sweep"))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(folders)) == 8
    assert all(folder.is_dir() for folder in folders)
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="file"):
        new_folder("file/one")

"""What is saved comes back bit for bit; a damaged file is named, and the checkpoint before takes its place."""

import errno
import json
import random

import numpy as np
import pytest

from fedbayes.errors import RunError
from fedbayes.storage import checkpoint
from fedbayes.storage.checkpoint import Checkpoint, latest, newest, save
from fedbayes.storage.names import CHECKPOINTS

SERVER = {
    "generator.base": np.arange(12, dtype=np.float32).reshape(3, 4).T,
    "variance": np.array([1e-300]),
    "counts": np.arange(3),
    "nothing": np.zeros((0, 4), np.float32),
}
PERSONAL = {p: {"head.weight": np.full((2, 3), p, np.float32)} for p in (2, 11)}


def assert_equal(arrays, expected):
    assert list(arrays) == list(expected)
    for name, array in expected.items():
        assert (arrays[name].dtype, arrays[name].shape) == (array.dtype, array.shape), name
        np.testing.assert_array_equal(arrays[name], array)


def folders(run_dir):
    return sorted(path.name for path in (run_dir / CHECKPOINTS).iterdir())


def test_everything_comes_back_in_its_order(tmp_path):
    history = {"best": 0.1 + 0.2, "worst": -float("inf"), "names": ["ä"], "none": None}
    save(tmp_path, Checkpoint(15, SERVER, PERSONAL, {"m/w": np.ones(3)}, {"best/labels": np.arange(4)}, history))
    restart = newest(tmp_path)
    assert (restart.damage, restart.after) == ([], 15)
    for loaded in (restart.checkpoint, latest(tmp_path)):
        assert (loaded.server_round, loaded.history, sorted(loaded.personal)) == (15, history, [2, 11])
        assert_equal(loaded.server, SERVER)
        assert_equal(loaded.strategy, {"m/w": np.ones(3)})
        assert_equal(loaded.evaluations, {"best/labels": np.arange(4)})
        for partition, arrays in PERSONAL.items():
            assert_equal(loaded.personal[partition], arrays)


def test_without_shared_or_personal_parameters(tmp_path):
    save(tmp_path, Checkpoint(1, {}, PERSONAL))
    assert latest(tmp_path).server == {}
    save(tmp_path, Checkpoint(2, SERVER, {}))
    assert latest(tmp_path).personal == {}


@pytest.mark.parametrize(
    ("rounds", "names"),
    [
        (range(1, 13), ["round-00011", "round-00012"]),
        ((9, 10, 10), ["round-00009", "round-00010"]),
        ((99_999, 100_000), ["round-100000", "round-99999"]),
    ],
    ids=["many", "one twice", "longer names"],
)
def test_the_two_of_the_highest_rounds_stay_and_the_last_counts(tmp_path, rounds, names):
    for order, server_round in enumerate(rounds):
        save(tmp_path, Checkpoint(server_round, {"w": np.array([order])}, {}))
    assert folders(tmp_path) == names
    assert latest(tmp_path).server["w"].item() == len(rounds) - 1
    assert newest(tmp_path).checkpoint.server_round == rounds[-1]


def test_any_changed_byte_is_seen_and_the_one_before_takes_its_place(tmp_path):
    save(tmp_path, Checkpoint(1, SERVER, PERSONAL, history={"images": 1}))
    folder = save(tmp_path, Checkpoint(2, SERVER, PERSONAL, {"m": np.ones(2)}, {"p": np.ones(2)}, {"images": 2}))
    rng = random.Random(0)
    for file in sorted(folder.iterdir()):
        whole = file.read_bytes()
        for place in rng.sample(range(len(whole)), 25):
            file.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << rng.randrange(8)]) + whole[place + 1 :])
            restart = newest(tmp_path)
            loaded, damage = restart.checkpoint, restart.damage
            assert loaded.server_round == 1 if damage else loaded.history == {"images": 2}, (file.name, place)
            # A change of blanks, or of one way to write a number into another, is none.
            assert damage or file.name == "state.json", (file.name, place)
        file.write_bytes(whole)
    assert newest(tmp_path).checkpoint.server_round == 2


def test_without_a_whole_one_there_is_none_and_each_is_named(tmp_path):
    for server_round in (1, 2):
        (save(tmp_path, Checkpoint(server_round, SERVER, {})) / "server.safetensors").unlink()
    restart = newest(tmp_path)
    assert restart.checkpoint is None
    assert ["round-00002" in restart.damage[0], "round-00001" in restart.damage[1]] == [True, True]


def test_a_damaged_later_one_does_not_cost_the_new_one(tmp_path):
    for server_round in (4, 5):
        (save(tmp_path, Checkpoint(server_round, SERVER, {})) / "state.json").write_text("{")
    save(tmp_path, Checkpoint(1, SERVER, {}))
    assert newest(tmp_path).checkpoint.server_round == 1


def test_an_incomplete_one_is_passed_over_for_a_complete_one(tmp_path):
    save(tmp_path, Checkpoint(1, SERVER, {}, history={"complete": True}))
    save(tmp_path, Checkpoint(2, SERVER, {}, history={"complete": False}))
    restart = newest(tmp_path)
    assert restart.checkpoint.server_round == 1
    assert "personal parameters" in restart.damage[0]
    save(tmp_path, Checkpoint(3, SERVER, {}, history={"complete": False}))
    with pytest.raises(RunError, match="share-personal=true"):
        newest(tmp_path)


def test_a_disk_that_fills_up_leaves_the_ones_before(tmp_path, monkeypatch):
    save(tmp_path, Checkpoint(1, SERVER, {}))

    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "_force", full)
    with pytest.raises(RunError, match=r"round 2 .*No space left.*fedbayes resume="):
        save(tmp_path, Checkpoint(2, SERVER, {}))
    assert folders(tmp_path) == ["round-00001"]
    assert latest(tmp_path).server_round == 1


def test_what_a_killed_process_left_does_not_count_and_is_cleared_away(tmp_path):
    save(tmp_path, Checkpoint(1, SERVER, {}))
    half = tmp_path / CHECKPOINTS / ".round-00007.4711"
    half.mkdir()
    (half / "server.safetensors").write_bytes(b"half")
    assert latest(tmp_path).server_round == 1
    save(tmp_path, Checkpoint(8, SERVER, {}))
    assert not half.exists()


def test_another_format_is_refused_and_not_passed_over(tmp_path):
    path = save(tmp_path, Checkpoint(3, SERVER, {})) / "state.json"
    state = json.loads(path.read_text())
    state = {**{name: value for name, value in state.items() if name != "checksum"}, "format": 1}
    path.write_text(json.dumps({**state, "checksum": checkpoint._checksum(state)}))
    for read in (latest, newest):
        with pytest.raises(RunError, match="of format 1, this is 2"):
            read(tmp_path)


@pytest.mark.parametrize(
    "text", ['{"format": 3, ', '{"format": null, ', "[" * 100_000, "[]", "{}", '{"round": null}', '"3"', "{", "\0" * 64]
)
def test_a_state_that_was_changed_is_damage_and_no_other_version(tmp_path, text):
    save(tmp_path, Checkpoint(2, SERVER, {}))
    path = save(tmp_path, Checkpoint(3, SERVER, {})) / "state.json"
    path.write_text(path.read_text().replace('{"format": 2, ', text, 1) if "format" in text else text)
    restart = newest(tmp_path)
    assert (restart.checkpoint.server_round, len(restart.damage)) == (2, 1)
    with pytest.raises(RunError, match="round-00003"):
        latest(tmp_path)


@pytest.mark.parametrize("file", ["server.safetensors", "personal.safetensors", "state.json"])
@pytest.mark.parametrize("damage", [None, b"\0" * 64])
def test_a_damaged_file_is_named(tmp_path, file, damage):
    path = save(tmp_path, Checkpoint(3, SERVER, PERSONAL)) / file
    path.unlink() if damage is None else path.write_bytes(damage)
    with pytest.raises(RunError, match="round-00003"):
        latest(tmp_path)


def test_personal_names_without_a_partition_are_refused(tmp_path):
    save(tmp_path, Checkpoint(3, SERVER, {"head": {"weight": np.zeros(1)}}))
    with pytest.raises(RunError, match="round-00003"):
        latest(tmp_path)


def test_no_checkpoint_is_an_error(tmp_path):
    with pytest.raises(RunError, match="no checkpoint"):
        latest(tmp_path)


def test_arrays_can_be_read_by_whoever_may_read_the_folders_other_files(tmp_path):
    (tmp_path / "other").touch()
    checkpoint.write_arrays(tmp_path / "arrays.safetensors", {"w": np.zeros(3)})
    assert (tmp_path / "arrays.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode

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
PERSONAL = {
    2: {"head.weight": np.full((2, 3), 2.0, np.float32)},
    11: {"head.weight": np.full((2, 3), 11.0, np.float32)},
}


def same(one, other):
    assert set(one) == set(other)
    for name, array in one.items():
        assert (array.dtype, array.shape) == (other[name].dtype, other[name].shape), name
        np.testing.assert_array_equal(array, other[name])


def test_a_checkpoint_comes_back_with_what_clients_keep(tmp_path):
    save(tmp_path, Checkpoint(15, SERVER, PERSONAL))
    back = latest(tmp_path)
    assert back.server_round == 15
    same(back.server, SERVER)
    assert sorted(back.personal) == [2, 11]
    for partition, arrays in PERSONAL.items():
        same(back.personal[partition], arrays)


def test_everything_else_comes_back_too(tmp_path):
    history = {"best": 0.1 + 0.2, "worst": -float("inf"), "names": ["ä"], "none": None}
    save(tmp_path, Checkpoint(3, SERVER, PERSONAL, {"m/w": np.ones(3)}, {"best/labels": np.arange(4)}, history))
    restart = newest(tmp_path)
    back, damage = restart.checkpoint, restart.damage
    assert damage == []
    assert back.history == history
    same(back.strategy, {"m/w": np.ones(3)})
    same(back.evaluations, {"best/labels": np.arange(4)})


def test_arrays_keep_their_order(tmp_path):
    names = ["z", "a", "m"]
    save(tmp_path, Checkpoint(1, {name: np.ones(1, np.float32 if name == "a" else None) for name in names}, {}))
    assert list(latest(tmp_path).server) == names


def test_the_last_two_are_kept(tmp_path):
    for server_round in range(1, 13):
        save(tmp_path, Checkpoint(server_round, SERVER, {}))
    assert sorted(path.name for path in (tmp_path / CHECKPOINTS).iterdir()) == ["round-00011", "round-00012"]


def test_any_changed_byte_is_seen_and_the_one_before_takes_its_place(tmp_path):
    save(tmp_path, Checkpoint(1, SERVER, PERSONAL, history={"images": 1}))
    folder = save(tmp_path, Checkpoint(2, SERVER, PERSONAL, {"m": np.ones(2)}, {"p": np.ones(2)}, {"images": 2}))
    rng = random.Random(0)
    for file in sorted(folder.iterdir()):
        whole = file.read_bytes()
        for place in rng.sample(range(len(whole)), 25):
            file.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << rng.randrange(8)]) + whole[place + 1 :])
            restart = newest(tmp_path)
            found, damage = restart.checkpoint, restart.damage
            assert found.server_round == 1 if damage else found.history == {"images": 2}, (file.name, place)
            # A change of blanks, or of one way to write a number into another, is none.
            assert damage or file.name == "state.json", (file.name, place)
        file.write_bytes(whole)
    assert newest(tmp_path).checkpoint.server_round == 2


def test_without_a_whole_one_there_is_none_and_each_is_named(tmp_path):
    for server_round in (1, 2):
        (save(tmp_path, Checkpoint(server_round, SERVER, {})) / "server.safetensors").unlink()
    restart = newest(tmp_path)
    found, damage = restart.checkpoint, restart.damage
    assert found is None
    assert ["round-00002" in damage[0], "round-00001" in damage[1]] == [True, True]


def test_a_damaged_later_one_does_not_cost_the_new_one(tmp_path):
    for server_round in (4, 5):
        (save(tmp_path, Checkpoint(server_round, SERVER, {})) / "state.json").write_text("{")
    save(tmp_path, Checkpoint(1, SERVER, {}))
    assert newest(tmp_path).checkpoint.server_round == 1


def test_the_newest_is_told_by_its_number(tmp_path):
    for server_round in (99_999, 100_000):
        save(tmp_path, Checkpoint(server_round, SERVER, {}))
    assert newest(tmp_path).checkpoint.server_round == 100_000


def test_an_incomplete_one_is_passed_over_for_a_complete_one(tmp_path):
    save(tmp_path, Checkpoint(1, SERVER, {}, history={"complete": True}))
    save(tmp_path, Checkpoint(2, SERVER, {}, history={"complete": False}))
    restart = newest(tmp_path)
    found, said = restart.checkpoint, restart.damage
    assert found.server_round == 1
    assert "lacks personal parameters" in said[0]
    save(tmp_path, Checkpoint(3, SERVER, {}, history={"complete": False}))
    with pytest.raises(RunError, match="share-personal=true"):
        newest(tmp_path)


def test_a_disk_that_fills_up_leaves_the_ones_before(tmp_path, monkeypatch):
    save(tmp_path, Checkpoint(1, SERVER, {}))

    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "_force", full)
    with pytest.raises(RunError, match=r"round 2 cannot be written .*No space left.*fedbayes resume="):
        save(tmp_path, Checkpoint(2, SERVER, {}))
    assert [path.name for path in (tmp_path / CHECKPOINTS).iterdir()] == ["round-00001"]
    assert latest(tmp_path).server_round == 1


def test_what_a_killed_process_left_is_cleared_away(tmp_path):
    left = tmp_path / CHECKPOINTS / ".round-00007.4711"
    left.mkdir(parents=True)
    save(tmp_path, Checkpoint(8, SERVER, {}))
    assert not left.exists()


def test_another_format_is_refused_with_a_remedy(tmp_path):
    path = save(tmp_path, Checkpoint(3, SERVER, {})) / "state.json"
    state = json.loads(path.read_text())
    state = {**{name: value for name, value in state.items() if name != "checksum"}, "format": 1}
    path.write_text(json.dumps({**state, "checksum": checkpoint._checksum(state)}))
    for ask in (latest, newest):  # and not passed over: the run would start again
        with pytest.raises(RunError, match=r"is of format 1, this is 2; use the fedbayes that wrote it"):
            ask(tmp_path)


@pytest.mark.parametrize("text", ['{"format": 3', '{"format": null', "[" * 100_000])
def test_a_digit_that_changed_is_damage_and_no_other_version(tmp_path, text):
    save(tmp_path, Checkpoint(2, SERVER, {}))
    path = save(tmp_path, Checkpoint(3, SERVER, {})) / "state.json"
    path.write_text(path.read_text().replace('{"format": 2', text, 1))
    restart = newest(tmp_path)
    found, damage = restart.checkpoint, restart.damage
    assert found.server_round == 2
    assert len(damage) == 1


def test_a_method_that_shares_nothing_and_one_that_keeps_nothing(tmp_path):
    save(tmp_path, Checkpoint(1, {}, PERSONAL))
    assert latest(tmp_path).server == {}
    save(tmp_path, Checkpoint(2, SERVER, {}))
    assert latest(tmp_path).personal == {}


def test_the_newest_counts_and_a_round_is_replaced(tmp_path):
    for server_round, value in ((9, 1.0), (10, 2.0), (10, 3.0)):
        save(tmp_path, Checkpoint(server_round, {"w": np.array([value])}, {}))
    assert latest(tmp_path).server["w"].item() == 3.0
    assert sorted(path.name for path in (tmp_path / CHECKPOINTS).iterdir()) == ["round-00009", "round-00010"]


def test_one_that_was_never_finished_does_not_count(tmp_path):
    save(tmp_path, Checkpoint(1, SERVER, {}))
    half = tmp_path / CHECKPOINTS / ".round-00002.123"
    half.mkdir()
    (half / "server.safetensors").write_bytes(b"half")
    assert latest(tmp_path).server_round == 1


def test_no_checkpoint_is_said(tmp_path):
    with pytest.raises(RunError, match="has no checkpoint"):
        latest(tmp_path)


@pytest.mark.parametrize("file", ["server.safetensors", "personal.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["cut", "zeros", "gone"])
def test_a_damaged_file_is_named(tmp_path, file, damage):
    path = save(tmp_path, Checkpoint(3, SERVER, PERSONAL)) / file
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:10] if damage == "cut" else b"\0" * 64)
    with pytest.raises(RunError, match=r"round-00003 cannot be read"):
        latest(tmp_path)


@pytest.mark.parametrize("state", [[], {}, {"round": None}, "3"])
def test_a_state_of_another_form_is_refused(tmp_path, state):
    path = save(tmp_path, Checkpoint(3, SERVER, PERSONAL)) / "state.json"
    path.write_text(json.dumps(state))
    with pytest.raises(RunError, match="cannot be read"):
        latest(tmp_path)


def test_personal_names_without_a_partition_are_refused(tmp_path):
    save(tmp_path, Checkpoint(3, SERVER, {"head": {"weight": np.zeros(1)}}))
    with pytest.raises(RunError, match="cannot be read"):
        latest(tmp_path)


def test_arrays_can_be_read_by_whoever_may_read_the_folders_other_files(tmp_path):
    (tmp_path / "other").touch()
    checkpoint.write_arrays(tmp_path / "arrays.safetensors", {"w": np.zeros(3)})
    assert (tmp_path / "arrays.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode

"""What is saved comes back bit for bit; a damaged file is named."""

import json

import numpy as np
import pytest

from fedbayes.checkpoint import FOLDER, Checkpoint, latest, save
from fedbayes.errors import RunError

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


def test_a_method_that_shares_nothing_and_one_that_keeps_nothing(tmp_path):
    save(tmp_path, Checkpoint(1, {}, PERSONAL))
    assert latest(tmp_path).server == {}
    save(tmp_path, Checkpoint(2, SERVER, {}))
    assert latest(tmp_path).personal == {}


def test_the_newest_counts_and_a_round_is_replaced(tmp_path):
    for server_round, value in ((9, 1.0), (10, 2.0), (10, 3.0)):
        save(tmp_path, Checkpoint(server_round, {"w": np.array([value])}, {}))
    assert latest(tmp_path).server["w"].item() == 3.0
    assert sorted(path.name for path in (tmp_path / FOLDER).iterdir()) == ["round-00009", "round-00010"]


def test_one_that_was_never_finished_does_not_count(tmp_path):
    save(tmp_path, Checkpoint(1, SERVER, {}))
    half = tmp_path / FOLDER / ".round-00002.123"
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
    from safetensors.numpy import save_file

    folder = save(tmp_path, Checkpoint(3, SERVER, PERSONAL))
    save_file({"head.weight": np.zeros(1)}, folder / "personal.safetensors")
    with pytest.raises(RunError, match="cannot be read"):
        latest(tmp_path)

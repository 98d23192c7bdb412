"""The engine: Flower's own strategies run on it, cohorts do not matter, one client's failure stays its own."""

import inspect
from dataclasses import replace

import numpy as np
import pytest
import torch
from flwr.app import Message, MessageType
from flwr.serverapp import Grid
from journal import Journal
from scripted import Scripted
from scripted import play as play_scripted
from smoke import smoke

from fedbayes import build
from fedbayes.comm.messages import ask_personal, read_personal, to_record, write_request
from fedbayes.errors import ConfigError
from fedbayes.simulation.client import QUERY_PERSONAL
from fedbayes.simulation.in_process import FIRST_NODE, InProcess, InProcessGrid
from fedbayes.storage.run_dir import plain


def play(*overrides, cohort=None):
    """The rounds of a real client."""
    cfg, client = smoke(*overrides)
    loop, journal = build.loop(cfg, build.sampling(cfg)), Journal()
    grid = InProcessGrid(client, cfg.clients, cohort)
    sizes = build.partition_sizes(cfg, client.data)
    return loop.run(grid, build.strategy(cfg, loop), client.initial(), journal, sizes), journal


class Watched(Scripted):
    """Notes its cohorts; fails, or has broken personal parameters, in certain (round, partition)."""

    def __init__(self, fails=(), broken_personal=()):
        super().__init__(keeps=True)
        self.fails, self.broken_personal = set(fails), set(broken_personal)
        self.cohorts, self.received = [], []

    def train(self, requests):
        keys = [(request.server_round, request.partition) for request in requests]
        self.cohorts.append([partition for _, partition in keys])
        if self.fails & set(keys):
            raise RuntimeError("out of cheese")
        self.received += [{name: value.tolist() for name, value in r.personal.items()} for r in requests]
        updates = zip(keys, super().train(requests), strict=True)
        bad = {"head": np.full(2, np.nan, np.float32)}
        return [replace(u, personal=bad) if key in self.broken_personal else u for key, u in updates]


def train_message(partition, server_round=1, accepted=0):
    content = write_request(to_record({"w": np.zeros(2)}), server_round, "train", accepted=accepted)
    return Message(content, FIRST_NODE + partition, MessageType.TRAIN)


def assert_rows_close(journal, expected, tolerance):
    for row, like in zip(journal.numbers, expected.numbers, strict=True):
        assert row.pop("phase") == like.pop("phase")
        assert row == pytest.approx(like, abs=tolerance, rel=tolerance)


def test_the_grid_is_all_that_flower_asks_of_a_grid():
    assert not inspect.isabstract(InProcessGrid)
    for name in ("push_messages", "pull_messages", "send_and_receive", "create_message", "get_node_ids"):
        flower, ours = inspect.signature(getattr(Grid, name)), inspect.signature(getattr(InProcessGrid, name))
        assert list(flower.parameters) == list(ours.parameters), name


def test_the_size_of_cohorts_does_not_matter():
    """With SGD: AdamW divides by the gradient's size, so where that is all rounding, the step is, too."""
    settings = ("clients=4", "optim.name=sgd", "optim.lr=0.01", "optim.head_lr=0.01")
    expected, rows = play(*settings)
    for cohort in (1, 3):
        progress, journal = play(*settings, cohort=cohort)
        for name, array in expected.arrays.items():
            np.testing.assert_allclose(progress.arrays[name], array, atol=1e-5, err_msg=name)
        assert_rows_close(journal, rows, 1e-5)


@pytest.mark.parametrize(
    "overrides",
    [(), ("method=fedvpt", "method.client.personal=[head]"), ("participation=0.5",)],
    ids=["pfedbayespt", "personal heads", "partial participation"],
)
def test_metrics_of_two_rounds_do_not_depend_on_cohorts(overrides):
    """With the configuration's own optimiser; single parameters may differ by more."""
    expected = play("clients=4", *overrides)[1]
    for cohort in (1, 3):
        assert_rows_close(play("clients=4", *overrides, cohort=cohort)[1], expected, 1e-5)


def test_equal_runs_are_equal_to_the_last_bit_and_another_seed_is_another_run():
    (first, rows), (second, other_rows) = (play("clients=4", cohort=2) for _ in range(2))
    assert rows.numbers == other_rows.numbers
    assert rows.client_rows == other_rows.client_rows
    for name, array in first.arrays.items():
        assert second.arrays[name].tobytes() == array.tobytes(), name
    assert plain(first.final.summary()) == plain(second.final.summary())
    assert play("clients=4", "seed=1", cohort=2)[1].numbers != rows.numbers


def test_cohorts_are_cut_in_the_order_sent():
    client = Watched()
    grid = InProcessGrid(client, 5, 2)
    replies = grid.send_and_receive([train_message(partition) for partition in (4, 0, 3, 1, 2)])
    assert client.cohorts == [[4, 0], [3, 1], [2]]
    assert [reply.metadata.src_node_id - FIRST_NODE for reply in replies] == [4, 0, 3, 1, 2]
    assert len({reply.metadata.reply_to_message_id for reply in replies}) == 5


def test_pushed_messages_are_pulled_once():
    grid = InProcessGrid(Watched(), 2)
    ids = list(grid.push_messages([train_message(0), train_message(1)]))
    assert [reply.metadata.reply_to_message_id for reply in grid.pull_messages(ids)] == ids
    assert list(grid.pull_messages(ids)) == []


def test_a_client_that_raises_spoils_nobody_elses_answer():
    client = Watched(fails={(1, 1)})
    progress, journal, grid = play_scripted(client, clients=3, rounds=1)
    assert progress.arrays["w"] == pytest.approx([(10 * 1 + 30 * 3) / 40])
    (note,) = journal.notes
    assert "client 1 rejected: RuntimeError: out of cheese (" in note
    assert "test_in_process.py, line " in note
    row = next(row for row in journal.rows if row["phase"] == "train")
    assert (row["clients"], row["replies"], row["dropped"]) == (3, 2, 1)
    assert set(progress.accepted) == set(grid.states) == {0, 2}
    with pytest.raises(RuntimeError, match="out of cheese"):
        play_scripted(client, grid=InProcessGrid(client, 3, debug=True), clients=3, rounds=1)


def test_nothing_is_stored_of_a_client_whose_personal_parameters_broke():
    progress, journal, grid = play_scripted(Watched(broken_personal={(1, 2)}), clients=3, rounds=1)
    (note,) = journal.notes
    assert "client 2 rejected: head is not finite" in note
    assert set(progress.accepted) == set(grid.states) == {0, 1}


def test_messages_of_an_unknown_kind_are_answered_with_an_error():
    odd = Message(train_message(0).content, FIRST_NODE, "train.sideways")
    (reply,) = InProcessGrid(Watched(), 2).send_and_receive([odd])
    assert "train.sideways" in reply.error.reason


def test_late_clients_do_not_answer():
    grid = InProcessGrid(Watched(), 3, 1)
    assert len(list(grid.send_and_receive([train_message(p) for p in range(3)], timeout=1e-9))) < 3


def test_the_last_two_versions_of_personal_parameters_are_stored():
    grid = InProcessGrid(client := Watched(), 2)

    def stored(accepted):
        (reply,) = grid.send_and_receive([Message(ask_personal(accepted), FIRST_NODE, QUERY_PERSONAL)])
        return [value.tolist() for value in read_personal(reply.content).values()]

    list(grid.send_and_receive([train_message(0, 1, accepted=0)]))
    list(grid.send_and_receive([train_message(0, 2, accepted=1)]))
    assert (stored(1), stored(2)) == ([[1.0, 1.0]], [[2.0, 2.0]])
    list(grid.send_and_receive([train_message(0, 3, accepted=1)]))  # the server dropped round 2
    assert (stored(1), stored(2), stored(3)) == ([[1.0, 1.0]], [], [[3.0, 3.0]])
    list(grid.send_and_receive([train_message(0, 4, accepted=3)]))
    assert (stored(1), stored(3), stored(4)) == ([], [[3.0, 3.0]], [[4.0, 4.0]])
    assert client.received == [{}, {"head": [1.0, 1.0]}, {"head": [1.0, 1.0]}, {"head": [3.0, 3.0]}]
    assert set(grid.states) == {0}, "a client that has not taken part has no state"


@pytest.mark.parametrize("setting", [{"cohort": 0}, {"cohort": 1.5}, {"device": "tpu"}, {"threads": 0}])
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(ConfigError, match=f"simulation.{next(iter(setting))}"):
        InProcess(**{"cohort": None, "device": "cpu", "threads": 1, **setting})


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_cuda_without_a_gpu_is_refused():
    with pytest.raises(ConfigError, match=r"simulation\.device=cuda"):
        InProcess(cohort=None, device="cuda", threads=1)

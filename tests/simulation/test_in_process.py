"""The engine: Flower's own strategies run on it, cohorts do not matter, one client's failure stays its own."""

import inspect

import numpy as np
import pytest
import torch
from flwr.app import Message, MessageType
from flwr.serverapp import Grid
from journal import Journal
from scripted import SIZES

from fedbayes import build
from fedbayes.comm.messages import (
    ClientRequest,
    ClientUpdate,
    ask_personal,
    read_personal,
    to_record,
    write_request,
)
from fedbayes.config.compose import compose
from fedbayes.errors import ConfigError
from fedbayes.simulation.client import QUERY_PERSONAL
from fedbayes.simulation.in_process import FIRST_NODE, InProcess, InProcessGrid
from fedbayes.storage.run_dir import plain


def make_client(cfg):
    data = build.data(cfg)
    return build.client(cfg, data, build.model(cfg, data, "cpu"))


def play(*overrides, cohort=None, strategy=None, client=None):
    cfg = compose(["experiment=smoke", *overrides])
    client = client or make_client(cfg)
    loop, journal = build.loop(cfg, build.sampling(cfg)), Journal()
    grid = InProcessGrid(client, cfg.clients, cohort)
    strategy = strategy or build.strategy(cfg, loop)
    sizes = build.partition_sizes(cfg, client.data) if hasattr(client, "data") else SIZES
    return loop.run(grid, strategy, client.initial(), journal, sizes), journal, grid


class Scripted:
    """Answers with its partition and round; fails, or is broken, where the script says so."""

    def __init__(self, fails=(), broken=(), broken_personal=()):
        self.fails, self.broken, self.broken_personal = set(fails), set(broken), set(broken_personal)
        self.cohorts, self.seen = [], []

    def initial(self):
        return {"w": np.zeros(2, np.float32)}

    def train(self, requests):
        self.cohorts.append([request.partition for request in requests])
        return [self._trained(request) for request in requests]

    def _trained(self, request: ClientRequest) -> ClientUpdate:
        key = (request.server_round, request.partition)
        if key in self.fails:
            raise RuntimeError("out of cheese")
        self.seen.append((*key, {name: value.tolist() for name, value in request.personal.items()}))
        arrays = {"w": np.full(2, np.nan if key in self.broken else request.partition + 1, np.float32)}
        mine = {"head": np.full(1, np.nan if key in self.broken_personal else request.server_round, np.float32)}
        return ClientUpdate(request.partition, arrays, 10, {"loss": 1.0}, mine)

    def evaluate(self, requests):
        self.evaluated = {request.partition: request.personal | request.arrays for request in requests}
        count = 4
        half = np.full((count, 2), 0.5, np.float32)
        arrays = {
            "probabilities": half,
            "expected_entropy": np.full(count, np.log(2), np.float32),
            "labels": np.zeros(count, np.int64),
            "domains": np.zeros(count, np.int64),
        }
        return [ClientUpdate(r.partition, arrays, count, {"accuracy": 1.0, "nll": 0.7}) for r in requests]


def train_message(partition, server_round=1, accepted=0):
    content = write_request(to_record({"w": np.zeros(2)}), server_round, "train", accepted=accepted)
    return Message(content, FIRST_NODE + partition, MessageType.TRAIN)


def test_the_grid_is_all_that_flower_asks_of_a_grid():
    assert not inspect.isabstract(InProcessGrid)
    for name in ("push_messages", "pull_messages", "send_and_receive", "create_message", "get_node_ids"):
        theirs, ours = inspect.signature(getattr(Grid, name)), inspect.signature(getattr(InProcessGrid, name))
        assert list(theirs.parameters) == list(ours.parameters), name


@pytest.mark.parametrize("cohort", [1, 3])
@pytest.mark.parametrize(
    ("optimiser", "close"),
    [
        ("sgd", 1e-5),
        ("adamw", 1e-4),
    ],  # AdamW divides by the gradient's size: where that is all rounding, so is the step
)
def test_the_size_of_cohorts_does_not_matter(cohort, optimiser, close):
    settings = ("clients=4", f"optim.name={optimiser}", "optim.lr=0.01", "optim.head_lr=0.01")
    (reference, expected, _), (progress, journal, _) = play(*settings), play(*settings, cohort=cohort)
    arrays = progress.arrays
    if optimiser == "sgd":
        for name, array in reference.arrays.items():
            np.testing.assert_allclose(arrays[name], array, atol=close, err_msg=name)
    for row, like in zip(journal.numbers, expected.numbers, strict=True):
        assert row.pop("phase") == like.pop("phase")
        assert row == pytest.approx(like, abs=close, rel=close)


@pytest.mark.parametrize("cohort", [1, 3])
@pytest.mark.parametrize(
    "overrides",
    [(), ("method=fedvpt", "method.client.personal=[head]"), ("participation=0.5",)],
    ids=["pfedbayespt", "personal heads", "partial participation"],
)
def test_metrics_of_two_rounds_do_not_depend_on_cohorts(cohort, overrides):
    """With the configuration's own optimiser; single parameters may differ by more."""
    (_, expected, _), (_, journal, _) = play("clients=4", *overrides), play("clients=4", *overrides, cohort=cohort)
    for row, like in zip(journal.numbers, expected.numbers, strict=True):
        assert row.pop("phase") == like.pop("phase")
        assert row == pytest.approx(like, abs=1e-5, rel=1e-5)


def test_equal_runs_are_equal_to_the_last_bit():
    (one, first, _), (other, second, _) = play("clients=4", cohort=2), play("clients=4", cohort=2)
    assert first.numbers == second.numbers
    assert first.client_rows == second.client_rows
    for name, array in one.arrays.items():
        assert other.arrays[name].tobytes() == array.tobytes(), name
    assert plain(one.final.summary()) == plain(other.final.summary())


def test_another_seed_is_another_run():
    first, second = play()[1], play("seed=1")[1]
    assert first.numbers != second.numbers


def test_cohorts_are_cut_in_the_order_sent():
    client = Scripted()
    grid = InProcessGrid(client, 5, 2)
    replies = grid.send_and_receive([train_message(partition) for partition in (4, 0, 3, 1, 2)])
    assert client.cohorts == [[4, 0], [3, 1], [2]]
    assert [reply.metadata.src_node_id - FIRST_NODE for reply in replies] == [4, 0, 3, 1, 2]
    ids = {reply.metadata.reply_to_message_id for reply in replies}
    assert len(ids) == 5


def test_pushed_messages_are_pulled_once():
    grid = InProcessGrid(Scripted(), 2)
    ids = list(grid.push_messages([train_message(0), train_message(1)]))
    assert [reply.metadata.reply_to_message_id for reply in grid.pull_messages(ids)] == ids
    assert list(grid.pull_messages(ids)) == []


def test_a_client_that_raises_spoils_nobody_elses_answer():
    client = Scripted(fails={(1, 1)})
    progress, journal, grid = play("rounds=1", client=client)
    np.testing.assert_allclose(progress.arrays["w"], 2.0)  # mean of 1 and 3
    (note,) = journal.notes
    assert "client 1 rejected: RuntimeError: out of cheese (" in note
    assert "test_in_process.py, line " in note
    row = next(row for row in journal.rows if row["phase"] == "train")
    assert (row["clients"], row["replies"], row["dropped"]) == (3, 2, 1)
    assert 1 not in progress.accepted
    assert 1 not in grid.states


def test_a_real_client_that_raises_spoils_nobody_elses_answer():
    class Faulty:
        def __init__(self, client):
            self.client, self.data = client, client.data
            self.initial, self.evaluate = client.initial, client.evaluate

        def train(self, requests):
            if any(request.partition == 1 for request in requests):
                raise MemoryError("no room")
            return self.client.train(requests)

    client = Faulty(make_client(compose(["experiment=smoke"])))
    progress, journal, _ = play("rounds=1", client=client)
    assert set(progress.accepted) == {0, 2}
    assert "client 1 rejected: MemoryError: no room" in journal.notes[0]


def test_nothing_is_kept_of_a_client_whose_personal_parameters_broke():
    progress, journal, grid = play("rounds=1", client=Scripted(broken_personal={(1, 2)}))
    assert journal.notes == ["round 1: training reply of client 2 rejected: head is not finite"]
    assert set(progress.accepted) == set(grid.states) == {0, 1}


def test_messages_of_an_unknown_kind_are_answered_with_an_error():
    grid = InProcessGrid(Scripted(), 2)
    odd = Message(train_message(0).content, FIRST_NODE, "train.sideways")
    assert "cannot answer" in next(iter(grid.send_and_receive([odd]))).error.reason


def test_late_clients_do_not_answer():
    class Slow(Scripted):
        def train(self, requests):
            torch.randn(400, 400) @ torch.randn(400, 400)
            return super().train(requests)

    grid = InProcessGrid(Slow(), 3, 1)
    replies = list(grid.send_and_receive([train_message(p) for p in range(3)], timeout=1e-9))
    assert len(replies) < 3


def test_the_last_two_versions_of_personal_parameters_are_kept():
    grid = InProcessGrid(client := Scripted(), 2)

    def asked(accepted):
        reply = next(iter(grid.send_and_receive([Message(ask_personal(accepted), FIRST_NODE, QUERY_PERSONAL)])))
        return {name: value.tolist() for name, value in read_personal(reply.content).items()}

    list(grid.send_and_receive([train_message(0, 1, accepted=0)]))
    list(grid.send_and_receive([train_message(0, 2, accepted=1)]))
    assert (asked(1), asked(2)) == ({"head": [1.0]}, {"head": [2.0]})
    list(grid.send_and_receive([train_message(0, 3, accepted=1)]))  # the server dropped round 2
    assert (asked(1), asked(2), asked(3)) == ({"head": [1.0]}, {}, {"head": [3.0]})
    list(grid.send_and_receive([train_message(0, 4, accepted=3)]))
    assert (asked(1), asked(3), asked(4)) == ({}, {"head": [3.0]}, {"head": [4.0]})
    assert [personal for _, _, personal in client.seen] == [{}, {"head": [1.0]}, {"head": [1.0]}, {"head": [3.0]}]
    assert set(grid.states) == {0}, "a client that has not taken part keeps nothing"


@pytest.mark.parametrize("setting", [{"cohort": 0}, {"cohort": 1.5}, {"device": "tpu"}, {"threads": 0}])
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(ConfigError, match=f"simulation.{next(iter(setting))}"):
        InProcess(**{"cohort": None, "device": "cpu", "threads": 1, **setting})


def test_cuda_without_a_gpu_is_refused():
    if torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")
    with pytest.raises(ConfigError, match="choose one of auto, cpu"):
        InProcess(cohort=None, device="cuda", threads=1)

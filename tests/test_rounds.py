"""The round loop: keyed sampling, guards, order of replies, personal state, evaluation."""

import itertools
import random

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdam
from scripted import Scripted, play, round_loop

from fedbayes import build
from fedbayes.configuration import compose
from fedbayes.errors import RunError
from fedbayes.federation import Federation
from fedbayes.guard import Guard
from fedbayes.messages import ClientUpdate, from_record, to_record
from fedbayes.simulation.client import QUERY_PERSONAL
from fedbayes.simulation.flower_private import FIRST_NODE, client_error
from fedbayes.simulation.in_process import InProcessGrid
from fedbayes.strategy_state import snapshot
from strategies.base import AbstractStrategy


def test_the_mean_of_a_round_by_hand():
    progress, _, _ = play(Scripted(), clients=3, rounds=1)
    # (10 * 1 + 20 * 2 + 30 * 3) / 60
    assert from_record(progress.arrays)["w"].tolist() == pytest.approx([140 / 60])


class RandomNodes(InProcessGrid):
    """Shows its nodes in another order, as Flower's set of random ids does."""

    def get_node_ids(self):
        return random.Random(3).sample(range(FIRST_NODE, FIRST_NODE + self._clients), self._clients)


def test_the_order_of_nodes_does_not_reach_the_bits_of_a_real_client():
    cfg = compose(["experiment=smoke", "clients=4"])
    data = build.data(cfg)
    client = build.client(cfg, data, build.model(cfg, data, "cpu"))
    one, journal, _ = play(client, clients=4)
    other, shuffled, _ = play(client, grid=RandomNodes(client, 4), clients=4)
    for name, array in from_record(one.arrays).items():
        assert from_record(other.arrays)[name].tobytes() == array.tobytes(), name
    assert shuffled.client_rows == journal.client_rows


def test_shuffled_replies_give_the_same_bits():
    class Late(InProcessGrid):
        def send_and_receive(self, messages, *, timeout=None):
            replies = list(super().send_and_receive(messages, timeout=timeout))
            random.Random(7).shuffle(replies)
            return replies

    class Irrational(Scripted):
        def train(self, requests):
            return [
                ClientUpdate(u.partition, {"w": np.sqrt(u.arrays["w"]) * 10.0 ** (5 - 2 * u.partition)}, 7, u.metrics)
                for u in super().train(requests)
            ]

    client = Irrational()
    one, other = play(client)[0], play(client, grid=Late(client, 5))[0]
    assert from_record(one.arrays)["w"].tobytes() == from_record(other.arrays)["w"].tobytes()
    assert one.train == other.train


def test_partial_participation_samples_partitions_by_seed_and_round_alone():
    client = Scripted()
    play(client, clients=10, participation=0.3, rounds=4)
    sampled = [[p for r, p in client.trained if r == server_round] for server_round in (1, 2, 3, 4)]
    assert all(len(one) == 3 and one == sorted(one) for one in sampled)
    assert len({tuple(one) for one in sampled}) > 1
    other = Scripted()
    play(other, grid=RandomNodes(other, 10, 1), clients=10, participation=0.3, rounds=4)
    assert other.trained == client.trained
    loop = round_loop(clients=10, participation=0.3)
    assert [loop.sampling.train(server_round) for server_round in (1, 2, 3, 4)] == sampled
    reseeded = round_loop(clients=10, participation=0.3, seed=1)
    assert [reseeded.sampling.train(server_round) for server_round in (1, 2, 3, 4)] != sampled


def test_every_client_is_sampled_about_equally_often():
    loop = round_loop(clients=10, participation=0.3)
    counts = np.bincount(np.concatenate([loop.sampling.train(server_round) for server_round in range(1, 1001)]))
    assert counts.sum() == 3000
    assert np.abs(counts - 300).max() < 4 * np.sqrt(1000 * 0.3 * 0.7)


def test_at_least_one_client_trains():
    assert len(round_loop(participation=0.01).sampling.train(1)) == 1


def test_an_update_that_is_not_finite_is_dropped_named_and_counted():
    progress, journal, _ = play(Scripted(broken={(2, 1)}), clients=3)
    assert from_record(progress.arrays)["w"].tolist() == pytest.approx([(10 * 1 + 30 * 3) / 40])
    assert journal.notes == ["round 2: reply of client 1 not used: w is not finite"]
    trains = [row for row in journal.rows if row["phase"] == "train"]
    assert [(row["clients"], row["replies"], row["dropped"]) for row in trains] == [(3, 3, 0), (3, 2, 1)]
    assert progress.accepted == {0: 2, 1: 1, 2: 2}
    assert trains[1]["loss"] == pytest.approx((10 * 0 + 30 * 2) / 40)


def test_a_void_round_ends_the_run_with_what_was_learnt_before_in_a_checkpoint():
    kept = []
    client = Scripted(broken={(3, 0), (3, 1)})
    said = r"round 3 is void after 2 attempts: 1 usable replies, 2 needed; run\.log names .* Raise simulation\.retries"
    with pytest.raises(RunError, match=said):
        play(client, clients=3, rounds=4, min_replies=2, retries=1, checkpoint_every=9, keep=kept.append)
    assert [one.server_round for one in kept] == [2]
    assert kept[0].server["w"].tolist() == pytest.approx([140 / 60])
    assert kept[0].history["accepted"] == {"0": 2, "1": 2, "2": 2}
    assert client.trained.count((3, 0)) == 2


def test_a_void_round_is_tried_again_with_the_same_clients():
    class Recovers(Scripted):
        def train(self, requests):
            answers = super().train(requests)
            if requests[0].server_round == 2 and self.trained.count((2, 0)) == 2:
                self.broken = set()
            return answers

    client = Recovers(broken={(2, 0), (2, 1)})
    progress, journal, _ = play(client, clients=3, min_replies=2, retries=2)
    assert "round 2 is void: 1 usable replies, 2 needed; attempt 2 of 3" in journal.notes
    assert client.trained.count((2, 2)) == 3
    assert progress.accepted == {0: 2, 1: 2, 2: 2}
    row = [row for row in journal.rows if row["phase"] == "train"][1]
    assert (row["attempts"], row["dropped"], row["dropped_invalid"], row["replies"]) == (3, 0, 4, 3)


class Gaussians(Scripted):
    """Clients with Gaussians, of which one's third answer says that it is infinitely sure."""

    def __init__(self, hostile):
        super().__init__()
        self.hostile, self.asked = hostile, 0

    def initial(self):
        return {"w": np.zeros(3), "w.rho": np.zeros(3)}

    def train(self, requests):
        self.asked += 1
        sure = self.asked == 3 and self.hostile
        return [
            ClientUpdate(
                r.partition,
                {
                    "w": r.arrays["w"] + r.partition,
                    "w.rho": np.full(3, -1000.0) if sure and r.partition == 1 else r.arrays["w.rho"] - 0.1,
                },
                10,
                {},
            )
            for r in requests
        ]


@pytest.mark.parametrize("wrap", [[], ["server.name=momentum"]])
def test_an_aggregate_that_is_not_finite_makes_the_round_void_and_leaves_no_trace(wrap):
    cfg = compose(["method=pfedbayes", "method.strategy.aggregate=product", "clients=3", *wrap])

    def run(hostile, **settings):
        strategy, kept = build.strategy(cfg, build.loop(cfg)), []
        settings = {"clients": 3, "rounds": 4, **settings}
        try:
            _, journal, _ = play(Gaussians(hostile), strategy=strategy, keep=kept.append, **settings)
        except RunError as error:
            return str(error), kept
        return journal.notes, kept

    notes, kept = run(hostile=True, retries=1)
    assert notes == [
        "round 3 is void: the aggregate of PFedBayes cannot be used: w is not finite; attempt 2 of 2",
    ]
    assert [one.server_round for one in kept] == [1, 2, 3, 4]
    _, honest = run(hostile=False)
    for one, other in zip(kept, honest, strict=True):
        for found, expected in ((one.server, other.server), (one.strategy, other.strategy)):
            assert {n: a.tobytes() for n, a in found.items()} == {n: a.tobytes() for n, a in expected.items()}

    said, kept = run(hostile=True, checkpoint_every=4)
    assert said.startswith(
        "round 3 is void after 1 attempts: the aggregate of PFedBayes cannot be used: w is not finite"
    )
    assert [one.server_round for one in kept] == [2]
    assert kept[0].strategy.keys() == honest[1].strategy.keys()
    for name, array in honest[1].strategy.items():
        assert kept[0].strategy[name].tobytes() == array.tobytes(), name


def test_an_optimiser_of_flowers_own_forgets_what_a_void_round_did():
    made = FedAdam(min_train_nodes=1, min_available_nodes=1, min_evaluate_nodes=1)
    undo = snapshot(made)
    made.m_t, made.v_t = {"w": np.full(1, np.nan)}, {"w": np.full(1, np.nan)}
    undo()
    assert (made.m_t, made.v_t) == (None, None)


def test_an_aggregate_beyond_the_largest_norm_makes_the_round_void():
    class Grows(AbstractStrategy):
        def aggregate(self, updates):
            self.shared = {"w": np.full(4, 30.0 * len(updates))}

    with pytest.raises(RunError, match=r"the aggregate of Grows cannot be used: its norm is 180, above"):
        play(Scripted(), clients=3, rounds=1, max_norm=100, strategy=Grows())


def test_answers_that_are_no_answers_are_dropped_and_named():
    class Odd(InProcessGrid):
        def send_and_receive(self, messages, *, timeout=None):
            for reply in super().send_and_receive(messages, timeout=timeout):
                if reply.metadata.message_type == MessageType.TRAIN:
                    partition = reply.metadata.src_node_id - FIRST_NODE
                    if partition == 0:
                        continue
                    if partition == 1:
                        reply.content = RecordDict({"config": ConfigRecord()})
                    if partition == 2:
                        weightless = MetricRecord({"num-examples": 0})
                        reply.content = RecordDict({"arrays": ArrayRecord(), "metrics": weightless})
                yield reply

    client = Scripted()
    progress, journal, _ = play(client, grid=Odd(client, 4), clients=4, rounds=1)
    said = [note.partition("not used: ")[2] for note in journal.notes]
    assert said[0] == "no answer in time"
    assert "expected arrays and metrics" in said[1]
    assert "num-examples is 0" in said[2]
    assert set(progress.accepted) == {3}


def test_personal_parameters_go_on_from_the_version_that_the_server_accepted():
    client = Scripted(broken={(2, 1)}, keeps=True)
    progress, _, grid = play(client, clients=2, rounds=3, personal=True)
    # In round 2 client 1 committed 12, but its reply was dropped: round 3 went on from round 1's 11.
    assert client.last[1][1]["head"].tolist() == [11.0, 11.0]
    assert client.last[0][1]["head"].tolist() == [2.0, 2.0]
    assert {p: one["head"].tolist() for p, one in progress.personal.items()} == {0: [3.0, 3.0], 1: [13.0, 13.0]}
    assert all(len(state.array_records) == 2 for state in grid.states.values())


def test_clients_that_never_trained_use_the_mean_of_the_others_heads():
    client = Scripted(keeps=True)
    loop = round_loop(clients=4, participation=0.5, rounds=1)
    trained = loop.sampling.train(1)
    _, _, grid = play(client, clients=4, participation=0.5, rounds=1, personal=True)
    heads = {partition: one["head"].tolist() for partition, one in client.last_parameters.items()}
    mean = 1 + 10 * np.mean(trained)
    assert {p: head[0] for p, head in heads.items()} == {
        p: (1 + 10 * p if p in trained else pytest.approx(mean)) for p in range(4)
    }
    assert client.last_parameters[0]["head"].dtype == np.float32
    assert sorted(grid.states) == trained, "state is kept for those that took part"


def test_test_images_are_looked_at_only_when_validation_was_better_or_the_run_ends():
    skill = {(1, "validation"): 2, (2, "validation"): 3, (3, "validation"): 1, (4, "validation"): 1}
    client = Scripted(skill={**skill, (2, "test"): 1, (4, "test"): 4})
    progress, _, _ = play(client, rounds=4)
    assert [one for one in client.evaluated if one[1] == "test"] == [(1, "test"), (2, "test"), (4, "test")]
    assert (progress.best.server_round, progress.final.server_round) == (2, 4)
    assert (progress.best.accuracy["mean"], progress.final.accuracy["mean"]) == (0.25, 1.0)


def test_held_out_images_are_looked_at_with_the_test_images_and_compared_with_them():
    client = Scripted(skill={(1, "test"): 3, (1, "held_out"): 1})
    progress, journal, _ = play(client, rounds=1, held_out=True)
    assert [split for _, split in client.evaluated] == ["validation", "test", "held_out"]
    ood = progress.final.summary()["ood"]
    assert (ood["images"], ood["accuracy"]) == (20, 0.25)
    assert progress.best.summary()["ood"] == ood
    # Equal predictions everywhere tell nothing, and that is not the same as telling badly.
    assert set(ood["auroc"].values()) == set(ood["fpr95"].values()) == {None}
    row = journal.rows[-1]
    assert (row["phase"], row["accuracy"], row["ood_auroc_entropy"]) == ("held_out", 0.25, None)
    assert not any(name.startswith("ood") for name in journal.rows[-2])


def test_the_temperature_is_fitted_on_validation_and_not_on_test():
    client = Scripted(skill={(1, "validation"): 3, (1, "test"): 1})
    progress, journal, _ = play(client, rounds=1, temperature=True)
    # Confidence 0.8, right on 3 of 4 validation images: T = log 4 / log 3, and then confidence 0.75 on test.
    assert progress.final.temperature == pytest.approx(np.log(4) / np.log(3), rel=1e-6)
    row = journal.rows[-1]
    assert row["nll_temperature"] == pytest.approx(-(np.log(0.75) + 3 * np.log(0.25)) / 4, rel=1e-6)
    assert row["ece_temperature"] == pytest.approx(0.5, rel=1e-6)
    assert "temperature" not in journal.rows[-2]
    off, plain, _ = play(client, rounds=1)
    assert "temperature" not in plain.rows[-1]
    assert off.final.summary()["temperature"] is None
    assert off.final.summary()["nll"] == progress.final.summary()["nll"]


def test_evaluation_happens_every_so_many_rounds_and_at_the_end():
    client = Scripted()
    play(client, rounds=5, evaluate_every=2)
    assert [r for r, split in client.evaluated if split == "validation"] == [2, 4, 5]


def test_clients_whose_predictions_are_not_finite_are_named_and_left_out():
    progress, journal, _ = play(Scripted(silent={1}), clients=3, rounds=1)
    assert set(progress.final.partitions.tolist()) == {0, 2}
    assert "round 1: test of client 1 not used: probabilities is not finite" in journal.notes


def test_a_run_that_nobody_can_be_evaluated_in_stops():
    with pytest.raises(RunError, match="no client could be evaluated on validation in round 1"):
        play(Scripted(silent={0, 1, 2}), clients=3, rounds=1)


def test_another_number_of_clients_than_asked_for_is_refused():
    client = Scripted()
    with pytest.raises(RunError, match="clients=5"):
        play(client, grid=InProcessGrid(client, 4))


def node_answers(answers, clients, patience=0):
    """A federation whose nodes answer the question for their partition with this; None for silence."""

    class Odd(InProcessGrid):
        asked = 0

        def send_and_receive(self, messages, *, timeout=None):
            self.asked += 1
            assert timeout >= 1
            for message in messages:
                found = answers[message.metadata.dst_node_id - FIRST_NODE]
                if callable(found):
                    found = found(self.asked)
                if found is not None:
                    yield Message(RecordDict(found), reply_to=message)

    return Federation(Odd(None, len(answers)), clients, Guard(1e8), patience=patience)


def holds(partition):
    return {"metrics": MetricRecord({"partition-id": partition})}


def test_a_node_that_says_that_it_holds_anothers_partition_is_refused_with_both_names():
    with pytest.raises(RunError, match="nodes 1000 and 1003 both say that they hold partition 0; stop one of them"):
        node_answers([holds(0), holds(1), holds(2), holds(0)], 3)


@pytest.mark.parametrize("answer", [{}, holds(float("nan")), holds(1.9), holds(-1), {"metrics": ConfigRecord()}])
def test_a_node_whose_answer_cannot_be_read_is_passed_over(answer, caplog):
    federation = node_answers([answer, holds(1), holds(0)], 2)
    assert federation.partitions == [0, 1]
    assert "node 1000 is passed over: partition-id is" in caplog.text
    with pytest.raises(RunError, match=r"the federation offers partitions \[0\] for clients=2"):
        node_answers([answer, holds(0)], 2)


def test_a_silent_node_is_waited_for_only_while_its_partition_is_missing(caplog):
    assert node_answers([holds(1), holds(0), None], 2).partitions == [0, 1]
    assert "nodes [1002] have not said yet whose images they hold" in caplog.text
    now = itertools.count(0, 10)

    def slow(asked):
        return holds(1) if asked > 2 else None

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("fedbayes.federation.time.monotonic", lambda: next(now))
        assert node_answers([holds(0), slow], 2, patience=5).partitions == [0, 1]


class Keeping(InProcessGrid):
    """What clients are said to keep to themselves is something else."""

    def __init__(self, client, clients, said):
        super().__init__(client, clients)
        self.said = said

    def send_and_receive(self, messages, *, timeout=None):
        for reply in super().send_and_receive(messages, timeout=timeout):
            partition = reply.metadata.src_node_id - FIRST_NODE
            if reply.metadata.message_type == QUERY_PERSONAL and partition in self.said:
                reply.content = RecordDict(self.said[partition])
            yield reply


def head(value):
    return {"arrays": to_record({"head": value})}


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({}, "answer holds [], expected arrays"),
        ({"arrays": ArrayRecord({"head": Array("float32", (2,), "numpy.ndarray", b"junk")})}, "head is said to be"),
        (head(np.full(2, np.nan, np.float32)), "head is not finite"),
        (head(np.full(2, 1e9, np.float32)), "its norm is 1.41e+09"),
        (head(np.ones(3, np.float32)), "it has head (3,) float32 where most clients have head (2,) float32"),
        ({"arrays": to_record({"other": np.ones(2, np.float32)})}, "it has other (2,) float32 where most clients"),
    ],
)
def test_what_a_client_keeps_is_not_taken_if_it_cannot_be_used(said, reason):
    client = Scripted(keeps=True)
    settings = {"clients": 4, "new_clients": 1, "rounds": 1, "personal": True}
    hostile, *honest = round_loop(**settings).sampling.known
    progress, journal, _ = play(client, grid=Keeping(client, 4, {hostile: said}), **settings)
    assert sorted(progress.personal) == honest
    assert not progress.complete
    mine = f"round 1: what client {hostile} keeps to itself is not used: {reason}"
    assert [note for note in journal.notes if note.startswith(mine)]
    mean = np.mean([progress.personal[one]["head"][0] for one in honest])
    assert client.last_parameters[round_loop(**settings).sampling.newcomers[0]]["head"][0] == pytest.approx(mean)


def test_where_clients_disagree_in_what_they_keep_nobody_is_believed():
    client = Scripted(keeps=True)
    grid = Keeping(client, 2, {0: head(np.ones(3, np.float32))})
    progress, journal, _ = play(client, grid=grid, clients=2, rounds=1, personal=True)
    assert (progress.personal, progress.held) == ({}, {})
    assert sum("clients disagree in its form" in note for note in journal.notes) == 2


def test_bytes_are_those_of_the_serialised_arrays():
    progress, journal, _ = play(Scripted(broken={(1, 0)}), clients=3, rounds=2)
    one = len(next(iter(progress.arrays.values())).data)
    assert progress.bytes_down == 6 * one
    assert progress.bytes_up == 5 * one
    assert [row["bytes_up"] for row in journal.rows if row["phase"] == "train"] == [2 * one, 3 * one]


def test_images_count_the_passes_over_them():
    progress, _, _ = play(Scripted(), clients=2, rounds=3, passes=4)
    assert progress.images == 3 * 4 * (10 + 20)


def test_the_loop_never_touches_the_global_generators():
    before = (np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # beartype itself uses Python's
    play(Scripted(), participation=0.5)
    assert (np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before


def test_messages_of_one_round_share_no_content():
    seen = []

    class Spy(InProcessGrid):
        def send_and_receive(self, messages, *, timeout=None):
            messages: list[Message] = list(messages)
            seen.append(messages)
            return super().send_and_receive(messages, timeout=timeout)

    client = Scripted(broken={(1, 0)})
    play(client, grid=Spy(client, 2), clients=2)
    accepted = [
        [m.content.config_records["config"]["accepted-round"] for m in messages]
        for messages in seen
        if messages[0].metadata.message_type == MessageType.TRAIN
    ]
    assert accepted == [[0, 0], [0, 1]]


def test_a_share_of_the_clients_is_evaluated_always_the_same():
    class Spy(Scripted):
        def evaluate(self, requests):
            seen.append([request.partition for request in requests])
            return super().evaluate(requests)

    seen = []
    progress, _, _ = play(Spy(), clients=10, rounds=3, evaluate_share=0.3)
    assert len(seen) >= 4
    assert all(one == seen[0] for one in seen)
    assert len(seen[0]) == 3
    assert progress.final.partitions.unique().tolist() == seen[0]
    assert play(Spy(), clients=10, seed=5, evaluate_share=0.3)
    assert seen[-1] != seen[0], "which ones depends on the seed"
    assert len(round_loop(evaluate_share=0.01).sampling.evaluated) == 1


def test_clients_that_never_come_are_missed():
    class Late(InProcessGrid):
        def get_node_ids(self):
            return list(super().get_node_ids())[:-1]

    with pytest.raises(RunError, match=r"4 of clients=5 came within simulation.patience=0 seconds; start the others"):
        play(Scripted(), grid=Late(Scripted(), 5))


def test_clients_that_come_later_are_waited_for():
    class Slow(InProcessGrid):
        looks = 0

        def get_node_ids(self):
            self.looks += 1
            return list(super().get_node_ids())[: self.looks]

    progress, _, _ = play(client := Scripted(), grid=Slow(client, 5), patience=30, rounds=1)
    assert set(progress.accepted) == set(range(5)), "no sampling from those who happen to be there"


def test_a_client_that_cannot_start_is_named():
    class Broken(InProcessGrid):
        def send_and_receive(self, messages, *, timeout=None):
            return [Message(client_error("DataError: no images\nTraceback"), reply_to=m) for m in messages]

    with pytest.raises(RunError, match=r"a client cannot start: DataError: no images\."):
        play(client := Scripted(), grid=Broken(client, 5))

"""The round loop: the mean by hand, keyed sampling, the order of replies, what is dropped, what is counted."""

import random

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, MessageType, MetricRecord, RecordDict
from scripted import Scripted, play, round_loop
from smoke import smoke

from fedbayes import build
from fedbayes.comm.messages import ClientUpdate, to_record
from fedbayes.simulation.flower_private import FIRST_NODE
from fedbayes.simulation.in_process import InProcessGrid


class RandomNodes(InProcessGrid):
    """Shows its nodes in another order, as Flower's set of random ids does."""

    def get_node_ids(self):
        return random.Random(3).sample(range(FIRST_NODE, FIRST_NODE + self._clients), self._clients)


def test_the_order_of_nodes_does_not_reach_the_bits_of_a_real_client():
    cfg, client = smoke("clients=4")
    sizes = build.partition_sizes(cfg, client.data)
    progress, journal, _ = play(client, clients=4, rounds=1, sizes=sizes)
    other, shuffled, _ = play(client, grid=RandomNodes(client, 4), clients=4, rounds=1, sizes=sizes)
    for name, array in progress.arrays.items():
        assert other.arrays[name].tobytes() == array.tobytes(), name
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
    progress, other = play(client)[0], play(client, grid=Late(client, 5))[0]
    assert progress.arrays["w"].tobytes() == other.arrays["w"].tobytes()
    assert progress.train == other.train


def test_partial_participation_samples_partitions_by_seed_and_round_alone():
    client = Scripted()
    play(client, clients=10, participation=0.3, rounds=4)
    sampled = [[p for r, p in client.trained if r == server_round] for server_round in (1, 2, 3, 4)]
    assert all(len(sample) == 3 and sample == sorted(sample) for sample in sampled)
    assert len({tuple(sample) for sample in sampled}) > 1
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


def test_an_update_that_is_not_finite_is_dropped_named_and_counted():
    progress, journal, _ = play(Scripted(broken={(2, 1)}), clients=3)
    assert progress.arrays["w"].tolist() == pytest.approx([(10 * 1 + 30 * 3) / 40])
    assert ["client 1 rejected: w is not finite" in note for note in journal.notes] == [True]
    trains = [row for row in journal.rows if row["phase"] == "train"]
    assert [(row["clients"], row["replies"], row["dropped"]) for row in trains] == [(3, 3, 0), (3, 2, 1)]
    assert progress.accepted == {0: 2, 1: 1, 2: 2}
    assert trains[1]["loss"] == pytest.approx((10 * 0 + 30 * 2) / 40)


def test_answers_that_are_no_answers_are_dropped_and_named():
    contents = {
        FIRST_NODE + 1: {"config": ConfigRecord()},
        FIRST_NODE + 2: {"arrays": ArrayRecord(), "metrics": MetricRecord({"num-examples": 0})},
    }

    class Changed(InProcessGrid):
        def send_and_receive(self, messages, *, timeout=None):
            for reply in super().send_and_receive(messages, timeout=timeout):
                node, is_training = reply.metadata.src_node_id, reply.metadata.message_type == MessageType.TRAIN
                if is_training and node in contents:
                    reply.content = RecordDict(contents[node])
                if node != FIRST_NODE or not is_training:
                    yield reply

    client = Scripted()
    progress, journal, _ = play(client, grid=Changed(client, 4), clients=4, rounds=1)
    reasons = [note.partition("rejected: ")[2] for note in journal.notes]
    assert reasons[0] == "no reply in time"
    assert "expected arrays and metrics" in reasons[1]
    assert "num-examples is 0" in reasons[2]
    assert set(progress.accepted) == {3}


def test_bytes_are_those_of_the_serialised_arrays_and_images_count_with_their_passes():
    progress, journal, _ = play(Scripted(broken={(1, 0)}), clients=3, rounds=2, passes=4)
    assert progress.images == 4 * (2 * (20 + 30) + 10), "with all passes over them"
    payload = len(to_record(progress.arrays)["w"].data)
    assert (progress.bytes_down, progress.bytes_up) == (6 * payload, 5 * payload)
    assert [row["bytes_up"] for row in journal.rows if row["phase"] == "train"] == [2 * payload, 3 * payload]


def test_the_loop_never_touches_the_global_generators():
    before = (np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # beartype itself uses Python's
    play(Scripted(), participation=0.5)
    assert (np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before


def test_each_request_says_which_reply_was_accepted_last():
    batches = []

    class Spy(InProcessGrid):
        def send_and_receive(self, messages, *, timeout=None):
            batches.append(list(messages))
            return super().send_and_receive(batches[-1], timeout=timeout)

    client = Scripted(broken={(1, 0)})
    play(client, grid=Spy(client, 2), clients=2)
    train = [batch for batch in batches if batch[0].metadata.message_type == MessageType.TRAIN]
    accepted = [[message.content["config"]["accepted-round"] for message in batch] for batch in train]
    assert accepted == [[0, 0], [0, 1]]

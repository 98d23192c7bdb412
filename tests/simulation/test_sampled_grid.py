"""The view of a round: only its sample, in the order of partitions, so Flower's strategies have nothing to draw."""

import random

import numpy as np
from flwr.app import ConfigRecord, Message, MessageType
from flwr.serverapp.strategy import FedAvg

from fedbayes.comm.messages import ask_partition, read_partition, to_record
from fedbayes.simulation.in_process import FIRST_NODE, InProcessGrid
from fedbayes.simulation.sampled_grid import SampledGrid


def view_of(*partitions):
    return SampledGrid(InProcessGrid(None, 10), {FIRST_NODE + p: p for p in partitions})


def test_the_view_holds_the_sample_in_the_order_of_partitions():
    view = SampledGrid(InProcessGrid(None, 10), {77: 5, 12: 9, 90: 1})
    assert list(view.get_node_ids()) == [90, 77, 12]
    assert [view.partition_of(node) for node in (12, 77, 90)] == [9, 5, 1]


def test_flowers_sampling_reaches_exactly_the_sample_whatever_the_global_generator():
    view = view_of(7, 2, 4)
    reached = []
    for seed in range(5):
        random.seed(seed)
        messages = FedAvg().configure_train(1, to_record({"w": np.zeros(1)}), ConfigRecord(), view)
        reached.append(sorted(message.metadata.dst_node_id - FIRST_NODE for message in messages))
    assert reached == [[2, 4, 7]] * 5


def test_messages_pass_through():
    view = view_of(3, 1)
    questions = [Message(ask_partition(), node, MessageType.QUERY) for node in view.get_node_ids()]
    assert [read_partition(reply.content) for reply in view.send_and_receive(questions)] == [1, 3]
    ids = view.push_messages([Message(ask_partition(), FIRST_NODE + 3, MessageType.QUERY)])
    assert [read_partition(reply.content) for reply in view.pull_messages(ids)] == [3]
    assert view.run is view._grid.run
    made = view.create_message(ask_partition(), MessageType.QUERY, FIRST_NODE, "1")
    assert made.metadata.dst_node_id == FIRST_NODE

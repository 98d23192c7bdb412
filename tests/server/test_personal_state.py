"""Personal parameters go on from what the server accepted; their mean starts new clients."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, RecordDict
from scripted import Scripted, play, round_loop

from fedbayes.comm.messages import to_record
from fedbayes.simulation.client import QUERY_PERSONAL
from fedbayes.simulation.flower_private import FIRST_NODE
from fedbayes.simulation.in_process import InProcessGrid


def test_personal_parameters_go_on_from_the_version_that_the_server_accepted():
    client = Scripted(broken={(2, 1)}, keeps=True)
    progress, _, grid = play(client, clients=2, rounds=3)
    # In round 2 client 1 committed 12, but its reply was dropped: round 3 went on from round 1's 11.
    assert client.last[1][1]["head"].tolist() == [11.0, 11.0]
    assert client.last[0][1]["head"].tolist() == [2.0, 2.0]
    assert {p: arrays["head"].tolist() for p, arrays in progress.personal.items()} == {0: [3.0, 3.0], 1: [13.0, 13.0]}
    assert all(len(state.array_records) == 2 for state in grid.states.values())


def test_clients_that_never_trained_use_the_mean_of_the_others_heads():
    client = Scripted(keeps=True)
    loop = round_loop(clients=4, participation=0.5, rounds=1)
    trained = loop.sampling.train(1)
    _, _, grid = play(client, clients=4, participation=0.5, rounds=1)
    heads = {partition: arrays["head"].tolist() for partition, arrays in client.last_parameters.items()}
    mean = 1 + 10 * np.mean(trained)
    assert {p: head[0] for p, head in heads.items()} == {
        p: (1 + 10 * p if p in trained else pytest.approx(mean)) for p in range(4)
    }
    assert client.last_parameters[0]["head"].dtype == np.float32
    assert sorted(grid.states) == trained, "state is kept for those that took part"


class Keeping(InProcessGrid):
    """Some clients hand out other personal parameters."""

    def __init__(self, client, clients, replies):
        super().__init__(client, clients)
        self.replies = replies

    def send_and_receive(self, messages, *, timeout=None):
        for reply in super().send_and_receive(messages, timeout=timeout):
            partition = reply.metadata.src_node_id - FIRST_NODE
            if reply.metadata.message_type == QUERY_PERSONAL and partition in self.replies:
                reply.content = RecordDict(self.replies[partition])
            yield reply


def head(value):
    return {"arrays": to_record({"head": value})}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({}, "answer holds [], expected arrays"),
        ({"arrays": ArrayRecord({"head": Array("float32", (2,), "numpy.ndarray", b"junk")})}, "head is said to be"),
        (head(np.full(2, np.nan, np.float32)), "head is not finite"),
        (head(np.full(2, 1e9, np.float32)), "its norm is 1.41e+09"),
        (head(np.ones(3, np.float32)), None),
    ],
)
def test_personal_parameters_are_rejected_if_invalid_and_new_clients_start_from_the_mean_of_the_usual_form(
    content, reason
):
    client = Scripted(keeps=True)
    settings = {"clients": 4, "new_clients": 1, "rounds": 1}
    malicious, *honest = round_loop(**settings).sampling.known
    (new,) = round_loop(**settings).sampling.new_clients
    progress, journal, _ = play(client, grid=Keeping(client, 4, {malicious: content}), **settings)
    if reason is None:  # of another form, but valid
        assert journal.notes == []
    else:
        assert sorted(progress.personal) == honest
        assert progress.uncollected == {malicious}
        note = f"personal parameters of client {malicious} rejected: {reason}"
        assert any(note in text for text in journal.notes)
    mean = np.mean([progress.personal[partition]["head"] for partition in honest], axis=0)
    np.testing.assert_allclose(client.last_parameters[new]["head"], mean)


def test_clients_without_personal_parameters_are_not_asked_for_them():
    kinds = set()

    class Spy(InProcessGrid):
        def send_and_receive(self, messages, *, timeout=None):
            messages = list(messages)
            kinds.update(message.metadata.message_type for message in messages)
            return super().send_and_receive(messages, timeout=timeout)

    client = Scripted()
    play(client, grid=Spy(client, 5))
    assert "train" in kinds
    assert QUERY_PERSONAL not in kinds

"""The contract between loop and strategy: wrappers delegate all of it, failed rounds leave no trace."""

import numpy as np
import pytest
from scripted import Scripted, play

from fedbayes.comm.messages import ClientUpdate
from fedbayes.errors import RunError
from strategies.averaging import Averaging
from strategies.base import AbstractStrategy
from strategies.server_optimiser import ServerOptimiser


class InPlace(AbstractStrategy):
    """Works in the arrays that are there, counts its rounds, and is then not finite."""

    rounds = 0

    def state(self):
        return {"rounds": np.array([self.rounds])}

    def restore(self, state):
        self.rounds = state["rounds"].item()

    def aggregate(self, updates):
        self.rounds += 1
        self.shared["w"] += np.nan
        self.left = len(updates)


@pytest.mark.parametrize("wrap", [lambda strategy: strategy, lambda strategy: ServerOptimiser(strategy, name="adam")])
def test_a_failed_round_leaves_no_trace_in_the_strategy_and_what_it_wraps(wrap):
    inner = InPlace()
    strategy = wrap(inner)
    with pytest.raises(RunError, match="w is not finite"):
        play(Scripted(), strategy=strategy, rounds=1, retries=2)
    assert strategy.shared["w"].tolist() == [0.0]
    assert (inner.rounds, strategy.state().keys() - {"rounds", "inner/rounds"}) == (0, set())
    assert not hasattr(inner, "left")


def test_what_a_round_starts_from_is_what_the_server_has_after_wrappers():
    client = Scripted()
    strategy = ServerOptimiser(Averaging(), name="momentum", lr=2.0, momentum=0.0)
    progress, _, _ = play(client, strategy=strategy, clients=1, rounds=1)
    assert progress.arrays["w"].tolist() == [2.0], "from 0 twice the step to 1"
    assert client.last_parameters[0]["w"].tolist() == [2.0], "and that is evaluated"


def test_clients_that_are_sent_the_same_object_share_its_bytes():
    class Numbered(AbstractStrategy):
        def outgoing(self, server_round, partition):
            return {"w": np.full(1, float(partition))}

        def aggregate(self, updates):
            self.shared = dict(updates[0].arrays)

    client = Scripted()
    play(client, strategy=Numbered(), clients=3, rounds=1)
    assert [client.last[partition][0]["w"].item() for partition in range(3)] == [0.0, 1.0, 2.0]
    client = Scripted()
    play(client, strategy=Averaging(), clients=3, rounds=1)
    assert client.last[0][0] is client.last[2][0]


def test_a_clients_update_says_what_came_over_the_wire():
    updates = []

    class Spy(AbstractStrategy):
        def aggregate(self, replies):
            updates.extend(replies)

    play(Scripted(keeps=True), strategy=Spy(), clients=2, rounds=1)
    assert isinstance(updates[0], ClientUpdate)
    assert updates[0].has_personal
    assert updates[0].personal == {}
    assert updates[0].payload == 136, "128 bytes of NumPy's header and one number"

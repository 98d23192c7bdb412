"""A round without enough usable replies or a usable aggregate is tried again or ends the run; nothing of it stays."""

import numpy as np
import pytest
from scripted import Scripted, play

from fedbayes import build
from fedbayes.comm.messages import ClientUpdate, to_record
from fedbayes.config.compose import compose
from fedbayes.errors import RunError
from strategies.base import AbstractStrategy


def test_a_failed_round_ends_the_run_with_what_was_learnt_before_in_a_checkpoint():
    checkpoints = []
    client = Scripted(broken={(3, 0), (3, 1)})
    with pytest.raises(RunError, match=r"round 3 failed .*min_replies=2; .*: w"):
        play(client, clients=3, rounds=4, min_replies=2, retries=1, checkpoint_every=9, save=checkpoints.append)
    assert [checkpoint.server_round for checkpoint in checkpoints] == [2]
    assert checkpoints[0].server["w"].tolist() == pytest.approx([140 / 60])
    assert checkpoints[0].history["accepted"] == {"0": 2, "1": 2, "2": 2}
    assert client.trained.count((3, 0)) == 2


def test_a_failed_round_is_tried_again_with_the_same_clients():
    class Recovers(Scripted):
        def train(self, requests):
            answers = super().train(requests)
            if requests[0].server_round == 2 and self.trained.count((2, 0)) == 2:
                self.broken = set()
            return answers

    client = Recovers(broken={(2, 0), (2, 1)})
    progress, journal, _ = play(client, clients=3, min_replies=2, retries=2)
    assert any(
        note.startswith("round 2 failed: 1 valid replies") and "attempt 2 of 3" in note for note in journal.notes
    )
    assert client.trained.count((2, 2)) == 3
    assert progress.accepted == {0: 2, 1: 2, 2: 2}
    row = [row for row in journal.rows if row["phase"] == "train"][1]
    assert (row["attempts"], row["dropped"], row["dropped_invalid"], row["replies"]) == (3, 0, 4, 3)
    payload = len(to_record(progress.arrays)["w"].data)
    assert (row["bytes_down"], row["bytes_up"]) == (9 * payload, 5 * payload), "of all attempts"


class Gaussians(Scripted):
    """Clients with Gaussians, of which one's third answer says that it is infinitely sure."""

    def __init__(self, malicious):
        super().__init__()
        self.malicious, self.asked = malicious, 0

    def initial(self):
        return {"w": np.zeros(3), "w.rho": np.zeros(3)}

    def train(self, requests):
        self.asked += 1
        sure = self.asked == 3 and self.malicious
        rho = [np.full(3, -1000.0) if sure and r.partition == 1 else r.arrays["w.rho"] - 0.1 for r in requests]
        means = [r.arrays["w"] + r.partition for r in requests]
        return [
            ClientUpdate(r.partition, {"w": mean, "w.rho": each}, 10, {})
            for r, mean, each in zip(requests, means, rho, strict=True)
        ]


@pytest.mark.parametrize("wrap", [[], ["server.name=momentum"]])
def test_an_aggregate_that_is_not_finite_fails_the_round_and_leaves_no_trace(wrap):
    cfg = compose(["method=pfedbayes_product", "method.strategy.aggregate=product", "clients=3", *wrap])

    def run(malicious, **settings):
        strategy, checkpoints = build.strategy(cfg, build.loop(cfg, build.sampling(cfg))), []
        settings = {"clients": 3, "rounds": 4, **settings}
        try:
            _, journal, _ = play(Gaussians(malicious), strategy=strategy, save=checkpoints.append, **settings)
        except RunError as error:
            return str(error), checkpoints
        return journal.notes, checkpoints

    notes, checkpoints = run(malicious=True, retries=1)
    assert len(notes) == 1
    assert "aggregate of PFedBayes cannot be used: w" in notes[0]
    assert [checkpoint.server_round for checkpoint in checkpoints] == [1, 2, 3, 4]
    _, honest = run(malicious=False)
    for after, before in zip(checkpoints, honest, strict=True):
        for arrays, expected in ((after.server, before.server), (after.strategy, before.strategy)):
            assert {n: a.tobytes() for n, a in arrays.items()} == {n: a.tobytes() for n, a in expected.items()}

    error, checkpoints = run(malicious=True, checkpoint_every=4)
    assert error.startswith("round 3 failed in 1 attempts")
    assert [checkpoint.server_round for checkpoint in checkpoints] == [2]
    assert checkpoints[0].strategy.keys() == honest[1].strategy.keys()
    for name, array in honest[1].strategy.items():
        assert checkpoints[0].strategy[name].tobytes() == array.tobytes(), name


def test_an_aggregate_beyond_the_largest_norm_fails_the_round():
    class Grows(AbstractStrategy):
        def aggregate(self, updates):
            self.shared = {"w": np.full(4, 30.0 * len(updates))}

    with pytest.raises(RunError, match=r"aggregate of Grows .* its norm is 180"):
        play(Scripted(), clients=3, rounds=1, max_norm=100, strategy=Grows())

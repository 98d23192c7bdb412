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
    kept = []
    client = Scripted(broken={(3, 0), (3, 1)})
    with pytest.raises(RunError, match=r"round 3 failed in 2 .*simulation\.min_replies=2; first reason: w is not"):
        play(client, clients=3, rounds=4, min_replies=2, retries=1, checkpoint_every=9, save=kept.append)
    assert [one.server_round for one in kept] == [2]
    assert kept[0].server["w"].tolist() == pytest.approx([140 / 60])
    assert kept[0].history["accepted"] == {"0": 2, "1": 2, "2": 2}
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
def test_an_aggregate_that_is_not_finite_fails_the_round_and_leaves_no_trace(wrap):
    cfg = compose(["method=pfedbayes_product", "method.strategy.aggregate=product", "clients=3", *wrap])

    def run(malicious, **settings):
        strategy, kept = build.strategy(cfg, build.loop(cfg, build.sampling(cfg))), []
        settings = {"clients": 3, "rounds": 4, **settings}
        try:
            _, journal, _ = play(Gaussians(malicious), strategy=strategy, save=kept.append, **settings)
        except RunError as error:
            return str(error), kept
        return journal.notes, kept

    notes, kept = run(malicious=True, retries=1)
    assert notes == [
        "round 3 failed: the aggregate of PFedBayes cannot be used: w is not finite; attempt 2 of 2",
    ]
    assert [one.server_round for one in kept] == [1, 2, 3, 4]
    _, honest = run(malicious=False)
    for one, other in zip(kept, honest, strict=True):
        for found, expected in ((one.server, other.server), (one.strategy, other.strategy)):
            assert {n: a.tobytes() for n, a in found.items()} == {n: a.tobytes() for n, a in expected.items()}

    error, kept = run(malicious=True, checkpoint_every=4)
    assert error.startswith("round 3 failed in 1 attempts: the aggregate of PFedBayes")
    assert [one.server_round for one in kept] == [2]
    assert kept[0].strategy.keys() == honest[1].strategy.keys()
    for name, array in honest[1].strategy.items():
        assert kept[0].strategy[name].tobytes() == array.tobytes(), name


def test_an_aggregate_beyond_the_largest_norm_fails_the_round():
    class Grows(AbstractStrategy):
        def aggregate(self, updates):
            self.shared = {"w": np.full(4, 30.0 * len(updates))}

    with pytest.raises(RunError, match=r"aggregate of Grows .* its norm is 180"):
        play(Scripted(), clients=3, rounds=1, max_norm=100, strategy=Grows())

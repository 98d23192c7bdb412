"""A client cannot claim more images than it has, and so not outweigh the others."""

from dataclasses import replace

import numpy as np
import pytest
from scripted import Scripted, play

from fedbayes import build
from fedbayes.comm.messages import ClientRequest
from fedbayes.config.compose import compose
from fedbayes.errors import ConfigError
from fedbayes.server.validation import Holdings
from strategies.base import AbstractStrategy, miscounted


def test_a_client_whose_counts_cannot_be_costs_itself_alone_even_where_steps_are_clipped():
    class Counting(AbstractStrategy):
        def aggregate(self, updates):
            self.shared = {"w": sum(update.arrays["w"] for update in updates)}

        def impossible(self, update):
            return miscounted(replace(update, num_examples=update.partition + 1), "w")

    class Miscounting(Scripted):
        def train(self, requests):
            answers = super().train(requests)
            answers[1].arrays["w"] += 0.5
            return answers

    progress, journal, _ = play(Miscounting(), clients=3, rounds=1, clip=0.5, strategy=Counting())
    assert progress.arrays["w"].tolist() == [1.0], "two steps, each of length 1/2"
    assert journal.notes == ["round 1: reply of client 1 not used: w are no numbers of images"]


class Liars(Scripted):
    """One client claims a million million images, and metrics with names of the log's own."""

    def train(self, requests):
        return [
            replace(one, num_examples=10**12)
            if one.partition == 1
            else replace(one, metrics={"round": 99, "loss": 1.0})
            for one in super().train(requests)
        ]


def test_a_client_cannot_outweigh_the_others_or_write_the_log():
    progress, journal, _ = play(Liars(), clients=3, rounds=1)
    assert progress.arrays["w"].tolist() == pytest.approx([(10 * 1 + 30 * 3) / 40])
    assert [row["round"] for row in journal.rows] == [1] * len(journal.rows)


class Boasters(Scripted):
    """One client says that it has as many images as a message can say, or evaluates more than it has."""

    def train(self, requests):
        return [replace(one, num_examples=2**31 - 1) if one.partition == 1 else one for one in super().train(requests)]

    def evaluate(self, requests):
        answers = super().evaluate(requests)
        twice = {name: np.concatenate([array, array]) for name, array in answers[-1].arrays.items()}
        return [*answers[:-1], replace(answers[-1], num_examples=8, arrays=twice)]


def test_a_client_cannot_claim_more_images_than_it_has():
    images = {"train": [10, 20, 30], "validation": [4, 4, 4], "test": [4, 4, 7]}
    progress, journal, _ = play(Boasters(), clients=3, rounds=1, holdings=Holdings(2, 1, images))
    assert progress.arrays["w"].tolist() == pytest.approx([(10 * 1 + 30 * 3) / 40])
    assert progress.final.partitions.tolist() == [0] * 4 + [1] * 4
    said = "it rests on {} images, says the client, which has {}"
    assert journal.notes == [
        f"round 1: reply of client 1 not used: {said.format(2**31 - 1, 20)}",
        f"round 1: validation of client 2 not used: {said.format(8, 4)}",
        f"round 1: test of client 2 not used: {said.format(8, 7)}",
    ]


@pytest.mark.parametrize("method", ["fedvpt", "centralised", "fedncm"])
def test_honest_clients_claim_what_the_server_reckons_with(method):
    cfg = compose(["experiment=smoke", f"method={method}", "attack=backdoor", "attack.fraction=0.3"])
    data = build.data(cfg)
    client = build.client(cfg, data, build.model(cfg, data, "cpu"))
    client.prepare()
    holdings = build.holdings(cfg, data)
    for split, work in (("train", client.train), ("test", client.evaluate), ("triggered", client.evaluate)):
        requests = [ClientRequest(one, 1, "train", split, client.initial()) for one in range(cfg.clients)]
        claims = [update.num_examples for update in work(requests)]
        known = [holdings.of(split, one) for one in range(cfg.clients)]
        assert all(claim <= most for claim, most in zip(claims, known, strict=True))
        assert claims == known or split == "triggered"
    assert Holdings(2, 1, {}).of("train", 0) is None


def test_where_steps_are_clipped_clients_count_alike():
    progress, _, _ = play(Scripted(), clients=3, rounds=1, clip=1.5)
    assert progress.arrays["w"].tolist() == pytest.approx([(1 + 1.5 + 1.5) / 3])


def test_what_is_counted_or_summed_is_no_step_and_is_not_clipped():
    class Summing(AbstractStrategy):
        counted = ("n",)

        def answer_like(self, arrays):
            return {**arrays, "sums": np.zeros(1)}

        def aggregate(self, updates):
            self.shared = {name: sum(one.arrays[name] for one in updates) for name in ("w", "n")}
            self.total = sum(one.arrays["sums"] for one in updates)

    class Counters(Scripted):
        def initial(self):
            return {**super().initial(), "n": np.zeros(1)}

        def train(self, requests):
            extra = {"n": np.full(1, 40.0), "sums": np.full(1, 90.0)}
            return [replace(one, arrays={**one.arrays, **extra}) for one in super().train(requests)]

    strategy = Summing()
    progress, _, _ = play(Counters(), clients=3, rounds=1, clip=1.5, strategy=strategy)
    found = progress.arrays
    assert (found["w"].tolist(), found["n"].tolist(), strategy.total.tolist()) == ([1 + 1.5 + 1.5], [120.0], [270.0])


@pytest.mark.parametrize("method", ["fedncm", "fedcof"])
def test_sums_are_no_steps_that_could_be_clipped(method):
    cfg = compose([f"method={method}", "update_clipping.max_norm=15"])
    with pytest.raises(ConfigError, match=rf"update_clipping\.max_norm=15: in method={method} clients send sums"):
        build.strategy(cfg, build.loop(cfg))

"""Update clipping: long steps are scaled down, clients count alike, and what is counted or summed is no step."""

from dataclasses import replace

import numpy as np
import pytest
from scripted import Scripted, play

from fedbayes import build
from fedbayes.config.compose import compose
from fedbayes.errors import ConfigError
from strategies.base import AbstractStrategy, miscounted


def test_a_client_whose_counts_cannot_be_true_costs_itself_alone_even_where_updates_are_clipped():
    class Counting(AbstractStrategy):
        def aggregate(self, updates):
            self.shared = {"w": sum(update.arrays["w"] for update in updates)}

        def rejection_reason(self, update):
            return miscounted(replace(update, num_examples=update.partition + 1), "w")

    class Miscounting(Scripted):
        def train(self, requests):
            updates = super().train(requests)
            updates[1].arrays["w"] += 0.5
            return updates

    progress, journal, _ = play(Miscounting(), clients=3, rounds=1, max_update_norm=0.5, strategy=Counting())
    assert progress.arrays["w"].tolist() == [1.0], "two steps, each of length 1/2"
    assert ["client 1 rejected: w are" in note for note in journal.notes] == [True]


def test_where_updates_are_clipped_clients_count_alike():
    progress, _, _ = play(Scripted(), clients=3, rounds=1, max_update_norm=1.5)
    assert progress.arrays["w"].tolist() == pytest.approx([(1 + 1.5 + 1.5) / 3])
    assert progress.images == 60, "but the log has their images"


def test_what_is_counted_or_summed_is_no_step_and_is_not_clipped():
    class Summing(AbstractStrategy):
        counted = ("n",)

        def expected_reply(self, initial):
            return {**initial, "sums": np.zeros(1)}

        def aggregate(self, updates):
            self.shared = {name: sum(update.arrays[name] for update in updates) for name in ("w", "n")}
            self.total = sum(update.arrays["sums"] for update in updates)

    class Counters(Scripted):
        def initial(self):
            return {**super().initial(), "n": np.zeros(1)}

        def train(self, requests):
            extra = {"n": np.full(1, 40.0), "sums": np.full(1, 90.0)}
            return [replace(update, arrays={**update.arrays, **extra}) for update in super().train(requests)]

    strategy = Summing()
    arrays = play(Counters(), clients=3, rounds=1, max_update_norm=1.5, strategy=strategy)[0].arrays
    assert (arrays["w"].tolist(), arrays["n"].tolist(), strategy.total.tolist()) == ([4.0], [120.0], [270.0])


@pytest.mark.parametrize("method", ["fedncm", "fedcof"])
def test_sums_are_no_steps_that_could_be_clipped(method):
    cfg = compose([f"method={method}", "update_clipping.max_norm=15"])
    with pytest.raises(ConfigError, match=r"update_clipping\.max_norm=15"):
        build.strategy(cfg, build.loop(cfg, build.sampling(cfg)))

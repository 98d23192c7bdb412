"""Reply validation: replies that would cost a result are rejected, named and counted, and only those."""

import math
from dataclasses import replace

import numpy as np
import pytest
from flwr.app import Array, Message, MessageType, MetricRecord
from scripted import SIZES, Scripted, play
from smoke import smoke

from fedbayes import build
from fedbayes.comm.messages import ClientRequest, ClientUpdate, write_reply
from fedbayes.config.compose import compose
from fedbayes.errors import ConfigError, RunError
from fedbayes.server.validation import PartitionSizes, Rejection, ReplyValidator, evaluation_problem, form_problem
from fedbayes.simulation.flower_private import claim_identity
from strategies.base import AbstractStrategy, miscounted


def reply(arrays, count=3, **metrics):
    claim_identity(1)
    return Message(write_reply(ClientUpdate(0, arrays, count, metrics)), 7, MessageType.TRAIN)


def read(arrays, count=3, **metrics):
    return ReplyValidator(1e8).read(0, reply(arrays, count, **metrics))


GOOD = {"w": np.ones(4, np.float32), "n": np.array([3])}


def test_a_valid_reply_is_decoded():
    update = read(GOOD, loss=1.5)
    assert (update.num_examples, update.metrics) == (3, {"loss": 1.5})
    assert update.arrays["n"].dtype == np.int64


@pytest.mark.parametrize(
    ("arrays", "count", "metrics", "reason"),
    [
        ({"w": np.array([1, np.nan])}, 3, {}, "w is not finite"),
        ({"a": np.ones(2), "w": np.array([1, np.inf], np.float32)}, 3, {}, "w is not finite"),
        ({"w": np.array([1 + 1j])}, 3, {}, "send numbers"),
        (GOOD, 3, {"loss": float("nan")}, "metric loss is nan"),
        (GOOD, 3, {"loss": float("inf")}, "metric loss is inf"),
        (GOOD, 3, {"loss": 1e300}, "metric loss is 1e+300"),
        (GOOD, 0, {}, "num-examples is 0"),
        (GOOD, -2, {}, "num-examples is -2"),
        ({"w": np.full(4, 6e7, np.float32)}, 3, {}, "its norm is 1.2e+08"),
        ({"w": np.full(4, 1e30, np.float32)}, 3, {}, "its norm is 2e+30"),
        ({"w": np.full(4, 1e200)}, 3, {}, "its norm is inf"),
    ],
)
def test_what_cannot_be_used_is_rejected_with_a_reason(arrays, count, metrics, reason):
    rejection = read(arrays, count, **metrics)
    assert rejection.kind == "invalid"
    assert reason in rejection.reason


def test_the_norm_is_of_all_numbers_together_and_the_limit_is_allowed():
    arrays = {"a": np.full(1, 3.0), "b": np.full(1, 4.0, np.float32)}
    assert isinstance(ReplyValidator(5.0).read(0, reply(arrays)), ClientUpdate)
    assert isinstance(ReplyValidator(4.99).read(0, reply(arrays)), Rejection)
    with pytest.raises(ConfigError, match=r"simulation\.max_norm=0"):
        ReplyValidator(0)


@pytest.mark.parametrize(
    "change", [{"dtype": "foo"}, {"stype": "pickle"}, {"data": b""}, {"shape": (9,)}, {"dtype": "int64"}]
)
def test_arrays_that_are_not_what_they_claim_to_be_are_rejected(change):
    message = reply(GOOD)
    array = message.content["arrays"]["w"]
    claimed = {"dtype": array.dtype, "shape": array.shape, "stype": array.stype, "data": array.data, **change}
    message.content["arrays"]["w"] = Array(*(claimed[name] for name in ("dtype", "shape", "stype", "data")))
    assert ReplyValidator(1e8).read(0, message).kind == "invalid"


@pytest.mark.parametrize("count", [0.5, 3.0, 2**31, 10**12, 1.7e308])
def test_a_count_that_is_no_whole_number_of_images_is_rejected(count):
    message = reply(GOOD)
    message.content["metrics"] = MetricRecord({"num-examples": count})
    assert isinstance(ReplyValidator(1e8).read(0, message), Rejection)


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"w": np.ones(3, np.float32), "n": np.array([3])}, "w is (3,) float32, expected (4,) float32"),
        ({"w": np.ones(4), "n": np.array([3])}, "w is (4,) float64"),
        ({"v": np.ones(4, np.float32), "n": np.array([3])}, "it lacks w"),
        ({}, "it lacks w"),
        ({**GOOD, "more": np.ones(1)}, "it has more"),
    ],
)
def test_another_form_than_the_expected_one_is_a_problem(arrays, reason):
    assert reason in form_problem(ClientUpdate(0, arrays, 2, {}), GOOD)


def test_the_expected_form_is_none_in_any_order():
    assert form_problem(ClientUpdate(0, dict(reversed(GOOD.items())), 2, {}), GOOD) is None


class Hijackers(Scripted):
    """All but the last of the clients that train reply in a form of their own in the first round."""

    def train(self, requests):
        updates = super().train(requests)
        if requests[0].server_round == 1:
            updates[:-1] = [replace(update, arrays={"other": np.ones(3)}) for update in updates[:-1]]
        return updates


def test_no_number_of_malicious_clients_decides_whether_the_others_count():
    progress, journal, _ = play(Hijackers(), clients=5, participation=0.8, rounds=3)
    assert [row["dropped"] for row in journal.rows if row["phase"] == "train"] == [3, 0, 0]
    assert list(progress.arrays) == ["w"]
    assert journal.notes[0].startswith("round 1: training reply of clients ")
    assert journal.notes[0].endswith("rejected: it lacks w, expected (1,) float64")


METHODS = ["fedcof", "fedncm", "pep_fedpt", "pfedpg", "pfpt", "sgpt", "fedvpt", "fedapt", "pfedbayes_product", "ditto"]
PERSONAL = [[method, "method.client.personal=[generator]"] for method in ("sgpt", "pep_fedpt", "fedapt", "fedvpt")]


@pytest.mark.parametrize("method", [*([method] for method in METHODS), *PERSONAL])
def test_what_a_strategy_expects_is_what_honest_clients_reply(method):
    cfg, client = smoke(f"method={method[0]}", *method[1:])
    client.prepare()
    strategy = build.strategy(cfg, build.loop(cfg, build.sampling(cfg)))
    (update,) = client.train([ClientRequest(0, 1, "train", "train", client.initial())])
    expected = strategy.expected_reply(client.initial())
    assert form_problem(update, expected) is None
    assert list(update.arrays) == list(expected)
    assert strategy.rejection_reason(update) is None


class Odd(Scripted):
    """Client 1 replies in another shape, client 2 with huge numbers, and clients 1 and 3 with metrics of their own."""

    def train(self, requests):
        updates = super().train(requests)
        arrays = {1: np.ones((2, 2)), 2: np.full(1, 1e12)}
        return [
            replace(
                update,
                arrays={"w": arrays.get(update.partition, update.arrays["w"])},
                metrics={"round": 99, "phase": 1.0, "loss": 1.0} if update.partition == 3 else update.metrics,
            )
            for update in updates
        ]

    def evaluate(self, requests):
        metrics = {"mixing_variance": 1.0, "round": 99.0, "brier": 99.0, "x": 1.0}
        return [replace(u, metrics=metrics) if u.partition == 1 else u for u in super().evaluate(requests)]


def test_the_round_goes_on_with_the_rest_and_no_client_writes_the_log():
    progress, journal, _ = play(Odd(), clients=4, rounds=1)
    assert progress.arrays["w"].tolist() == pytest.approx([(10 * 1 + 40 * 4) / 50])
    assert [note.partition(" reply of ")[2] for note in journal.notes] == [
        "client 1 rejected: w is (2, 2) float64, expected (1,) float64",
        "client 2 rejected: its norm is 1e+12, above simulation.max_norm=1e+08",
    ]
    row, *evaluations = journal.rows
    assert (row["replies"], row["dropped"], row["phase"]) == (2, 2, "train")
    assert (row["dropped_late"], row["dropped_failed"], row["dropped_invalid"]) == (0, 0, 2)
    assert [one["round"] for one in journal.rows] == [1, 1, 1]
    assert all(one["brier"] < 2 and one["x"] == 1.0 for one in evaluations)
    assert progress.final.summary()["brier"] < 2
    assert progress.final.summary()["mixing_ratio"] is None


class Boasters(Scripted):
    """Client 1 claims many images; client 2 evaluates more than it has."""

    def train(self, requests):
        return [replace(u, num_examples=2**31 - 1) if u.partition == 1 else u for u in super().train(requests)]

    def evaluate(self, requests):
        *rest, last = super().evaluate(requests)
        twice = {name: np.concatenate([array, array]) for name, array in last.arrays.items()}
        return [*rest, replace(last, num_examples=8, arrays=twice)]


def test_a_client_cannot_claim_more_images_than_it_has():
    images = {"train": [10, 20, 30], "validation": [4, 4, 4], "test": [4, 4, 7]}
    progress, journal, _ = play(Boasters(), clients=3, rounds=1, sizes=PartitionSizes(2, 1, images))
    assert progress.arrays["w"].tolist() == pytest.approx([(10 * 1 + 30 * 3) / 40])
    assert progress.final.partitions.tolist() == [0] * 4 + [1] * 4
    claims = [(2**31 - 1, 20), (8, 4), (8, 7)]
    rejected = [note for note in journal.notes if "rejected" in note]
    for note, (claim, images_of_client) in zip(rejected, claims, strict=True):
        assert note.endswith(f"num_examples={claim}, but the client has {images_of_client}")


@pytest.mark.parametrize("method", ["fedvpt", "centralised", "fedncm"])
def test_honest_clients_claim_what_the_server_expects(method):
    cfg = compose(["experiment=smoke", f"method={method}", "attack=backdoor", "attack.fraction=0.3"])
    parts = build.assemble(cfg, build.NoEngine())
    client = parts.client
    client.prepare()
    sizes = build.partition_sizes(cfg, parts.data, parts.attack)
    for split, work in (("train", client.train), ("test", client.evaluate), ("triggered", client.evaluate)):
        requests = [ClientRequest(one, 1, "train", split, client.initial()) for one in range(cfg.clients)]
        claims = [update.num_examples for update in work(requests)]
        known = [sizes.of(split, one) for one in range(cfg.clients)]
        assert all(claim <= most for claim, most in zip(claims, known, strict=True))
        assert claims == known or split == "triggered"
    assert SIZES.of("train", 0) is None


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
    assert journal.notes == ["round 1: training reply of client 1 rejected: w are not numbers of images"]


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


def predictions(images=2, **changes):
    good = {
        "probabilities": np.full((images, 5), 0.2, np.float32),
        "expected_entropy": np.full(images, 1.5, np.float32),
        "labels": np.ones(images, np.int64),
        "domains": np.zeros(images, np.int64),
    }
    arrays = {name: array for name, array in {**good, **changes}.items() if array is not None}
    return evaluation_problem(ClientUpdate(0, arrays, 2, {}), PartitionSizes(classes=5, domains=3, images={}))


BOUND = math.log(5)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"labels": np.ones(1, np.int64)}, "labels has shape (1,) for 2 images"),
        ({"labels": np.array([0, 5])}, "labels go from 0 to 5 for 5 classes"),
        ({"labels": np.array([-1, 0])}, "labels go from -1 to 0"),
        ({"labels": np.ones(2, np.float32)}, "labels is float32"),
        ({"labels": np.ones(2, np.int32)}, "labels is int32"),
        ({"domains": np.array([0, 999])}, "domains go from 0 to 999 for 3 domains"),
        ({"domains": np.array([-1, 0])}, "domains go from -1 to 0"),
        ({"domains": None}, "it lacks domains"),
        ({"expected_entropy": None}, "it lacks expected_entropy"),
        ({"expected_entropy": np.array([0.5, -1e7])}, "expected entropies go from -1e+07 to 0.5 nats"),
        ({"expected_entropy": np.array([BOUND, BOUND + 0.01])}, "to 1.61944 nats for 5 classes"),
        ({"probabilities": np.full((2, 5), -1.0)}, "probabilities go from -1.0"),
        ({"probabilities": np.full((2, 5), 0.5)}, "probabilities of an image sum to 2.5"),
        ({"probabilities": np.zeros((2, 5))}, "probabilities of an image sum to 0"),
        ({"probabilities": np.zeros((2, 0))}, "probabilities is float64 (2, 0)"),
        ({"probabilities": np.full((2, 4), 0.25)}, "probabilities are of 4 classes, expected 5"),
    ],
)
def test_predictions_that_cannot_be_are_a_problem(changes, reason):
    assert reason in predictions(**changes)


def test_predictions_at_the_limits_are_used():
    rounded = np.array([[1.0, 0, 0, 0, 0], [0.2 + 1e-5] * 5], np.float32)
    entropies = np.array([-1e-7, BOUND + 1e-6], np.float32)
    assert predictions(probabilities=rounded, expected_entropy=entropies, domains=np.array([0, 2])) is None


def test_a_domain_that_does_not_exist_costs_its_client_alone():
    class Elsewhere(Scripted):
        def evaluate(self, requests):
            updates = super().evaluate(requests)
            updates[1].arrays["domains"][:] = 999
            return updates

    progress, journal, _ = play(Elsewhere(), clients=3, rounds=1)
    assert progress.final.partitions.unique().tolist() == [0, 2]
    assert any(note.startswith("round 1: test reply of client 1 rejected: domains go") for note in journal.notes)


def test_a_round_without_a_valid_reply_fails_with_its_first_reason():
    with pytest.raises(RunError, match="w is not finite"):
        play(Scripted(broken={(1, 0), (1, 1)}), clients=2, rounds=1)

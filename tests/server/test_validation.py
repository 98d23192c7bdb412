"""Reply validation: replies that would cost a result are rejected, named and counted, and only those."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
from flwr.app import Array, Message, MessageType, MetricRecord
from scripted import SIZES, Scripted, play
from smoke import smoke

from fedbayes import build
from fedbayes.comm.messages import ClientRequest, ClientUpdate, write_reply
from fedbayes.config.compose import compose
from fedbayes.errors import ConfigError
from fedbayes.server.validation import PartitionSizes, Rejection, ReplyValidator, evaluation_problem, form_problem
from fedbayes.simulation.flower_private import claim_identity


def reply(arrays, count=3, **metrics):
    claim_identity()
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
def test_another_form_than_the_expected_one_is_a_problem_but_not_another_order(arrays, reason):
    assert reason in form_problem(ClientUpdate(0, arrays, 2, {}), GOOD)
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
    assert "rejected: it lacks w" in journal.notes[0]


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


class Malformed(Scripted):
    """Client 1 replies in another shape, client 2 with huge numbers, and clients 1 and 3 with metrics of their own."""

    def train(self, requests):
        updates = super().train(requests)
        updates[1] = replace(updates[1], arrays={"w": np.ones((2, 2))})
        updates[2] = replace(updates[2], arrays={"w": np.full(1, 1e12)})
        updates[3] = replace(updates[3], metrics={"round": 99, "phase": 1.0, "loss": 1.0})
        return updates

    def evaluate(self, requests):
        metrics = {"mixing_variance": 1.0, "round": 99.0, "brier": 99.0, "x": 1.0}
        return [replace(u, metrics=metrics) if u.partition == 1 else u for u in super().evaluate(requests)]


def test_the_round_goes_on_with_the_valid_replies_and_no_client_writes_the_log():
    progress, journal, _ = play(Malformed(), clients=4, rounds=1)
    assert progress.arrays["w"].tolist() == pytest.approx([(10 * 1 + 40 * 4) / 50])
    reasons = [note.partition(" reply of ")[2] for note in journal.notes]
    assert [reason.partition(": ")[0] for reason in reasons] == ["client 1 rejected", "client 2 rejected"]
    row, *evaluations = journal.rows
    assert (row["replies"], row["dropped"], row["phase"]) == (2, 2, "train")
    assert (row["dropped_late"], row["dropped_failed"], row["dropped_invalid"]) == (0, 0, 2)
    assert [row["round"] for row in journal.rows] == [1, 1, 1]
    assert all(row["brier"] < 2 and row["x"] == 1.0 for row in evaluations)
    assert progress.final.summary()["brier"] < 2
    assert progress.final.summary()["mixing_ratio"] is None


class Boasters(Scripted):
    """Client 1 claims many images; client 2 evaluates more than it has."""

    def train(self, requests):
        return [replace(u, num_examples=2**31 - 1) if u.partition == 1 else u for u in super().train(requests)]

    def evaluate(self, requests):
        updates = super().evaluate(requests)
        twice = {name: np.concatenate([array, array]) for name, array in updates[2].arrays.items()}
        return [*updates[:2], replace(updates[2], num_examples=8, arrays=twice)]


def test_a_client_cannot_claim_more_images_than_it_has():
    images = {"train": [10, 20, 30], "validation": [4, 4, 4], "test": [4, 4, 7]}
    progress, journal, _ = play(Boasters(), clients=3, rounds=1, sizes=PartitionSizes(2, 1, images))
    assert progress.arrays["w"].tolist() == pytest.approx([(10 * 1 + 30 * 3) / 40])
    assert progress.final.partitions.tolist() == [0] * 4 + [1] * 4
    claims = [(2**31 - 1, 20), (8, 4), (8, 7)]
    rejected = [note.partition("num_examples=")[2] for note in journal.notes if "rejected" in note]
    assert rejected == [f"{claim}, but the client has {size}" for claim, size in claims]


@pytest.mark.parametrize("method", ["fedvpt", "centralised", "fedncm"])
def test_honest_clients_claim_what_the_server_expects(method):
    cfg = compose(["experiment=smoke", f"method={method}", "attack=backdoor", "attack.fraction=0.3"])
    parts = build.assemble(cfg, build.NoEngine())
    client = parts.client
    client.prepare()
    sizes = build.partition_sizes(cfg, parts.data, parts.attack)
    for split, work in (("train", client.train), ("test", client.evaluate), ("triggered", client.evaluate)):
        requests = [ClientRequest(p, 1, "train", split, client.initial()) for p in range(cfg.clients)]
        claims = [update.num_examples for update in work(requests)]
        known = [sizes.of(split, partition) for partition in range(cfg.clients)]
        assert all(claim <= most for claim, most in zip(claims, known, strict=True))
        assert claims == known or split == "triggered"
    assert SIZES.of("train", 0) is None


VALID = {
    "probabilities": np.array([[1.0, 0, 0, 0, 0], [0.2 + 1e-5] * 5], np.float32),
    "expected_entropy": np.array([-1e-7, math.log(5) + 1e-6], np.float32),
    "labels": np.array([0, 4]),
    "domains": np.array([0, 2]),
}
"""Predictions at the limits, with rounding errors."""


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"labels": np.ones(1, np.int64)}, r"labels is int64 \(1,\), expected int64 \(2,\)"),
        ({"labels": np.array([0, 5])}, "labels goes from 0 to 5"),
        ({"labels": np.array([-1, 0])}, "labels goes from -1 to 0"),
        ({"labels": np.ones(2, np.float32)}, "labels is float32"),
        ({"labels": np.ones(2, np.int32)}, "labels is int32"),
        ({"domains": np.array([0, 999])}, "domains goes from 0 to 999"),
        ({"domains": np.array([-1, 0])}, "domains goes from -1 to 0"),
        ({"domains": None}, "it lacks domains"),
        ({"expected_entropy": None}, "it lacks expected_entropy"),
        ({"expected_entropy": np.array([0.5, -1e7])}, r"expected_entropy goes from -1e\+07"),
        ({"expected_entropy": np.array([1.6, 1.62])}, "expected_entropy goes from 1.6 to 1.62"),
        ({"probabilities": np.full((2, 5), -1.0)}, "probabilities goes from -1"),
        ({"probabilities": np.full((2, 5), 1.5)}, "probabilities goes from 1.5"),
        ({"probabilities": np.zeros((2, 0))}, r"probabilities is float64 \(2, 0\)"),
        ({"probabilities": np.full((2, 4), 0.25)}, r"probabilities is float64 \(2, 4\)"),
        ({"more": np.zeros(3)}, "more has shape"),
        ({}, "None"),
    ],
)
def test_predictions_that_cannot_be_are_a_problem(changes, reason):
    arrays = {name: array for name, array in {**VALID, **changes}.items() if array is not None}
    problem = evaluation_problem(ClientUpdate(0, arrays, 2, {}), PartitionSizes(classes=5, domains=3, images={}))
    assert re.match(reason, str(problem))

"""Answers that would cost a result are refused, named and counted, and only those."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from flwr.app import Array, Message, MessageType, MetricRecord
from scripted import Scripted, play

from fedbayes import build
from fedbayes.configuration import compose
from fedbayes.errors import ConfigError, RunError
from fedbayes.guard import Guard, Holdings, Refusal, form_of, misshapen, unreadable
from fedbayes.messages import ClientRequest, ClientUpdate, from_record, write_reply
from fedbayes.simulation.flower_private import claim_identity
from fedbayes.strategy_state import answer_like, impossible
from strategies.base import AbstractStrategy, miscounted


def reply(arrays, count=3, **metrics):
    claim_identity(1)
    content = write_reply(ClientUpdate(0, arrays, count, metrics))
    return Message(content, 7, MessageType.TRAIN)


def read(arrays, count=3, **metrics):
    return Guard(1e8).read(0, reply(arrays, count, **metrics))


GOOD = {"w": np.ones(4, np.float32), "n": np.array([3])}


def test_a_good_answer_is_read():
    update = read(GOOD, loss=1.5)
    assert update.num_examples == 3
    assert update.metrics == {"loss": 1.5}
    assert update.arrays["n"].dtype == np.int64


@pytest.mark.parametrize(
    ("arrays", "count", "metrics", "reason"),
    [
        ({"w": np.array([1, np.nan])}, 3, {}, "w is not finite"),
        ({"a": np.ones(2), "w": np.array([1, np.inf], np.float32)}, 3, {}, "w is not finite"),
        (GOOD, 3, {"loss": float("nan")}, "metric loss is nan"),
        (GOOD, 3, {"loss": float("inf")}, "metric loss is inf"),
        (GOOD, 0, {}, "num-examples is 0"),
        (GOOD, -2, {}, "num-examples is -2"),
        ({"w": np.full(4, 6e7, np.float32)}, 3, {}, "its norm is 1.2e+08, above simulation.max_norm=1e+08"),
        ({"w": np.full(4, 1e30, np.float32)}, 3, {}, "its norm is 2e+30"),
        ({"w": np.full(4, 1e200)}, 3, {}, "its norm is inf"),
    ],
)
def test_what_cannot_be_used_is_said(arrays, count, metrics, reason):
    refusal = read(arrays, count, **metrics)
    assert isinstance(refusal, Refusal)
    assert refusal.kind == "invalid"
    assert reason in refusal.reason


def test_the_norm_is_of_all_numbers_together_and_the_limit_is_allowed():
    arrays = {"a": np.full(1, 3.0), "b": np.full(1, 4.0, np.float32)}
    assert isinstance(Guard(5.0).read(0, reply(arrays)), ClientUpdate)
    assert isinstance(Guard(4.99).read(0, reply(arrays)), Refusal)
    with pytest.raises(ConfigError, match=r"simulation\.max_norm=0"):
        Guard(0)


def updates(*arrays):
    return [ClientUpdate(partition, one, 2, {}) for partition, one in enumerate(arrays)]


def test_arrays_that_are_not_what_they_are_said_to_be_are_refused():
    for change in ({"dtype": "foo"}, {"stype": "pickle"}, {"data": b""}, {"shape": (9,)}, {"dtype": "int64"}):
        message = reply(GOOD)
        array = message.content["arrays"]["w"]
        said = {"dtype": array.dtype, "shape": array.shape, "stype": array.stype, "data": array.data, **change}
        message.content["arrays"]["w"] = Array(said["dtype"], said["shape"], said["stype"], said["data"])
        refusal = Guard(1e8).read(0, message)
        assert isinstance(refusal, Refusal), change
        assert refusal.kind == "invalid"
    assert isinstance(read({"w": np.array([1 + 1j])}), Refusal)


@pytest.mark.parametrize("count", [0.5, 3.0, 2**31, 10**12, 1.7e308])
def test_a_count_that_is_no_whole_number_of_images_is_refused(count):
    message = reply(GOOD)
    message.content["metrics"] = MetricRecord({"num-examples": count})
    assert isinstance(Guard(1e8).read(0, message), Refusal)


def form(arrays):
    return json.loads(json.dumps(form_of(arrays)))


def test_arrays_of_another_form_than_most_are_refused():
    odd = [
        {"w": np.ones(3, np.float32), "n": np.array([3])},
        {"w": np.ones(4), "n": np.array([3])},
        {"v": np.ones(4, np.float32), "n": np.array([3])},
        {"w": np.ones(4, np.float32)},
        {},
        dict(reversed(GOOD.items())),
    ]
    for one in odd:
        refused, kept = misshapen(updates(GOOD, one, GOOD), (), lambda: GOOD)
        assert list(refused) == [1], one
        assert kept == form(GOOD)
        assert list(misshapen(updates(one), kept, dict)[0]) == [0]
    assert misshapen(updates(GOOD, GOOD), (), dict) == ({}, form(GOOD))
    assert misshapen(updates(GOOD), form(GOOD), dict) == ({}, form(GOOD))
    assert "it has w (3,) float32 where most clients have w (4,) float32" in str(
        misshapen(updates(GOOD, odd[0], GOOD), (), dict)[0][1]
    )


def test_what_the_server_has_must_be_there_and_fit_even_if_all_agree():
    for other in ({"w": np.ones(9, np.float32)}, {"evil": np.ones(3)}, {"w": GOOD["w"]}):
        refused, kept = misshapen(updates(other, other), (), lambda: GOOD)
        assert list(refused) == [0, 1]
        assert kept == [], "they do not lock out who comes later"
        assert list(misshapen(updates(other, other, GOOD), (), lambda: GOOD)[0]) == [0, 1]


def test_what_an_answer_has_beside_is_settled_by_most_of_several():
    more = {**GOOD, "more": np.ones(2)}
    refused, kept = misshapen(updates(more), (), lambda: GOOD)
    assert (list(refused), kept) == ([0], [])
    assert misshapen(updates(dict(reversed(GOOD.items()))), (), lambda: GOOD) == ({}, [])
    assert misshapen(updates(more, more, GOOD), (), lambda: GOOD)[1] == form(more)
    refused, kept = misshapen(updates(more, GOOD), (), lambda: GOOD)
    assert (list(refused), kept) == ([0], [])
    refused, kept = misshapen(updates(more, more, GOOD, GOOD), (), lambda: GOOD)
    assert (list(refused), kept) == ([0, 1], [])


class Hijacker(Scripted):
    """Whoever trains first answers with other names, or with one more."""

    def __init__(self, arrays):
        super().__init__()
        self.arrays = arrays

    def train(self, requests):
        answers = super().train(requests)
        if requests[0].server_round == 1:
            answers[0].arrays.update(self.arrays)
            if "w" not in self.arrays:
                answers[0].arrays.pop("w")
        return answers


@pytest.mark.parametrize("participation", [0.2, 0.4])
@pytest.mark.parametrize("arrays", [{"evil": np.ones(3)}, {"w": np.ones(1), "evil": np.ones(3)}])
def test_the_first_to_answer_does_not_lock_the_others_out(participation, arrays):
    client = Hijacker(arrays)
    if participation == 0.2:
        with pytest.raises(RunError, match="round 1 is void"):
            play(client, clients=5, participation=participation, rounds=4)
        return
    progress, journal, _ = play(client, clients=5, participation=participation, rounds=4)
    assert [row["dropped"] for row in journal.rows if row["phase"] == "train"] == [1, 0, 0, 0]
    assert progress.form == form({"w": np.ones(1)})


@pytest.mark.parametrize("method", ["fedcof", "fedncm", "pep_fedpt", "pfedpg", "pfpt", "sgpt", "fedvpt"])
def test_what_a_strategy_expects_is_what_honest_clients_answer(method):
    cfg = compose(["experiment=smoke", f"method={method}", "server.name=none"])
    data = build.data(cfg)
    client = build.client(cfg, data, build.model(cfg, data, "cpu"))
    client.prepare()
    strategy = build.strategy(cfg, build.loop(cfg))
    (answer,) = client.train([ClientRequest(0, 1, "train", "train", client.initial())])
    expected = answer_like(strategy, client.initial())
    assert misshapen([answer], (), lambda: expected) == ({}, [])
    assert sorted(answer.arrays) == sorted(expected)
    assert impossible(strategy, answer) is None


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
    assert from_record(progress.arrays)["w"].tolist() == [1.0], "two steps, each of length 1/2"
    assert journal.notes == ["round 1: reply of client 1 not used: w are no numbers of images"]


def evaluation(images=2, **changes):
    good = {
        "probabilities": np.full((images, 5), 0.2, np.float32),
        "expected_entropy": np.full(images, 1.5, np.float32),
        "labels": np.ones(images, np.int64),
        "domains": np.zeros(images, np.int64),
    }
    return {name: array for name, array in {**good, **changes}.items() if array is not None}


def test_evaluations_need_a_row_for_each_image():
    good = evaluation()
    assert unreadable(updates(good, good)) == {}
    short = evaluation(labels=np.ones(1, np.int64))
    assert "labels has shape (1,) for 2 images" in unreadable(updates(good, short))[1].reason
    assert list(unreadable(updates(good, evaluation(probabilities=np.full((2, 4), 0.25)), good))) == [1]
    lacking = [replace(one, metrics={"x": 1.0} if one.partition else {}) for one in updates(good, good, good)]
    assert "its metrics differ from most clients' in x" in unreadable(lacking)[0].reason


BOUND = math.log(5)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"labels": np.array([0, 5])}, "its labels go from 0 to 5 for 5 classes"),
        ({"labels": np.array([-1, 0])}, "its labels go from -1 to 0"),
        ({"labels": np.ones(2, np.float32)}, "labels is float32"),
        ({"labels": np.ones(2, np.int32)}, "labels is int32"),
        ({"domains": np.array([0, 999])}, "its domains go from 0 to 999 for 3 domains"),
        ({"domains": np.array([-1, 0])}, "its domains go from -1 to 0"),
        ({"domains": None}, "it has no domains"),
        ({"expected_entropy": None}, "it has no expected_entropy"),
        ({"expected_entropy": np.array([0.5, -1e7])}, "its expected entropies go from -1e+07 to 0.5 nats"),
        ({"expected_entropy": np.array([BOUND, BOUND + 0.01])}, "to 1.61944 nats for 5 classes"),
        ({"probabilities": np.full((2, 5), -1.0)}, "its probabilities go from -1.0"),
        ({"probabilities": np.full((2, 5), 0.5)}, "its probabilities of an image sum to 2.5"),
        ({"probabilities": np.zeros((2, 5))}, "its probabilities of an image sum to 0"),
        ({"probabilities": np.zeros((2, 0))}, "probabilities is float64 (2, 0)"),
        ({"probabilities": np.full((2, 4), 0.25)}, "it has probabilities of 4 classes, and there are 5"),
    ],
)
def test_predictions_that_cannot_be_are_refused_even_alone(changes, reason):
    refused = unreadable(updates(evaluation(**changes)), Holdings(classes=5, domains=3, images={}))
    assert reason in refused[0].reason


def test_predictions_at_the_limits_are_used():
    rounded = np.array([[1.0, 0, 0, 0, 0], [0.2 + 1e-5] * 5], np.float32)
    entropies = np.array([-1e-7, BOUND + 1e-6], np.float32)
    good = evaluation(probabilities=rounded, expected_entropy=entropies, domains=np.array([0, 2]))
    assert unreadable(updates(good), Holdings(classes=5, domains=3, images={})) == {}


class Elsewhere(Scripted):
    """One client's images are of a domain that nobody knows."""

    def evaluate(self, requests):
        return [
            replace(one, arrays={**one.arrays, "domains": np.full(4, 999)}) if one.partition == 1 else one
            for one in super().evaluate(requests)
        ]


def test_a_domain_that_there_is_not_costs_its_client_alone():
    holdings = Holdings(classes=2, domains=1, images={})
    progress, journal, _ = play(Elsewhere(), clients=3, rounds=1, holdings=holdings)
    assert progress.final.partitions.unique().tolist() == [0, 2]
    assert any("test of client 1 not used: its domains go from 999 to 999 for 1 domains" in n for n in journal.notes)


class Odd(Scripted):
    """Clients of which one answers in another shape, and one absurdly."""

    def train(self, requests):
        answers = super().train(requests)
        for answer in answers:
            if answer.partition == 1:
                answer.arrays["w"] = np.ones((2, 2))
            if answer.partition == 2:
                answer.arrays["w"] = np.full(1, 1e12)
        return answers


def test_the_round_goes_on_with_the_rest():
    progress, journal, _ = play(Odd(), clients=4, rounds=1)
    # (10 * 1 + 40 * 4) / 50
    assert from_record(progress.arrays)["w"].tolist() == pytest.approx([170 / 50])
    assert [note.partition(" of client ")[2] for note in journal.notes] == [
        "1 not used: it has w (2, 2) float64 where most clients have w (1,) float64",
        "2 not used: its norm is 1e+12, above simulation.max_norm=1e+08",
    ]
    row = journal.rows[0]
    assert (row["replies"], row["dropped"]) == (2, 2)
    assert (row["dropped_late"], row["dropped_failed"], row["dropped_invalid"]) == (0, 0, 2)


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
    assert from_record(progress.arrays)["w"].tolist() == pytest.approx([(10 * 1 + 30 * 3) / 40])
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
    assert from_record(progress.arrays)["w"].tolist() == pytest.approx([(10 * 1 + 30 * 3) / 40])
    assert progress.final.partitions.tolist() == [0] * 4 + [1] * 4
    said = "it rests on {} images, says the client, which has {}"
    assert journal.notes == [
        f"round 1: reply of client 1 not used: {said.format(2**31 - 1, 20)}",
        f"round 1: validation of client 2 not used: {said.format(8, 4)}",
        f"round 1: test of client 2 not used: {said.format(8, 7)}",
    ]


@pytest.mark.parametrize("method", ["fedvpt", "centralised", "fedncm"])
def test_honest_clients_claim_what_the_server_reckons_with(method):
    cfg = compose(["experiment=smoke", f"method={method}", "attack=backdoor", "attack.share=0.3"])
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
    assert from_record(progress.arrays)["w"].tolist() == pytest.approx([(1 + 1.5 + 1.5) / 3])

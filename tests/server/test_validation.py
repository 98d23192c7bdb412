"""Answers that would cost a result are refused, named and counted, and only those."""

import json

import numpy as np
import pytest
from flwr.app import Array, Message, MessageType, MetricRecord
from scripted import Scripted, play
from smoke import smoke

from fedbayes import build
from fedbayes.comm.messages import ClientRequest, ClientUpdate, write_reply
from fedbayes.errors import ConfigError, RunError
from fedbayes.server.strategy_state import answer_like, impossible
from fedbayes.server.validation import Guard, Refusal, form_of, misshapen
from fedbayes.simulation.flower_private import claim_identity


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
        (GOOD, 3, {"loss": 1e300}, "metric loss is 1e+300"),
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
    cfg, client = smoke(f"method={method}", "server.name=none")
    client.prepare()
    strategy = build.strategy(cfg, build.loop(cfg, build.sampling(cfg)))
    (answer,) = client.train([ClientRequest(0, 1, "train", "train", client.initial())])
    expected = answer_like(strategy, client.initial())
    assert misshapen([answer], (), lambda: expected) == ({}, [])
    assert sorted(answer.arrays) == sorted(expected)
    assert impossible(strategy, answer) is None


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
    assert progress.arrays["w"].tolist() == pytest.approx([170 / 50])
    assert [note.partition(" of client ")[2] for note in journal.notes] == [
        "1 not used: it has w (2, 2) float64 where most clients have w (1,) float64",
        "2 not used: its norm is 1e+12, above simulation.max_norm=1e+08",
    ]
    row = journal.rows[0]
    assert (row["replies"], row["dropped"]) == (2, 2)
    assert (row["dropped_late"], row["dropped_failed"], row["dropped_invalid"]) == (0, 0, 2)

"""Clients' predictions that cannot be are refused, named and counted, and only those."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scripted import Scripted, play

from fedbayes.comm.messages import ClientUpdate
from fedbayes.server.validation import Holdings, unreadable


def updates(*arrays):
    return [ClientUpdate(partition, one, 2, {}) for partition, one in enumerate(arrays)]


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

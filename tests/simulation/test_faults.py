"""Simulated faults have the stated fractions, are equal in every process, and cost nothing but the faulty answers."""

import numpy as np
import pytest
from scripted import Scripted, play
from smoke import smoke

from fedbayes.errors import ConfigError
from fedbayes.server.validation import PartitionSizes
from fedbayes.simulation.faults import Fault, Faults
from fedbayes.simulation.in_process import InProcessGrid


def train_rows(journal):
    return [row for row in journal.rows if row["phase"] == "train"]


def test_fractions_are_as_stated():
    faults = Faults(seed=0, drop=0.3, error=0.05, nan=0.02, straggle=0.2, delay=60, deadline=30)
    sampled = [faults.of(server_round, 0, partition) for server_round in range(50) for partition in range(400)]
    for kind, p in (("drop", 0.3), ("error", 0.05), ("nan", 0.02), ("", 0.63)):
        frequency = np.mean([fault.kind == kind for fault in sampled])
        assert abs(frequency - p) < 4 * np.sqrt(p * (1 - p) / len(sampled)), kind
    slow = np.array([fault.delay for fault in sampled if fault.delay])
    assert abs(len(slow) / len(sampled) - 0.2) < 0.012
    assert abs(slow.mean() - 60) < 4 * 60 / np.sqrt(len(slow))
    # exponential: exp(-30 / 60) of them are later than half a minute
    assert abs((slow > 30).mean() - np.exp(-0.5)) < 0.04


def test_faults_are_keyed_by_seed_round_attempt_and_partition():
    def kinds(server_round=3, attempt=0, seed=0):
        return [Faults(seed=seed, drop=0.5).of(server_round, attempt, partition).kind for partition in range(100)]

    assert kinds() == kinds()
    for other in (kinds(server_round=4), kinds(attempt=1), kinds(seed=1)):
        assert other != kinds()
    assert Faults(seed=0).of(1, 0, 0) == Fault()


@pytest.mark.parametrize(
    "wrong",
    [{"drop": -0.1}, {"nan": 1.5}, {"drop": 0.6, "error": 0.5}, {"straggle": 2}, {"delay": 0}, {"deadline": -1}],
)
def test_fractions_and_times_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match=r"faults\."):
        Faults(seed=0, **wrong)


def test_faulty_answers_are_as_if_they_were_absent_to_the_last_bit():
    _, client = smoke("clients=8")
    sizes = PartitionSizes(client.data.num_classes, len(client.data.images.domain_names), {})

    def real(faults):
        """Cohorts of one: the bits of a client depend on how many train beside it."""
        grid = InProcessGrid(client, 8, 1)
        return play(client, grid=grid, clients=8, rounds=3, sizes=sizes, faults=faults, seed=3)

    mixed, journal, _ = real({"drop": 0.2, "error": 0.15, "nan": 0.15})
    absent, absent_journal, _ = real({"drop": 0.5})
    assert mixed.accepted == absent.accepted
    for name, array in absent.arrays.items():
        assert mixed.arrays[name].tobytes() == array.tobytes(), name
    rows, absent_rows = train_rows(journal), train_rows(absent_journal)
    assert [row["loss"] for row in rows] == [row["loss"] for row in absent_rows]
    kinds = np.array([[row[f"dropped_{kind}"] for kind in ("late", "failed", "invalid")] for row in rows])
    assert (kinds.sum(0) > 0).all()
    assert kinds.sum(1).tolist() == [row["dropped"] for row in absent_rows]
    assert kinds.sum(1).tolist() == [row["dropped_late"] for row in absent_rows]
    notes = " ".join(journal.notes)
    assert all(reason in notes for reason in ("(simulated)", "RuntimeError: simulated fault", "is not finite"))


def test_late_clients_have_trained_but_go_on_from_what_was_accepted():
    client = Scripted(keeps=True)
    faults = {"straggle": 0.5, "delay": 100, "deadline": 30}
    progress, journal, _ = play(client, clients=6, rounds=4, personal=True, faults=faults)
    assert len(client.trained) == 24, "slow clients train all the same"
    late = [row["dropped_late"] for row in train_rows(journal)]
    assert sum(late) > 0
    for partition, accepted in progress.accepted.items():
        assert progress.personal[partition]["head"][0] == accepted + 10.0 * partition
    waits = [row["virtual_seconds"] for row in train_rows(journal)]
    assert all(wait == 30 if count else wait < 30 for wait, count in zip(waits, late, strict=True))


def test_without_a_deadline_the_server_waits_for_everybody():
    _, journal, _ = play(Scripted(), clients=6, rounds=2, faults={"straggle": 0.9, "delay": 100, "deadline": None})
    assert [row["dropped"] for row in train_rows(journal)] == [0, 0]
    assert max(row["virtual_seconds"] for row in train_rows(journal)) > 100

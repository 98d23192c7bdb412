"""Simulated faults have the stated shares, are the same in every process, and cost nothing but the faulty answers."""

import numpy as np
import pytest
from scripted import Scripted, play
from smoke import smoke

from fedbayes.errors import ConfigError
from fedbayes.server.validation import PartitionSizes
from fedbayes.simulation.faults import Fault, Faults
from fedbayes.simulation.in_process import InProcessGrid


def test_shares_are_as_stated():
    faults = Faults(seed=0, drop=0.3, error=0.05, nan=0.02, straggle=0.2, delay=60, deadline=30)
    drawn = [faults.of(server_round, 0, partition) for server_round in range(50) for partition in range(400)]
    for kind, share in (("drop", 0.3), ("error", 0.05), ("nan", 0.02), ("", 0.63)):
        found = np.mean([fault.kind == kind for fault in drawn])
        assert abs(found - share) < 4 * np.sqrt(share * (1 - share) / len(drawn)), kind
    slow = np.array([fault.delay for fault in drawn if fault.delay])
    assert abs(len(slow) / len(drawn) - 0.2) < 0.012
    assert abs(slow.mean() - 60) < 4 * 60 / np.sqrt(len(slow))
    # exponential: exp(-30 / 60) of them are later than half a minute
    assert abs((slow > 30).mean() - np.exp(-0.5)) < 0.04


def test_faults_are_keyed_by_seed_round_attempt_and_partition():
    faults = Faults(seed=0, drop=0.5)
    once = [faults.of(3, 0, partition).kind for partition in range(100)]
    assert once == [Faults(seed=0, drop=0.5).of(3, 0, partition).kind for partition in range(100)]
    for other in (
        [faults.of(4, 0, partition).kind for partition in range(100)],
        [faults.of(3, 1, partition).kind for partition in range(100)],
        [Faults(seed=1, drop=0.5).of(3, 0, partition).kind for partition in range(100)],
    ):
        assert other != once
    assert Faults(seed=0).of(1, 0, 0) == Fault()


@pytest.mark.parametrize(
    "wrong",
    [{"drop": -0.1}, {"nan": 1.5}, {"drop": 0.6, "error": 0.5}, {"straggle": 2}, {"delay": 0}, {"deadline": -1}],
)
def test_shares_and_times_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match=r"faults\."):
        Faults(seed=0, **wrong)


def real(**settings):
    """The real client of the smoke configuration under the loop."""
    _, client = smoke("clients=8")
    # Cohorts of one: the bits of a client depend on how many train beside it.
    sizes = PartitionSizes(client.data.num_classes, len(client.data.images.domain_names), {})
    return play(client, grid=InProcessGrid(client, 8, 1), clients=8, rounds=3, sizes=sizes, **settings)


def test_faulty_answers_are_as_if_they_were_absent_to_the_last_bit():
    mixed, journal, _ = real(faults={"drop": 0.2, "error": 0.15, "nan": 0.15}, seed=3)
    absent, other, _ = real(faults={"drop": 0.5}, seed=3)
    assert mixed.accepted == absent.accepted
    for name, array in absent.arrays.items():
        assert mixed.arrays[name].tobytes() == array.tobytes(), name
    trains, others = ([row for row in one.rows if row["phase"] == "train"] for one in (journal, other))
    assert [row["loss"] for row in trains] == [row["loss"] for row in others]
    kinds = np.array([[row[f"dropped_{kind}"] for kind in ("late", "failed", "invalid")] for row in trains])
    assert (kinds.sum(0) > 0).all()
    assert kinds.sum(1).tolist() == [row["dropped"] for row in others] == [row["dropped_late"] for row in others]
    said = " ".join(journal.notes)
    assert "(simulated)" in said
    assert "RuntimeError: simulated fault" in said
    assert "is not finite" in said


def test_late_clients_have_trained_but_go_on_from_what_was_accepted():
    client = Scripted(keeps=True)
    faults = {"straggle": 0.5, "delay": 100, "deadline": 30}
    progress, journal, _ = play(client, clients=6, rounds=4, personal=True, faults=faults)
    assert len(client.trained) == 24, "slow clients train all the same"
    late = [row["dropped_late"] for row in journal.rows if row["phase"] == "train"]
    assert sum(late) > 0
    for partition, accepted in progress.accepted.items():
        assert progress.personal[partition]["head"][0] == accepted + 10.0 * partition
    waits = [row["virtual_seconds"] for row in journal.rows if row["phase"] == "train"]
    assert all(wait == 30 if count else wait < 30 for wait, count in zip(waits, late, strict=True))


def test_without_a_deadline_the_server_waits_for_everybody():
    _, journal, _ = play(Scripted(), clients=6, rounds=2, faults={"straggle": 0.9, "delay": 100, "deadline": None})
    trains = [row for row in journal.rows if row["phase"] == "train"]
    assert [row["dropped"] for row in trains] == [0, 0]
    assert max(row["virtual_seconds"] for row in trains) > 100

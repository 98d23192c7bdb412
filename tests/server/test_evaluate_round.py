"""When which images are looked at, by whom, and what is fitted on them."""

import numpy as np
import pytest
from scripted import Scripted, play, round_loop

from fedbayes.errors import RunError
from fedbayes.server.validation import PartitionSizes


@pytest.mark.parametrize("best_by", ["accuracy", "nll"])
def test_test_images_are_predicted_at_the_end_with_the_last_and_the_best_parameters(best_by):
    skill = {(1, "validation"): 2, (2, "validation"): 3, (3, "validation"): 1, (4, "validation"): 1}
    client = Scripted(skill={**skill, (2, "test"): 1, (4, "test"): 4})
    progress, _, _ = play(client, rounds=4, best_by=best_by)
    assert [(r, split) for r, split in client.evaluated if split == "test"] == [(4, "test"), (2, "test")]
    assert (progress.best.server_round, progress.final.server_round) == (2, 4)
    assert (progress.best.accuracy["mean"], progress.final.accuracy["mean"]) == (0.25, 1.0)


def test_the_best_rounds_test_images_are_predicted_with_that_rounds_parameters():
    class Learning(Scripted):
        def train(self, requests):
            replies = super().train(requests)
            for reply in replies:
                reply.arrays["w"] = np.full(1, float(requests[0].server_round))
            return replies

        def evaluate(self, requests):
            tested.update({r.server_round: float(r.arrays["w"][0]) for r in requests if r.split == "test"})
            return super().evaluate(requests)

    tested = {}
    play(Learning(skill={(2, "validation"): 3}), rounds=4)
    assert tested == {2: 2.0, 4: 4.0}


def test_clients_with_personal_parameters_predict_test_images_in_each_better_round():
    client = Scripted(skill={(1, "validation"): 2, (2, "validation"): 3, (3, "validation"): 1}, keeps=True)
    progress, _, _ = play(client, rounds=3)
    assert [(r, split) for r, split in client.evaluated if split == "test"] == [(1, "test"), (2, "test"), (3, "test")]
    assert progress.best.server_round == 2


def test_held_out_images_are_looked_at_with_the_test_images_and_compared_with_them():
    client = Scripted(skill={(1, "test"): 3, (1, "held_out"): 1})
    progress, journal, _ = play(client, rounds=1, held_out=True)
    assert [split for _, split in client.evaluated] == ["validation", "test", "held_out"]
    ood = progress.final.summary()["ood"]
    assert (ood["images"], ood["accuracy"]) == (20, 0.25)
    assert progress.best.summary()["ood"] == ood
    # Equal predictions everywhere tell nothing, and that is not the same as telling badly.
    assert set(ood["auroc"].values()) == set(ood["fpr95"].values()) == {None}
    row = journal.rows[-1]
    assert (row["phase"], row["accuracy"], row["ood_auroc_entropy"]) == ("held_out", 0.25, None)
    assert not any(name.startswith("ood") for name in journal.rows[-2])


def test_doubt_about_held_out_images_is_a_sign_that_they_are_that():
    class Doubtful(Scripted):
        def evaluate(self, requests):
            answers = super().evaluate(requests)
            if requests[0].split == "held_out":
                for answer in answers:
                    answer.arrays["probabilities"][:] = [0.6, 0.4]
            return answers

    progress, _, _ = play(Doubtful(), rounds=1, held_out=True)
    auroc = progress.final.summary()["ood"]["auroc"]
    assert auroc["entropy"] == auroc["confidence"] == 1.0


def test_the_temperature_is_fitted_on_validation_and_not_on_test():
    client = Scripted(skill={(1, "validation"): 3, (1, "test"): 1})
    progress, journal, _ = play(client, rounds=1, temperature=True)
    # Confidence 0.8, right on 3 of 4 validation images: T = log 4 / log 3, and then confidence 0.75 on test.
    assert progress.final.temperature == pytest.approx(np.log(4) / np.log(3), rel=1e-6)
    row = journal.rows[-1]
    assert row["nll_temperature"] == pytest.approx(-(np.log(0.75) + 3 * np.log(0.25)) / 4, rel=1e-6)
    assert row["ece_temperature"] == pytest.approx(0.5, rel=1e-6)
    assert "temperature" not in journal.rows[-2]
    off, plain, _ = play(client, rounds=1)
    assert "temperature" not in plain.rows[-1]
    assert off.final.summary()["temperature"] is None
    assert off.final.summary()["nll"] == progress.final.summary()["nll"]


def test_evaluation_happens_every_so_many_rounds_and_at_the_end():
    client = Scripted()
    play(client, rounds=5, evaluate_every=2)
    assert [r for r, split in client.evaluated if split == "validation"] == [2, 4, 5]


def test_clients_whose_predictions_are_not_finite_are_named_and_left_out():
    images = {"validation": [4] * 3, "test": [4] * 3}
    progress, journal, _ = play(Scripted(silent={1}), clients=3, rounds=1, sizes=PartitionSizes(2, 1, images))
    assert set(progress.final.partitions.tolist()) == {0, 2}
    summary = progress.final.summary()
    assert (summary["clients"], summary["clients_expected"]) == (2, 3)
    assert (summary["images"], summary["images_expected"]) == (8, 12)
    assert "round 1: test rests on 2 of 3 clients, 8 of 12 images" in journal.notes
    assert any("test reply of client 1 rejected: probabilities" in note for note in journal.notes)


def test_a_run_that_nobody_can_be_evaluated_in_stops():
    with pytest.raises(RunError, match="validation in round 1"):
        play(Scripted(silent={0, 1, 2}), clients=3, rounds=1)


def test_a_fraction_of_the_clients_is_evaluated_always_the_same():
    class Spy(Scripted):
        def evaluate(self, requests):
            evaluated.append([request.partition for request in requests])
            return super().evaluate(requests)

    evaluated = []
    progress, _, _ = play(Spy(), clients=10, rounds=3, evaluate_fraction=0.3)
    assert len(evaluated) >= 4
    assert all(partitions == evaluated[0] for partitions in evaluated)
    assert len(evaluated[0]) == 3
    assert progress.final.partitions.unique().tolist() == evaluated[0]
    play(Spy(), clients=10, seed=5, rounds=1, evaluate_fraction=0.3)
    assert evaluated[-1] != evaluated[0], "which ones depends on the seed"
    assert len(round_loop(evaluate_fraction=0.01).sampling.evaluated) == 1

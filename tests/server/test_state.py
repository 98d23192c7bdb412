"""What a checkpoint keeps of a run's progress, and what a finished run's diagnostics say against it."""

import json
from dataclasses import replace

import numpy as np
import torch

from fedbayes.comm.messages import ClientUpdate
from fedbayes.metrics.evaluation import Evaluation, detection
from fedbayes.metrics.predictive import Predictive
from fedbayes.server.state import Progress, Snapshot
from fedbayes.storage.checkpoint import newest, save


def finished(ratio, saturation):
    zero = torch.zeros(1, dtype=torch.long)
    predictive = Predictive(torch.full((1, 2), 0.5), torch.zeros(1))
    final = Evaluation(1, "test", predictive, zero, zero, zero, {} if ratio is None else {"mixing_ratio": ratio})
    train = {} if saturation is None else {"bound_saturation": saturation}
    return Progress({}, final=final, train=train).warnings()


def test_a_collapsed_mixing_and_a_bound_limited_by_k_are_reported_with_a_remedy():
    assert finished(0.3, 0.5) == finished(None, None) == []
    (collapsed,) = finished(0.03, 0.5)
    assert "mixing ratio 0.030, below 0.05" in collapsed
    assert "generator.init_scale" in collapsed
    (limited,) = finished(0.3, 0.92)
    assert "saturation 0.92, above 0.8" in limited
    assert "inference.reverse=gaussian" in limited


def evaluation(seed, split="test", **more):
    rng = torch.Generator().manual_seed(seed)
    probabilities = torch.rand(6, 3, generator=rng).softmax(1)
    predictive = Predictive(probabilities, torch.rand(6, generator=rng))
    labels = torch.randint(3, (6,), generator=rng)
    return Evaluation(
        seed, split, predictive, labels, labels % 2, torch.tensor([0, 0, 0, 4, 4, 4]), {"x": 1 / 3}, **more
    )


def test_progress_comes_back_from_a_checkpoint_with_the_same_summary(tmp_path):
    test, far = evaluation(1, temperature=1.3), evaluation(2, "held_out")
    far = replace(far, detection=detection(test.pooled, far.pooled))
    shared = {"w": np.arange(3.0)}
    progress = Progress(
        shared,
        server_round=7,
        accepted={0: 7, 4: 3},
        best=replace(test, outside=far),
        best_validation=0.1 + 0.2,
        final=evaluation(3),
        new_clients={0: evaluation(4), 5: evaluation(5)},
        best_train={"loss": 0.1},
        train={"loss": float("nan")},
        bytes_up=3,
        images=9,
        personal={4: {"head": np.ones(2)}},
        best_snapshot=Snapshot(6, {0: shared, 1: {"w": np.ones(3)}, 4: shared}, {"loss": 0.2}, 1.5),
    )
    save(tmp_path, progress.checkpoint({}))
    stored = newest(tmp_path).checkpoint
    assert stored.history["complete"] is True
    back = Progress.restored(stored)
    for name in ("server_round", "accepted", "best_validation", "best_train", "bytes_up", "images", "uncollected"):
        assert getattr(back, name) == getattr(progress, name), name
    assert np.isnan(back.train["loss"])
    snapshot = back.best_snapshot
    assert (snapshot.server_round, snapshot.train, snapshot.temperature) == (6, {"loss": 0.2}, 1.5)
    assert {partition: arrays["w"].tolist() for partition, arrays in snapshot.requests.items()} == {
        0: [0.0, 1.0, 2.0],
        1: [1.0, 1.0, 1.0],
        4: [0.0, 1.0, 2.0],
    }
    assert snapshot.requests[0] is snapshot.requests[4], "its bytes are encoded once"
    assert list(back.new_clients) == [0, 5]
    pairs = [(progress.best, back.best), (progress.final, back.final), (progress.new_clients[5], back.new_clients[5])]
    for before, after in pairs:
        assert json.dumps(after.summary()) == json.dumps(before.summary())
        assert after.row() == before.row()
    assert back.before > 0


def test_personal_parameters_that_are_not_collected_make_a_checkpoint_incomplete():
    progress = Progress({}, personal={0: {"head": np.ones(1)}, 1: {"head": np.ones(1)}})
    progress.accept(ClientUpdate(0, {}, 1, {}), 2)
    assert progress.checkpoint({}).history["complete"] is True
    assert list(progress.personal) == [1], "the accepted version of client 0 has none"
    progress.accept(ClientUpdate(1, {}, 1, {}, has_personal=True), 2)
    assert progress.checkpoint({}).history["complete"] is False

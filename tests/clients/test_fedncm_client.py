"""FedNCM end to end on real images: it is the nearest class mean of the pooled features."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestCentroid

from fedbayes import build
from fedbayes.configuration import compose
from fedbayes.messages import ClientRequest, from_record
from fedbayes.simulation.in_process import InProcessGrid


class Silent:
    def log(self, row): ...
    def log_clients(self, rows): ...
    def note(self, text):
        raise AssertionError(text)


@pytest.fixture(scope="module")
def parts():
    cfg = compose(["experiment=smoke", "method=fedncm", "clients=4", "partition.max_train=20"])
    data = build.data(cfg)
    return cfg, data, build.client(cfg, data, build.model(cfg, data, "cpu"))


def pooled(data, client, split):
    batch = data.whole(range(len(data)), split)
    inputs = client.inputs.plain(batch)
    return inputs.z[inputs.mask].double().numpy(), batch.labels[batch.mask].numpy()


def play(parts, *overrides):
    cfg, _, client = parts
    cfg = compose(["experiment=smoke", "method=fedncm", "clients=4", "partition.max_train=20", *overrides])
    loop = build.loop(cfg)
    return loop.run(InProcessGrid(client, 4), build.strategy(cfg, loop), client.initial(), Silent())


def test_predictions_are_those_of_scikit_learns_nearest_centroid(parts):
    _, data, client = parts
    progress = play(parts, "rounds=1")
    reference = NearestCentroid().fit(*pooled(data, client, "train"))
    features, labels = pooled(data, client, "test")
    np.testing.assert_allclose(from_record(progress.arrays)["means"], reference.centroids_, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(progress.final.pooled.predicted.numpy(), reference.predict(features))
    np.testing.assert_array_equal(progress.final.labels.numpy(), labels)
    assert progress.final.accuracy["weighted"] > 0.2  # ten classes


def test_with_partial_participation_everybody_counts_once(parts):
    whole = play(parts, "rounds=1")
    bit_by_bit = play(parts, "rounds=12", "participation=0.5")
    assert set(bit_by_bit.accepted) == {0, 1, 2, 3}, "twelve rounds of two reach all four clients with this seed"
    for name, array in from_record(whole.arrays).items():
        assert from_record(bit_by_bit.arrays)[name].tobytes() == array.tobytes(), name


def test_probabilities_are_those_of_gaussians_with_a_common_variance(parts):
    _, data, client = parts
    progress = play(parts, "rounds=1")
    shared = from_record(progress.arrays)
    said = client.evaluate([ClientRequest(2, 1, "evaluate", "test", shared)])[0].arrays["probabilities"]
    z = client.inputs.plain(data.whole([2], "test")).z[0].double().numpy()
    distance = np.square(z[:, None] - shared["means"]).sum(-1)
    weight = np.exp(-(distance - distance.min(1, keepdims=True)) / (2 * shared["variance"]))
    np.testing.assert_allclose(said, weight / weight.sum(1, keepdims=True), rtol=1e-6, atol=1e-12)


def test_a_class_nobody_has_shown_is_never_predicted_and_before_the_first_round_all_are_alike(parts):
    _, _, client = parts
    initial = client.initial()
    said = client.evaluate([ClientRequest(0, 1, "evaluate", "test", initial)])[0].arrays["probabilities"]
    np.testing.assert_allclose(said, 0.1)
    counts = np.ones(10)
    counts[3] = 0
    some = {**initial, "means": np.zeros_like(initial["means"]), "counts": counts}
    said = client.evaluate([ClientRequest(0, 1, "evaluate", "test", some)])[0].arrays["probabilities"]
    np.testing.assert_allclose(said[:, 3], 0.0)
    np.testing.assert_allclose(said.sum(1), 1.0)


def test_nothing_of_a_single_image_leaves_the_client(parts):
    _, data, client = parts
    (update,) = client.train([ClientRequest(1, 1, "train", "", client.initial())])
    classes, width = data.num_classes, client.model.backbone.dim
    shapes = {name: array.shape for name, array in update.arrays.items()}
    assert shapes == {"sums": (classes, width), "counts": (classes,), "squares": (1,)}
    assert update.arrays["counts"].sum() == update.num_examples == len(data.indices(1, "train"))
    assert torch.isfinite(torch.from_numpy(update.arrays["sums"])).all()

"""FedNCM and FedCOF end to end on real images: what clients send, and that predictions are those of pooled features."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestCentroid
from smoke import play_rounds

from fedbayes import build
from fedbayes.comm.messages import ClientRequest
from fedbayes.config.compose import compose
from fedbayes.errors import ConfigError

SMALL = ["experiment=smoke", "clients=4", "partition.max_train=20"]


class Silent:
    def log(self, row): ...
    def log_clients(self, rows): ...
    def note(self, text):
        raise AssertionError(text)


def make(method, *overrides):
    cfg = compose([*SMALL, f"method={method}", *overrides])
    data = build.data(cfg)
    return data, build.client(cfg, data, build.model(cfg, data, "cpu"))


@pytest.fixture(scope="module")
def ncm():
    return make("fedncm")


@pytest.fixture(scope="module")
def cof():
    return make("fedcof")


def pooled(data, client, split):
    batch = data.batch(range(len(data)), split)
    inputs = client.inputs.plain(batch)
    return inputs.z[inputs.mask].double().numpy(), batch.labels[batch.mask].numpy()


def play(client, method, *overrides):
    cfg = compose([*SMALL, f"method={method}", *overrides])
    return play_rounds(cfg, client, Silent())


def test_fedncm_predicts_as_scikit_learns_nearest_centroid(ncm):
    data, client = ncm
    progress = play(client, "fedncm", "rounds=1")
    reference = NearestCentroid().fit(*pooled(data, client, "train"))
    features, labels = pooled(data, client, "test")
    np.testing.assert_array_equal(progress.final.pooled.predicted.numpy(), reference.predict(features))
    np.testing.assert_array_equal(progress.final.labels.numpy(), labels)
    assert progress.final.accuracy["weighted"] > 0.2  # ten classes


def test_fedncms_probabilities_are_those_of_gaussians_with_a_common_variance(ncm):
    data, client = ncm
    shared = play(client, "fedncm", "rounds=1", "method.strategy.temperature=1").arrays
    features, labels = pooled(data, client, "train")
    means = NearestCentroid().fit(features, labels).centroids_
    variance = np.square(features - means[labels]).mean()
    probabilities = client.evaluate([ClientRequest(2, 1, "evaluate", "test", shared)])[0].arrays["probabilities"]
    z = client.inputs.plain(data.batch([2], "test")).z[0].double().numpy()
    distance = np.square(z[:, None] - means).sum(-1)
    weight = np.exp(-(distance - distance.min(1, keepdims=True)) / (2 * variance))
    np.testing.assert_allclose(probabilities, weight / weight.sum(1, keepdims=True), rtol=1e-5, atol=1e-10)


@pytest.mark.parametrize("method", ["fedncm", "fedcof"])
def test_with_partial_participation_everybody_counts_once(ncm, cof, method):
    _, client = {"fedncm": ncm, "fedcof": cof}[method]
    whole = play(client, method, "rounds=1")
    bit_by_bit = play(client, method, "rounds=12", "participation=0.5")
    assert set(bit_by_bit.accepted) == {0, 1, 2, 3}, "twelve rounds of two reach all four clients with this seed"
    for name, array in whole.arrays.items():
        assert bit_by_bit.arrays[name].tobytes() == array.tobytes(), name


def test_fedcof_predicts_the_largest_score_and_its_softmax(cof):
    data, client = cof
    progress = play(client, "fedcof", "rounds=1", "method.strategy.temperature=2.0")
    shared = progress.arrays
    np.testing.assert_allclose(np.linalg.norm(shared["weights"], axis=1), 1 / 2.0)
    scores = pooled(data, client, "test")[0] @ shared["weights"].T
    expected = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    np.testing.assert_allclose(progress.final.pooled.probabilities.numpy(), expected, rtol=1e-5)
    assert progress.final.accuracy["weighted"] > 0.2  # ten classes


def test_a_class_nobody_has_shown_is_never_predicted_and_before_the_first_round_all_are_alike(cof):
    _, client = cof
    initial = client.initial()
    reply = client.evaluate([ClientRequest(0, 1, "evaluate", "test", initial)])[0].arrays["probabilities"]
    np.testing.assert_allclose(reply, 0.1)
    counts = np.ones(10)
    counts[3] = 0
    reply = client.evaluate([ClientRequest(0, 1, "evaluate", "test", {**initial, "counts": counts})])[0]
    np.testing.assert_allclose(reply.arrays["probabilities"][:, 3], 0.0)
    np.testing.assert_allclose(reply.arrays["probabilities"].sum(1), 1.0)


def test_nothing_of_a_single_image_leaves_the_client(ncm, cof):
    for (data, client), names in ((ncm, ["sums", "counts", "squares"]), (cof, ["sums", "counts"])):
        (update,) = client.train([ClientRequest(1, 1, "train", "", client.initial())])
        shapes = {name: array.shape for name, array in update.arrays.items()}
        classes, width = data.num_classes, client.model.backbone.dim
        expected = {"sums": (classes, width), "counts": (classes,), "squares": (1,)}
        assert shapes == {name: expected[name] for name in names}
        assert update.arrays["counts"].sum() == update.num_examples == len(data.indices(1, "train"))
        assert torch.isfinite(torch.from_numpy(update.arrays["sums"])).all()


def test_a_stand_in_for_a_failed_neighbour_changes_nothing(cof):
    _, client = cof
    alone, beside = (
        client.train([ClientRequest(p, 1, "train", "", client.initial()) for p in partitions])[0]
        for partitions in ([1], [1, ~2])
    )
    assert alone.arrays["sums"].tobytes() == beside.arrays["sums"].tobytes()


def test_nothing_is_personal_where_clients_send_sums():
    with pytest.raises(ConfigError, match=r"method\.client\.personal=\['head'\]"):
        make("fedncm", "method.client.personal=[head]")

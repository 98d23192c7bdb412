"""Class priors of clients in training and prediction, by every client class that has a head."""

import numpy as np
import pytest
from smoke import smoke

from fedbayes.comm.messages import ClientRequest
from fedbayes.errors import ConfigError
from fedbayes.inference.class_prior import class_prior

SKEWED = ("partition=label_dirichlet", "partition.alpha=0.3", "partition.test=0.4")


def predict(client, arrays, *partitions, split="test"):
    updates = client.evaluate([ClientRequest(p, 1, "evaluate", split, arrays) for p in partitions])
    return [update.arrays["probabilities"] for update in updates]


@pytest.mark.parametrize("method", ["fedvpt", "fedlora", "ditto", "pfedbayes", "pep_fedpt", "sgpt", "fedapt", "pfedpg"])
def test_predictions_are_multiplied_by_the_prior(method):
    settings = (f"method={method}", "inference.predict_samples=1", *SKEWED)
    clients = [smoke(*settings, f"head.prior={kind}")[1] for kind in ("none", "client")]
    arrays = clients[0].train([ClientRequest(0, 1, "train", "", clients[0].initial())])[0].arrays
    arrays = clients[0].initial() | (arrays if method in ("fedvpt", "fedlora") else {})
    without, with_prior = (predict(client, arrays, 0, 1) for client in clients)
    for partition in (0, 1):
        prior = class_prior(clients[0].data.class_counts[partition], 0.5).numpy()
        expected = without[partition] * prior
        np.testing.assert_allclose(with_prior[partition], expected / expected.sum(1, keepdims=True), atol=1e-5)
        assert prior.max() > 0.15


def test_training_adds_the_prior_to_the_scores():
    """At equal scores the gradient of the head's bias is `prior - frequency`, and 0 where they are equal."""
    _, client = smoke("method=fedavg_head", "head.prior=client", "optim.name=sgd",
                      "optim.batch_size=10000", "optim.local_epochs=1", "optim.momentum=0", *SKEWED)  # fmt: skip
    bias = client.train([ClientRequest(0, 1, "train", "", client.initial())])[0].arrays["head.bias"]
    np.testing.assert_allclose(bias, 0, atol=1e-7)


def test_classes_that_a_client_lacks_take_no_part_in_its_training():
    """Adam would make full steps of any gradient, however small."""
    _, client = smoke("method=fedavg_head", "head.prior=client", *SKEWED)
    bias = client.train([ClientRequest(0, 1, "train", "", client.initial())])[0].arrays["head.bias"][0]
    is_absent = client.data.class_counts[0].numpy() == 0
    assert is_absent.any()
    assert np.abs(bias[is_absent]).max() < 1e-20
    assert np.abs(bias[~is_absent]).min() > 1e-3


def test_methods_without_a_trained_head_refuse_a_prior():
    with pytest.raises(ConfigError, match=r"head\.prior"):
        smoke("method=fedncm", "head.prior=client")


@pytest.mark.parametrize("value", ["head.prior=server", "head.prior_count=0"])
def test_bad_values_are_refused(value):
    with pytest.raises(ConfigError, match=value.split("=")[0].replace(".", r"\.")):
        smoke(value)

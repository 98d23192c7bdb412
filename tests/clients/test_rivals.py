"""FedROD, kNN-Per and fine-tuned FedAvg: what defines each, against plain torch."""

import numpy as np
import pytest
import torch
from smoke import smoke

from clients.fedrod import BIAS, WEIGHT
from clients.knn_per import knn_probabilities
from fedbayes.comm.messages import ClientRequest
from fedbayes.errors import ConfigError

SKEWED = ("partition=label_dirichlet", "partition.alpha=0.3")


def train(client, partition=0, **changes):
    return client.train([ClientRequest(partition, 1, "train", "", client.initial(), **changes)])[0]


def probabilities(client, arrays, personal=None, partition=0, adapt=None):
    request = ClientRequest(partition, 1, "evaluate", "test", arrays, personal or {}, adapt)
    return client.evaluate([request])[0].arrays["probabilities"]


def test_the_shared_part_of_fedrod_is_fedvpt_with_class_priors():
    rod, prior = smoke("method=fedrod", *SKEWED)[1], smoke("method=fedvpt", "head.prior=client", *SKEWED)[1]
    for name, array in train(prior).arrays.items():
        np.testing.assert_array_equal(train(rod).arrays[name], array)


def test_the_personal_head_of_fedrod_is_added_and_stays_with_the_client():
    _, client = smoke("method=fedrod", *SKEWED)
    update = train(client)
    assert {WEIGHT, BIAS} <= update.personal.keys()
    assert not {WEIGHT, BIAS} & update.arrays.keys()
    both = probabilities(client, update.arrays, update.personal)
    shared = probabilities(client, update.arrays)
    plain = smoke("method=fedvpt", *SKEWED)[1]
    np.testing.assert_allclose(shared, probabilities(plain, update.arrays), atol=1e-6)
    client.model.stack([update.arrays])
    inputs = client.inputs.plain(client.data.batch([0], "test"))
    with torch.no_grad():
        feature = client._features(inputs, slice(None))[0].numpy()
    ratios = np.log(both) - np.log(shared) - feature @ update.personal[WEIGHT] - update.personal[BIAS]
    np.testing.assert_allclose(ratios - ratios[:, :1], 0, atol=1e-4)


def test_one_step_of_the_personal_head_of_fedrod_is_plain_torchs():
    sgd = ("optim.name=sgd", "optim.momentum=0", "optim.clip=null", "optim.lr=0", "optim.head_lr=0.5",
           "optim.local_epochs=1", "optim.batch_size=1000", "head.init_std=0.2")  # fmt: skip
    _, client = smoke("method=fedrod", *SKEWED, *sgd)
    update = train(client)
    client.model.stack([update.arrays])
    inputs = client.inputs.plain(client.data.batch([0], "train"))
    with torch.no_grad():
        feature = client._features(inputs, slice(None))[0]
        shared = client.model.head(feature[None])[0]
    weight = torch.zeros(feature.shape[1], 10, requires_grad=True)
    torch.nn.functional.cross_entropy(shared + feature @ weight, inputs.labels[0]).backward()
    np.testing.assert_allclose(update.personal[WEIGHT], -0.5 * weight.grad.numpy(), atol=1e-6)


def test_neighbours_by_hand():
    known, labels = torch.tensor([[0.0, 0.0], [2.0, 0.0], [9.0, 9.0]]), torch.tensor([0, 1, 2])
    probability = knn_probabilities(torch.tensor([[0.0, 0.0]]), known, labels, classes=4, neighbours=2, scale=1.0)
    near = 1 / (1 + np.exp(-4 / 2))
    np.testing.assert_allclose(probability[0], [near, 1 - near, 0, 0], atol=1e-6)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_knn_per_mixes_the_shared_model_with_the_client_s_images(weight):
    _, client = smoke("method=knn_per", *SKEWED, f"method.client.weight={weight}", "method.client.neighbours=3")
    arrays = train(client).arrays
    shared = probabilities(smoke("method=fedvpt", *SKEWED)[1], arrays)
    client.model.stack([arrays])
    train_inputs, test_inputs = (client.inputs.plain(client.data.batch([0], split)) for split in ("train", "test"))
    with torch.no_grad():
        known, queries = (client._features(inputs)[0] for inputs in (train_inputs, test_inputs))
    nearest = knn_probabilities(queries, known, train_inputs.labels[0], 10, 3, 1.0).numpy()
    np.testing.assert_allclose(probabilities(client, arrays), weight * nearest + (1 - weight) * shared, atol=1e-5)


def test_a_client_without_images_of_its_own_has_the_shared_model_of_knn_per():
    _, client = smoke("method=knn_per")
    assert client.for_new_clients(client.initial()).keys() == client.initial().keys()


def test_fedavg_ft_trains_as_fedvpt_and_fine_tunes_before_it_predicts():
    tuned, plain = smoke("method=fedavg_ft")[1], smoke("method=fedvpt")[1]
    arrays = train(plain).arrays
    for name, array in train(tuned).arrays.items():
        np.testing.assert_array_equal(array, arrays[name])
    np.testing.assert_array_equal(probabilities(tuned, arrays), probabilities(plain, arrays, adapt=20))


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["method=fedrod", "head.prior=client"], r"head\.prior"),
        (["method=fedrod", "generator.kind=gaussian"], r"generator\.kind"),
        (["method=knn_per", "generator.kind=gaussian"], r"generator\.kind"),
        (["method=knn_per", "method.client.neighbours=0"], r"method\.client\.neighbours"),
        (["method=knn_per", "method.client.weight=2"], r"method\.client\.weight"),
        (["method=knn_per", "method.client.scale=0"], r"method\.client\.scale"),
    ],
)
def test_settings_that_cannot_work_are_refused(overrides, key):
    with pytest.raises(ConfigError, match=key):
        smoke(*overrides)

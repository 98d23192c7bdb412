"""PEP-FedPT: weights and prompts by hand, whose prior is used where, and what is sent for the prototypes."""

import numpy as np
import pytest
import torch
from generators import special
from smoke import smoke

from clients.pep_fedpt import ClassMixedPrompts
from fedbayes.comm.messages import ClientRequest
from fedbayes.errors import ConfigError

SIZES = {"blocks": 2, "length": 5, "dim": 6, "classes": 4, "clients": 3}
SETTINGS = {"class_length": 2, "temperature": 0.2}


def prompts(**changes):
    return special(ClassMixedPrompts, SIZES, SETTINGS, **changes)


def random_prompts(seed=0):
    generator, rng = prompts(), np.random.default_rng(seed)
    prior = np.array([0.5, 0.3, 0.0, 0.2])
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.copy_(torch.from_numpy(rng.standard_normal(parameter.shape)))
        generator.prior.copy_(torch.from_numpy(prior))
    return generator, prior


def weights_by_hand(z, prototypes, prior, temperature=0.2):
    rows = []
    for q in z:
        near = [m @ q / max(np.linalg.norm(m) * np.linalg.norm(q), 1e-12) for m in prototypes]
        row = prior * np.exp(np.array(near) / temperature)
        rows.append(row / row.sum())
    return np.array(rows)


def make(*overrides):
    return smoke("method=pep_fedpt", *overrides)[1]


def random_prototypes(client):
    """Rows of all lengths, one for each class."""
    rng = np.random.default_rng(0)
    shape = client.initial()["generator.prototypes"].shape
    return {**client.initial(), "generator.prototypes": rng.standard_normal(shape).astype(np.float32)}


def test_weights_are_the_prior_times_the_nearness_to_the_prototypes():
    generator, prior = random_prompts()
    z = np.random.default_rng(1).standard_normal((7, 6))
    actual = generator.weights(torch.from_numpy(z)[None])[0].detach().numpy()
    np.testing.assert_allclose(actual, weights_by_hand(z, generator.prototypes[0].numpy(), prior), rtol=1e-9)
    assert not actual[:, 2].any(), "a class that the client lacks"


def test_before_there_are_prototypes_the_weights_are_the_prior():
    generator, prior = random_prompts()
    with torch.no_grad():
        generator.prototypes.zero_()
    actual = generator.weights(torch.randn(1, 3, 6, dtype=torch.float64))[0]
    np.testing.assert_allclose(actual, np.broadcast_to(prior, (3, 4)))


def test_prompts_are_the_shared_ones_and_the_mixture():
    generator, prior = random_prompts()
    z = np.random.default_rng(1).standard_normal((7, 6))
    actual = generator.plain(torch.from_numpy(z)[None])[0].detach().numpy()
    assert actual.shape == (7, 2, 5, 6)
    weights = weights_by_hand(z, generator.prototypes[0].numpy(), prior)
    classes = generator.classes[0].detach().numpy()
    for i in range(7):
        np.testing.assert_array_equal(actual[i, :, :3], generator.shared[0].detach().numpy())
        np.testing.assert_allclose(actual[i, :, 3:], sum(w * p for w, p in zip(weights[i], classes, strict=True)))


def test_it_starts_with_the_same_prompts_for_every_image():
    generator = prompts()
    actual = generator.plain(torch.randn(1, 4, 6, dtype=torch.float64))
    torch.testing.assert_close(actual, actual[:, :1].expand_as(actual))
    np.testing.assert_array_equal(generator.prior, np.full((1, 4), 0.25))


def test_gradients_reach_shared_and_class_prompts_by_their_weights():
    generator, _ = random_prompts()
    z = torch.randn(1, 1, 6, dtype=torch.float64)
    generator.plain(z).sum().backward()
    torch.testing.assert_close(generator.classes.grad[0, :, 0, 0, 0], generator.weights(z)[0, 0])
    torch.testing.assert_close(generator.shared.grad, torch.ones_like(generator.shared))
    assert generator.prior.grad is None
    assert generator.prototypes.grad is None


def test_a_client_trains_with_its_own_prior_and_sends_class_sums_but_no_prior():
    client = make("partition=label_dirichlet", "partition.alpha=0.3", "partition.max_train=null")
    start = random_prototypes(client)
    updates = client.train([ClientRequest(p, 1, "train", "", start) for p in range(3)])
    seen, fit = [], client.inner._fit

    def spy(*args):
        seen.append(client.model.generator.prior.detach().clone())
        return fit(*args)

    client.inner._fit = spy
    client.train([ClientRequest(p, 1, "train", "", start) for p in range(3)])
    for p, update in enumerate(updates):
        batch = client.data.batch([p], "train")
        labels = batch.labels[0].numpy()
        z = client.inputs.features(batch)[0][0].double().numpy()
        np.testing.assert_allclose(seen[0][p], [(labels == c).mean() for c in range(10)], rtol=1e-6)
        np.testing.assert_array_equal(update.arrays["counts"], np.bincount(labels, minlength=10))
        for c in range(10):
            np.testing.assert_allclose(update.arrays["sums"][c], z[labels == c].sum(0), atol=1e-9)
        np.testing.assert_array_equal(update.arrays["generator.prior"], np.full(10, 0.1, np.float32))
    assert not torch.equal(seen[0][0], seen[0][1])


def test_training_moves_what_is_trained_and_leaves_the_prototypes():
    client = make()
    start = random_prototypes(client)
    (update,) = client.train([ClientRequest(0, 1, "train", "", start)])
    same = {name for name, array in start.items() if np.array_equal(update.arrays[name], array)}
    assert same == {"generator.prototypes", "generator.prior"}


def test_an_evaluation_uses_the_clients_own_prior_and_strange_images_a_uniform_one():
    client = make("partition=label_dirichlet", "partition.alpha=0.3", "partition.max_train=null")
    (update,) = client.train([ClientRequest(0, 1, "train", "", random_prototypes(client))])
    trained = {name: array for name, array in update.arrays.items() if name not in ("sums", "counts")}
    (answer,) = client.evaluate([ClientRequest(1, 1, "evaluate", "test", trained)])
    inputs = client.inputs.plain(client.data.batch([1], "test"))
    labels = client.data.batch([1], "train").labels[0].numpy()
    prior = (np.bincount(labels, minlength=10) / len(labels)).astype(np.float32)

    def probabilities(arrays):
        with torch.no_grad():
            return client.score(inputs, [arrays], None).logits[0].softmax(-1)[0].numpy()

    informed, uniform = probabilities({**trained, "generator.prior": prior}), probabilities(trained)
    np.testing.assert_allclose(answer.arrays["probabilities"], informed, atol=1e-6)
    assert np.abs(informed - uniform).max() > 1e-4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"class_length": 5}, r"class_length=5 leaves none of prompts\.length=5"),
        ({"class_length": 0}, "class_length=0"),
        ({"temperature": 0}, "temperature=0"),
    ],
)
def test_values_out_of_range_are_refused_by_name(changes, words):
    with pytest.raises(ConfigError, match=words):
        prompts(**changes)

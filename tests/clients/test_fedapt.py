"""FedAPT: prompts and weights by hand, in training with the own key and in prediction without, and what learns."""

import numpy as np
import pytest
import torch
from generators import special
from smoke import smoke

from clients.fedapt import KeyedPrompts
from fedbayes.comm.messages import ClientRequest
from fedbayes.errors import ConfigError

SIZES = {"blocks": 2, "length": 3, "dim": 6, "classes": 10, "clients": 4}
SETTINGS = {"keys": None, "temperature": 0.3}


def prompts(key=None, **changes):
    generator = special(KeyedPrompts, SIZES, SETTINGS, **changes)
    if key is not None:
        with torch.no_grad():
            generator.client_key[0, key] = 1
    return generator


def make(*overrides):
    return smoke("method=fedapt", *overrides)[1]


def train(client, *partitions):
    return client.train([ClientRequest(p, 1, "train", "", client.initial()) for p in partitions])


def softmax(scores):
    e = np.exp(scores - scores.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_keys_are_uniform_never_trained_and_never_sent():
    generator = prompts()
    assert generator.keys.shape == (1, 4, 2, 3, 6)
    assert 0 <= generator.keys.min() < 0.1
    assert 0.9 < generator.keys.max() < 1
    assert "keys" not in dict(generator.named_parameters())
    torch.testing.assert_close(prompts().keys, generator.keys)
    assert prompts(keys=2).keys.shape[1] == 2


def test_in_training_the_own_key_modulates_the_meta_prompt():
    generator = prompts(key=2)
    actual = generator.plain(torch.randn(1, 5, 6, dtype=torch.float64))
    expected = generator.base[0] + generator.base[0] * generator.keys[0, 2]
    torch.testing.assert_close(actual[0], expected.expand(5, -1, -1, -1))


def test_in_prediction_standardised_scores_choose_the_keys():
    generator = prompts()
    z = np.random.default_rng(0).standard_normal((5, 6))
    scores = z @ generator.query.weight[0].detach().numpy()
    standard = (scores - scores.mean(1, keepdims=True)) / scores.std(1, ddof=1, keepdims=True)
    weights = softmax(standard / 0.3)
    np.testing.assert_allclose(generator.weights(torch.from_numpy(z)[None])[0].detach(), weights, rtol=1e-9)
    base, keys = generator.base[0].detach().numpy(), generator.keys[0].numpy()
    expected = base + base * np.einsum("bk,knld->bnld", weights, keys)
    np.testing.assert_allclose(generator.plain(torch.from_numpy(z)[None])[0].detach(), expected, rtol=1e-9)


def test_one_key_is_everybodys():
    generator = prompts(clients=1)
    z = torch.randn(1, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(generator.weights(z), torch.ones(1, 5, 1, dtype=torch.float64))


def test_the_penalty_is_the_cross_entropy_with_the_own_key_and_nothing_without_one():
    generator, weights = prompts(key=1), torch.tensor([[0.5, 0.5, 0.0]], dtype=torch.float64)
    z = np.random.default_rng(0).standard_normal((3, 6))
    probabilities = softmax(z @ generator.query.weight[0].detach().numpy())
    actual = generator.penalty(torch.from_numpy(z)[None], weights)
    assert actual.item() == pytest.approx(-np.log(probabilities[:2, 1]).mean(), rel=1e-12)
    assert prompts().penalty(torch.from_numpy(z)[None], weights).item() == 0


@pytest.mark.parametrize("key", [None, 1])
def test_the_network_learns_from_the_penalty_alone(key):
    generator = prompts(key=key)
    generator.plain(torch.randn(1, 5, 6, dtype=torch.float64)).square().sum().backward()
    assert generator.query.weight.grad is None
    assert generator.base.grad.all()


def test_a_step_of_the_network_by_hand():
    """SGD on one batch: `Q += rate mean_b z_b (onehot_i - softmax(z_b Q))`."""
    client = make(
        *("optim.blocks=[[generator.query]]", "optim.local_epochs=1", "optim.name=sgd", "optim.lr=0.4"),
        *("optim.clip=null", "optim.batch_size=64"),
    )
    (update,) = train(client, 1)
    z = client.inputs.features(client.data.batch([1], "train"))[0][0].double().numpy()
    start = client.initial()["generator.query.weight"].astype(np.float64)
    expected = start + 0.4 * z.T @ (np.eye(3)[1] - softmax(z @ start)) / len(z)
    np.testing.assert_allclose(update.arrays["generator.query.weight"], expected, atol=1e-5)
    assert update.metrics["penalty"] == pytest.approx(-np.log(softmax(z @ start)[:, 1]).mean(), abs=1e-5)


def test_everything_but_the_key_is_trained_and_no_reply_says_whose_it_is():
    client = make()
    start = client.initial()
    assert set(start) == {
        "generator.base",
        "generator.query.weight",
        "generator.client_key",
        "head.weight",
        "head.bias",
    }
    for update in train(client, 0, 1, 2, -2):
        same = {name for name, array in start.items() if np.array_equal(update.arrays[name], array)}
        assert same == {"generator.client_key"}


@pytest.mark.parametrize(("keys", "expected"), [("null", [0, 1, 2, 1]), ("2", [0, 1, 0, 1])])
def test_client_i_has_key_i_modulo_their_number(keys, expected):
    client = make(f"method.generator.keys={keys}")
    seen, fit = [], client.inner._fit

    def spy(*args):
        seen.append(client.model.generator.client_key.argmax(1).tolist())
        return fit(*args)

    client.inner._fit = spy
    train(client, 0, 1, 2, ~1)
    assert seen == [expected]


def test_predictions_know_no_key_even_after_steps_on_the_clients_images():
    client = make()
    request = ClientRequest(1, 1, "evaluate", "test", client.initial(), adapt=2)
    (adapted,) = client.adapt([client.initial()], [request])
    assert not adapted["generator.client_key"].any()
    assert not np.array_equal(adapted["generator.query.weight"], client.initial()["generator.query.weight"])


@pytest.mark.parametrize(("changes", "words"), [({"keys": 0}, "keys=0"), ({"temperature": 0}, "temperature=0")])
def test_values_out_of_range_are_refused_by_name(changes, words):
    with pytest.raises(ConfigError, match=words):
        prompts(**changes)


def test_strangers_predict_without_anybodys_key_whatever_noise_privacy_has_added():
    client = make()
    noisy = {**client.initial(), "generator.client_key": np.full_like(client.initial()["generator.client_key"], 0.3)}
    arrays = client.for_new_clients(noisy)
    assert not arrays["generator.client_key"].any()
    assert all(np.array_equal(arrays[name], value) for name, value in noisy.items() if name != "generator.client_key")

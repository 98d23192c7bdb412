"""What prompt tuning predicts and trains with is the posterior of its settings: psi, sigma, J, K and the prior."""

import numpy as np
import pytest
import torch
from pyro import poutine
from smoke import smoke

from clients import prompt_tuning
from fedbayes.inference.settings import InferenceSettings
from fedbayes.messages import ClientRequest
from fedbayes.seeding import Streams


def make(*overrides):
    return smoke(*overrides)[1]


def elsewhere(client):
    """Its parameters, moved off their start, where some are zero."""
    rng = np.random.default_rng(0)
    return {name: (v + 0.1 * rng.normal(size=v.shape)).astype(v.dtype) for name, v in client.initial().items()}


@pytest.mark.parametrize("kind", ["gaussian", "low_rank", "semi_implicit"])
def test_predictions_are_those_of_codes_psi_plus_sigma_times_noise(kind):
    client = make(f"generator.kind={kind}", "inference.predict_samples=4")
    inputs = client.inputs.plain(client.data.whole([1], "test"))
    with torch.no_grad():
        found = client.draw(inputs, [elsewhere(client)], Streams(0, 1, [1], "x")).logits
        generator, streams = client.model.generator, Streams(0, 1, [1], "x")
        noisy = bool(generator.noise_dim)
        eps = streams.normal((4,), inputs.counts, generator.noise_dim) if noisy else None
        noise = streams.normal((4,), inputs.counts, generator.code_dim)
        code = generator.mixing(inputs.z, eps) + generator.scale(inputs.z) * noise
        expected = client.model.logits(inputs.tokens, generator.decode(code))
    torch.testing.assert_close(found, expected)
    assert found.std(0).max() > 1e-4, "draws differ"


def test_training_has_j_draws_k_fresh_components_and_a_standard_normal_prior(monkeypatch):
    client = make("inference.train_samples=3", "inference.num_extra=4")
    inputs = client.inputs.plain(client.data.whole([1], "train"))

    def sites(program):
        return poutine.trace(program).get_trace(inputs, Streams(0, 1, [1], "x")).nodes

    assert sites(client._guide)["code"]["fn"].num_extra == 4
    prior = sites(client._model)["code"]["fn"].base_dist
    assert bool((prior.loc == 0).all())
    assert bool((prior.scale == 1).all())

    asked, bound = [], prompt_tuning.elbo
    monkeypatch.setattr(
        prompt_tuning, "elbo", lambda *args, **more: asked.append(more["draws"]) or bound(*args, **more)
    )
    client.train([ClientRequest(1, 1, "train", "", client.initial())])
    assert set(asked) == {3}


@pytest.mark.parametrize("method", ["pfedbayespt", "ditto", "pfedbayes"])
def test_the_warm_up_of_beta_counts_the_servers_rounds(method, monkeypatch):
    client = make(f"method={method}")
    asked, beta_at = set(), InferenceSettings.beta_at
    monkeypatch.setattr(InferenceSettings, "beta_at", lambda self, number: asked.add(number) or beta_at(self, number))
    client.train([ClientRequest(0, 3, "train", "", client.initial())])
    assert asked == {3}

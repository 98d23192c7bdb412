"""What prompt tuning predicts and trains with is the posterior of its settings: psi, sigma, J, K and the prior."""

import numpy as np
import pytest
import torch
from pyro import poutine
from smoke import smoke
from torch.distributions import Categorical, MultivariateNormal, Normal
from torch.nn import functional as F

from clients import prompt_tuning
from fedbayes.comm.messages import ClientRequest
from fedbayes.inference.settings import InferenceSettings
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
    inputs = client.inputs.plain(client.data.batch([1], "test"))
    with torch.no_grad():
        logits = client.score(inputs, [elsewhere(client)], Streams(0, 1, [1], "x")).logits
        generator, streams = client.model.generator, Streams(0, 1, [1], "x")
        noisy = bool(generator.noise_dim)
        eps = streams.normal((4,), inputs.counts, generator.noise_dim) if noisy else None
        noise = streams.normal((4,), inputs.counts, generator.code_dim)
        code = generator.mixing(inputs.z, eps) + generator.scale(inputs.z) * noise
        expected = client.model.logits(inputs.tokens, generator.decode(code))
    torch.testing.assert_close(logits, expected)
    assert logits.std(0).max() > 1e-4, "draws differ"


def test_training_has_j_draws_k_fresh_components_and_a_standard_normal_prior(monkeypatch):
    client = make("inference.train_samples=3", "inference.num_extra=4")
    inputs = client.inputs.plain(client.data.batch([1], "train"))

    def sites(program):
        return poutine.trace(program).get_trace(inputs, Streams(0, 1, [1], "x")).nodes

    assert sites(client._guide)["code"]["fn"].num_extra == 4
    prior = sites(client._model)["code"]["fn"].base_dist
    assert bool((prior.loc == 0).all())
    assert bool((prior.scale == 1).all())

    asked, bound = [], prompt_tuning.elbo
    monkeypatch.setattr(
        prompt_tuning, "elbo", lambda *args, **more: asked.append(more["samples"]) or bound(*args, **more)
    )
    client.train([ClientRequest(1, 1, "train", "", client.initial())])
    assert set(asked) == {3}


@pytest.mark.parametrize("method", ["pfedbayespt", "ditto", "pfedbayes_product"])
def test_the_warm_up_of_beta_counts_the_servers_rounds(method, monkeypatch):
    client = make(f"method={method}")
    asked, beta_at = set(), InferenceSettings.beta_at
    monkeypatch.setattr(InferenceSettings, "beta_at", lambda self, number: asked.add(number) or beta_at(self, number))
    client.train([ClientRequest(0, 3, "train", "", client.initial())])
    assert asked == {3}


class Recorded:
    """Streams that keep what they gave."""

    def __init__(self):
        self.streams, self.draws = Streams(0, 1, [1], "x"), []

    def normal(self, lead, counts, size, device="cpu"):
        self.draws.append(self.streams.normal(lead, counts, size, device))
        return self.draws[-1]

    def last(self, *lead_and_size):
        """The last draws of shape `(*lead, 1, B, size)`."""
        *lead, size = lead_and_size
        matches = [draw for draw in self.draws if draw.shape[:-3] == torch.Size(lead) and draw.shape[-1] == size]
        return matches[-1][..., 0, :, :]  # (*lead, B, size)


def linear(name, state, x):
    y = x @ state[f"generator.{name}.weight"]
    bias = state.get(f"generator.{name}.bias")
    return y if bias is None else y + bias


@pytest.mark.parametrize("kind", ["gaussian", "low_rank", "semi_implicit", "semi_implicit with a reverse model"])
def test_the_loss_is_the_bound_of_the_paper_worked_out_from_the_draws(kind):
    """`-log p(y | x, P(c)) + beta [log q(c) - log N(c; 0, I)]`, mean over J draws and the client's images.

    For a semi-implicit posterior `q(c) = 1/(K+1) sum_k w_k N(c; psi_k, sigma^2)`, with psi_0 the one that c was drawn
    around; w_k is 1, or `N(eps_k; 0, I) / tau(eps_k | c)` where a reverse model drew eps_1 .. eps_K.
    """
    (beta, j, k, m, r), reverse = (0.3, 3, 4, 2, 5), "reverse" in kind
    client = make(
        f"generator.kind={kind.split()[0]}",
        *("inference.train_samples=3", "inference.num_extra=4", "generator.noise_dim=2", "generator.code_dim=5"),
        f"inference.reverse={'gaussian' if reverse else 'none'}",
    )
    state = {name: torch.from_numpy(value) for name, value in elsewhere(client).items()}
    client.model.stack([elsewhere(client)])
    inputs, noise = client.inputs.plain(client.data.batch([1], "train")), Recorded()
    bound = client.objective(inputs, noise, beta)

    z, sigma = inputs.z[0], state["generator.log_scale"].reshape(()).exp()
    hidden = linear("hidden", state, z)

    def psi(eps):
        code = linear("location", state, F.gelu(hidden + linear("noise", state, eps)))
        return code + eps @ state["generator.skip.weight"]

    u = noise.last(j, r)
    if kind.startswith("semi_implicit"):
        eps_0, fresh = noise.last(j, m), noise.last(k, j, m)
        c = psi(eps_0) + sigma * u
        eps, log_w = torch.cat([eps_0[None], fresh]), torch.zeros(k + 1, j, len(z))  # (K + 1, J, B)
        if reverse:
            out = linear(
                "reverse_out", state, F.gelu(linear("reverse_code", state, c) + linear("reverse_image", state, z))
            )
            tril = torch.diag_embed(out[..., m : 2 * m].exp())
            tril[..., 1, 0] = out[..., 2 * m]
            tau = MultivariateNormal(out[..., :m], scale_tril=tril)
            eps = torch.cat([eps_0[None], out[..., :m] + (tril @ fresh[..., None])[..., 0]])
            log_w = Normal(0.0, 1.0).log_prob(eps).sum(-1) - tau.log_prob(eps)
        log_q = (log_w + Normal(psi(eps), sigma).log_prob(c).sum(-1)).logsumexp(0) - np.log(k + 1)
    else:
        centre, scale = linear("location", state, F.gelu(hidden)), linear("spread", state, F.gelu(hidden)).exp() * sigma
        factor = torch.zeros(len(z), r, m)
        if kind == "low_rank":
            factor = linear("directions", state, F.gelu(hidden)).unflatten(-1, (r, m))
            factor = factor + state["generator.skip.weight"].T
        law = MultivariateNormal(centre, factor @ factor.mT + torch.diag_embed(scale.square()))
        shift = (factor @ noise.last(j, m)[..., None])[..., 0] if kind == "low_rank" else 0
        c = centre + shift + scale * u
        log_q = law.log_prob(c)

    prompts = state["generator.base"] + linear("decoder", state, c).unflatten(-1, state["generator.base"].shape)
    scores = client.model.logits(inputs.tokens, prompts[:, None])[:, 0]  # (J, B, classes)
    log_likelihood = Categorical(logits=scores).log_prob(inputs.labels[0])
    log_prior = Normal(0.0, 1.0).log_prob(c).sum(-1)
    torch.testing.assert_close(bound.log_likelihood[0], log_likelihood.mean(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(bound.kl[0], (log_q - log_prior).mean(), rtol=1e-4, atol=1e-4)
    expected = (-log_likelihood + beta * (log_q - log_prior)).mean()
    torch.testing.assert_close(bound.loss[0], expected, rtol=1e-4, atol=1e-4)

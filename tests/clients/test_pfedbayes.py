"""pFedBayes's client: its objective against torch's, who moves whom, and what is sent, kept and predicted with."""

import numpy as np
import pytest
import torch
from smoke import play_rounds, smoke
from torch.distributions import Categorical, Normal, kl_divergence
from torch.nn import functional as F

from clients.base import personalised
from fedbayes.comm.messages import ClientRequest
from fedbayes.errors import ConfigError
from fedbayes.seeding import Streams

MEAN = "method.strategy.aggregate=mean"


def make(*overrides, method="pfedbayes_product"):
    return smoke(f"method={method}", *overrides)


def request(partition, arrays, personal=None, kind="train", server_round=1, **options):
    return ClientRequest(partition, server_round, kind, "test", arrays, personal or {}, **options)


def noisy(arrays, seed):
    rng = np.random.default_rng(seed)
    return {name: (value + 0.1 * rng.normal(size=value.shape)).astype(value.dtype) for name, value in arrays.items()}


def as_personal(arrays):
    return {f"personal.{name}": value for name, value in arrays.items()}


def leaves(arrays, *names):
    """As the client holds one client's Gaussian."""
    return {name: torch.from_numpy(np.stack([arrays[name]])).requires_grad_() for name in names or arrays}


def batch_of(client, partition=1):
    return client.inputs.plain(client.data.batch([partition], "train"))


def objective(client, q, w, draws=1, *, with_copy=False, beta=0.3):
    client.inference.train_samples = draws
    inputs = batch_of(client)
    noise = Streams(0, 1, [1], "test")
    return client.objective(inputs, q, w, noise, torch.tensor([inputs.mask.sum()]), beta, with_copy)


def test_the_objective_is_the_bound_over_explicit_draws_of_the_weights():
    _, client = make()
    w, q = noisy(client.initial(), 0), noisy(client.initial(), 1)
    bound = objective(client, leaves(q), leaves(w), draws=3)
    inputs, names = batch_of(client), client.means
    eps = torch.randn(3, 1, sum(q[name].size for name in names), generator=generator_of(Streams(0, 1, [1], "test")))
    likelihood = []
    for draw in eps[:, 0]:
        parts = dict(zip(names, draw.split([q[name].size for name in names]), strict=True))
        drawn = {
            n: q[n] + F.softplus(torch.from_numpy(q[f"{n}.rho"])).numpy() * parts[n].view(q[n].shape).numpy()
            for n in names
        }
        client.model.stack([drawn])
        logits = client.model.logits(inputs.tokens, client.model.generator.plain(inputs.z))
        likelihood.append(Categorical(logits=logits).log_prob(inputs.labels).mean())
    expected = torch.stack(likelihood).mean()
    torch.testing.assert_close(bound.log_likelihood, expected[None], rtol=1e-5, atol=1e-5)
    kl = sum(
        kl_divergence(*(Normal(*(torch.from_numpy(g[n]), F.softplus(torch.from_numpy(g[f"{n}.rho"])))) for g in (q, w)))
        .sum()
        .item()
        for n in names
    )
    assert bound.kl.item() == pytest.approx(kl / inputs.mask.sum().item(), rel=1e-5)
    assert bound.loss.item() == pytest.approx(0.3 * bound.kl.item() - expected.item(), rel=1e-5)


def generator_of(streams):
    (generator,) = streams._generators
    return generator


def test_the_posterior_moves_by_its_own_bound_and_the_copy_by_its_divergence_from_the_posterior():
    _, client = make()
    w, q = leaves(noisy(client.initial(), 0)), leaves(noisy(client.initial(), 1))

    def gradients(with_copy):
        loss = objective(client, q, w, with_copy=with_copy).loss.sum()
        return torch.autograd.grad(loss, [*q.values(), *w.values()], allow_unused=True, materialize_grads=True)

    alone, beside = gradients(False), gradients(True)
    for before, after in zip(alone[: len(q)], beside, strict=False):
        torch.testing.assert_close(before, after)
    assert not any(gradient.any() for gradient in alone[len(q) :])
    # KL(q | w) = log s_w + (s_q^2 + (m_q - m_w)^2) / (2 s_w^2) + const, so dKL / dm_w = (m_w - m_q) / s_w^2.
    images = batch_of(client).mask.sum()
    for name, gradient in zip(w, beside[len(q) :], strict=True):
        if not name.endswith(".rho"):
            expected = 0.3 / images * (w[name] - q[name]) / F.softplus(w[f"{name}.rho"]).square()
            torch.testing.assert_close(gradient, expected)


def test_without_spread_and_prior_it_is_fedvpt():
    settings = ("optim.name=sgd", "inference.beta=0", "optim.momentum=0")
    _, client = make(*settings, MEAN, "method.client.init_std=1e-7")
    _, fedvpt = make(*settings[::2], method="fedvpt")
    start = fedvpt.initial()
    (update,), (plain,) = client.train([request(2, client.initial())]), fedvpt.train([request(2, start)])
    for name, array in plain.arrays.items():
        np.testing.assert_allclose(update.personal[f"personal.{name}"], array, atol=1e-5)
        np.testing.assert_array_equal(update.arrays[name], start[name])  # a copy that nothing moves


@pytest.mark.parametrize("aggregate", ["mean", "product"])
def test_what_is_sent_and_what_is_kept(aggregate):
    _, client = make(f"method.strategy.aggregate={aggregate}")
    (update,) = client.train([request(0, client.initial())])
    assert set(update.arrays) == set(client.initial())
    assert set(update.personal) == set(as_personal(client.initial()))
    for name, start in client.initial().items():
        posterior = update.personal[f"personal.{name}"]
        assert not np.array_equal(update.arrays[name], start), name
        assert np.array_equal(update.arrays[name], posterior) == (aggregate == "product"), name
        if aggregate == "mean" and name in client.means:  # the copy follows the posterior
            assert np.abs(update.arrays[name] - posterior).mean() < np.abs(start - posterior).mean(), name


def test_a_posterior_goes_on_from_where_it_was_towards_the_new_prior():
    _, client = make(MEAN, "inference.beta=100")
    w, v = noisy(client.initial(), 0), noisy(client.initial(), 1)
    (resumed,) = client.train([request(0, w, as_personal(v))])
    (fresh,) = client.train([request(0, w)])
    assert not np.array_equal(resumed.personal["personal.head.weight"], fresh.personal["personal.head.weight"])
    for n in client.means:  # the KL draws it to the received prior
        assert np.abs(resumed.personal[f"personal.{n}"] - w[n]).mean() < np.abs(v[n] - w[n]).mean()


def test_a_posterior_that_is_multiplied_starts_at_what_was_sent_and_is_held_to_the_prior_that_was():
    _, client = make("optim.name=sgd", "optim.momentum=0", "optim.clip=null", "optim.batch_size=64")
    w, v, p = (noisy(client.initial(), seed) for seed in range(3))
    (resumed,), (fresh,) = client.train([request(0, w, as_personal(v))]), client.train([request(0, w)])
    for name, array in fresh.arrays.items():
        np.testing.assert_array_equal(resumed.arrays[name], array)
    received = {**w, **{f"prior.{name}": value for name, value in p.items()}}
    (held,) = client.train([request(0, received)])
    assert set(held.arrays) == set(w)
    client.optim.local_epochs = 1  # one step, whose gradients differ by those of the two divergences
    (held,), (free,) = client.train([request(0, received)]), client.train([request(0, w)])
    images = len(client.data.indices(0, "train"))
    std = F.softplus(torch.from_numpy(p["head.weight.rho"])).numpy()
    pull = client.inference.beta / images * (w["head.weight"] - p["head.weight"]) / std**2
    moved = free.arrays["head.weight"] - held.arrays["head.weight"]
    np.testing.assert_allclose(moved, client.optim.head_lr * pull, rtol=1e-3, atol=1e-7)


def test_predictions_average_draws_of_the_own_posterior_and_a_strangers_of_the_global_gaussian():
    _, client = make("inference.predict_samples=3")
    w, v = noisy(client.initial(), 0), noisy(client.initial(), 1)

    def predict(*args, **options):
        return client.evaluate([request(*args, kind="evaluate", **options)])[0].arrays["probabilities"]

    np.testing.assert_array_equal(predict(1, w, as_personal(v)), predict(1, v))
    np.testing.assert_array_equal(predict(1, {**w, **as_personal(v)}), predict(1, w))
    inputs = client.inputs.plain(client.data.batch([1], "test"))
    draws = client.score(inputs, [v], Streams(client.seed, 1, [1], "evaluate test"))
    assert draws.logits.shape[:2] == (3, 1)
    expected = draws.logits.softmax(-1).mean(0)[0].detach().numpy()
    np.testing.assert_allclose(predict(1, v), expected, atol=1e-6)
    assert not torch.equal(draws.logits[0], draws.logits[1])
    adapted = predict(1, w, as_personal(v), adapt=3)
    assert not np.array_equal(adapted, predict(1, w, as_personal(v)))


def test_many_images_go_through_in_parts_with_the_same_result(monkeypatch):
    _, client = make("partition.test=0.1")
    asked = request(1, noisy(client.initial(), 0), kind="evaluate")
    whole = client.evaluate([asked])[0].arrays["probabilities"]
    monkeypatch.setattr("clients.base.LARGEST_PASS", 14)
    np.testing.assert_allclose(client.evaluate([asked])[0].arrays["probabilities"], whole, atol=1e-6)


@pytest.mark.parametrize("kind", ["fixed", "deterministic"])
def test_results_do_not_depend_on_the_cohort(kind):
    _, client = make("clients=4", "partition.quantity=0.7", "optim.name=sgd", f"generator.kind={kind}", MEAN)
    w, v = noisy(client.initial(), 0), noisy(client.initial(), 1)

    def requests(*partitions, **options):
        return [request(p, w, as_personal(v if p == 2 else w), **options) for p in partitions]

    (alone,) = client.train(requests(2))
    (answer,) = client.evaluate(requests(2, kind="evaluate", adapt=1))
    for cohort in ((2, 0), (~0, 3, 2, 1)):
        place = cohort.index(2)
        together = client.train(requests(*cohort))[place]
        for name, array in {**alone.arrays, **alone.personal}.items():
            arrays = {**together.arrays, **together.personal}[name]
            np.testing.assert_allclose(arrays, array, atol=1e-5, err_msg=f"{name} in {cohort}")
        reply = client.evaluate(requests(*cohort, kind="evaluate", adapt=1))[place]
        np.testing.assert_allclose(reply.arrays["probabilities"], answer.arrays["probabilities"], atol=1e-5)


@pytest.mark.parametrize("aggregate", ["mean", "product"])
def test_a_federation_runs_with_the_same_names_on_both_sides(aggregate):
    cfg, client = make(f"method.strategy.aggregate={aggregate}", "clients=4", "participation=0.5")
    progress = play_rounds(cfg, client)
    shared = progress.arrays
    assert {name: array.shape for name, array in shared.items()} == {n: a.shape for n, a in client.initial().items()}
    assert sorted(progress.personal) == sorted(progress.accepted)
    for partition in range(4):
        asked = request(partition, shared, progress.personal.get(partition), kind="evaluate", server_round=2)
        (expected,) = client.evaluate([asked])
        actual = progress.final.pooled.probabilities[progress.final.partitions == partition]
        np.testing.assert_allclose(actual, expected.arrays["probabilities"], atol=1e-5)


def test_a_personal_head_keeps_its_prior_at_home():
    _, client = make("method.client.personal=[head]", MEAN)
    assert set(client.initial()) == {"generator.base", "generator.base.rho"}
    (update,) = client.train([request(0, client.initial())])
    assert set(update.arrays) == {"generator.base", "generator.base.rho"}
    heads = {"head.weight", "head.weight.rho", "head.bias", "head.bias.rho"}
    assert set(update.personal) == heads | set(as_personal({**client.initial(), **dict.fromkeys(heads)}))
    assert set(personalised(update.personal)) == set(client.start)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("generator.kind=gaussian", r"generator\.kind=gaussian has a posterior over prompts"),
        ("generator.kind=semi_implicit", r"generator\.kind=semi_implicit has a posterior"),
        ("method.client.init_std=0", r"method\.client\.init_std=0"),
        ("method.client.aggregate=median", r"method\.strategy\.aggregate=median"),
    ],
)
def test_values_that_cannot_work_are_refused(override, message):
    with pytest.raises(ConfigError, match=message):
        make(override)

"""Ditto: FedAvg for the global model, and beside it a client's own, drawn towards what it received."""

from dataclasses import replace

import numpy as np
import pytest
from journal import Journal
from smoke import play_rounds, smoke

from fedbayes import build
from fedbayes.comm.messages import ClientRequest
from fedbayes.errors import ConfigError

RATES = ("optim.lr=0.03", "optim.head_lr=0.01")
ONE_STEP = ("optim.name=sgd", "optim.momentum=0", "optim.clip=null", "optim.batch_size=64")


def make(*overrides, method="ditto"):
    return smoke(f"method={method}", *RATES, *overrides)


def request(partition, arrays, personal=None, kind="train", server_round=1, **options):
    return ClientRequest(partition, server_round, kind, "test", arrays, personal or {}, **options)


def noisy(arrays, seed):
    rng = np.random.default_rng(seed)
    return {name: (value + 0.05 * rng.normal(size=value.shape)).astype(value.dtype) for name, value in arrays.items()}


def as_personal(arrays):
    return {f"personal.{name}": value for name, value in arrays.items()}


def test_the_global_model_is_trained_as_fedvpt_trains_it_for_half_of_the_epochs():
    _, ditto = make("optim.local_epochs=4")
    _, fedvpt = make("optim.local_epochs=2", method="fedvpt")
    start = ditto.initial()
    (update,), (plain,) = ditto.train([request(1, start)]), fedvpt.train([request(1, start)])
    assert set(update.arrays) == set(plain.arrays)
    for name, array in plain.arrays.items():
        np.testing.assert_array_equal(update.arrays[name], array)


def test_lambda_draws_the_own_model_towards_the_received_one_by_its_gradient():
    """One step of SGD from v with the penalty and one without it differ by `lr lambda (v - w)`."""
    updates = {}
    for strength in (0.0, 0.7):
        _, client = make(*ONE_STEP, f"method.client.strength={strength}", "optim.lr=0.2", "optim.head_lr=0.1")
        w, v = noisy(client.initial(), 0), noisy(client.initial(), 1)
        (updates[strength],) = client.train([request(2, w, as_personal(v))])
    for name, rate in (("generator.base", 0.2), ("head.weight", 0.1), ("head.bias", 0.1)):
        moved = updates[0.0].personal[f"personal.{name}"] - updates[0.7].personal[f"personal.{name}"]
        np.testing.assert_allclose(moved, rate * 0.7 * (v[name] - w[name]), atol=2e-7)
        np.testing.assert_array_equal(updates[0.0].arrays[name], updates[0.7].arrays[name])


def test_the_own_model_goes_on_from_where_it_was_and_without_lambda_never_hears_of_the_others():
    _, client = make("method.client.strength=0")
    v = noisy(client.initial(), 1)
    first, second = (client.train([request(0, noisy(client.initial(), seed), as_personal(v))])[0] for seed in (2, 3))
    for name in v:
        np.testing.assert_array_equal(first.personal[f"personal.{name}"], second.personal[f"personal.{name}"])
    assert not np.array_equal(first.arrays["head.weight"], second.arrays["head.weight"])
    _, drawn = make("method.client.strength=1")
    (third,) = drawn.train([request(0, noisy(client.initial(), 2), as_personal(v))])
    assert not np.array_equal(first.personal["personal.head.weight"], third.personal["personal.head.weight"])


def test_a_first_own_model_starts_from_the_received_one():
    _, client = make(*ONE_STEP, "method.client.strength=3")
    w = noisy(client.initial(), 0)
    (first,), (named_so,) = client.train([request(2, w)]), client.train([request(2, w, as_personal(w))])
    for name in as_personal(w):
        np.testing.assert_array_equal(first.personal[name], named_so.personal[name])


def test_each_model_sees_each_image_once_in_a_round():
    cfg, client = make()
    seen, inner = [], client.inputs.train

    def spy(batch, changes):
        seen.extend(batch.index[batch.mask].tolist())
        return inner(batch, changes)

    client.inputs.train = spy
    (update,) = client.train([request(1, client.initial())])
    assert sorted(seen) == sorted(2 * client.data.indices(1, "train").tolist())
    assert build.loop(cfg, build.sampling(cfg)).training.passes == 2
    assert update.num_examples == len(client.data.indices(1, "train"))


def test_predictions_are_the_own_models_and_a_strangers_the_global_ones():
    _, client = make()
    _, fedvpt = make(method="fedvpt")
    w, v = noisy(client.initial(), 0), noisy(client.initial(), 1)

    def predict(by, *args, **options):
        return by.evaluate([request(*args, kind="evaluate", **options)])[0].arrays["probabilities"]

    np.testing.assert_array_equal(predict(client, 1, w, as_personal(v)), predict(fedvpt, 1, v))
    np.testing.assert_array_equal(predict(client, 1, w), predict(fedvpt, 1, w))
    others = {**w, **as_personal(v)}  # a stranger is told the mean of what others keep, which is not its own
    np.testing.assert_array_equal(predict(client, 1, others), predict(fedvpt, 1, w))
    np.testing.assert_array_equal(predict(client, 1, w, as_personal(v), adapt=3), predict(fedvpt, 1, v, adapt=3))


def test_results_do_not_depend_on_the_cohort():
    _, client = make("clients=4", "partition.quantity=0.7", "optim.name=sgd")
    w, v = noisy(client.initial(), 0), noisy(client.initial(), 1)
    (alone,) = client.train([request(2, w, as_personal(v))])
    for cohort in ((2, 0), (~0, 3, 2, 1)):
        requests = [request(p, w, as_personal(v if p == 2 else w)) for p in cohort]
        together = next(update for update in client.train(requests) if update.partition == 2)
        for name, array in {**alone.arrays, **alone.personal}.items():
            arrays = {**together.arrays, **together.personal}[name]
            np.testing.assert_allclose(arrays, array, atol=1e-5, err_msg=f"{name} in {cohort}")
        assert together.metrics == pytest.approx(alone.metrics, abs=1e-5)


def test_a_federation_sends_global_models_alone_and_a_checkpoint_has_the_own_ones():
    cfg, client = make("clients=4", "participation=0.5", "rounds=1")
    journal = Journal()
    progress = play_rounds(cfg, client, journal)
    assert set(progress.arrays) == set(client.model.initial)
    trained = sorted(progress.accepted)
    assert sorted(progress.personal) == trained
    assert len(trained) == 2
    for personal in progress.personal.values():
        assert set(personal) == set(as_personal(client.model.initial))
    shared = progress.arrays
    for partition in range(4):
        asked = request(partition, shared, progress.personal.get(partition), kind="evaluate")
        (expected,) = client.evaluate([asked])
        actual = progress.final.pooled.probabilities[progress.final.partitions == partition]
        np.testing.assert_allclose(actual, expected.arrays["probabilities"], atol=1e-5)
    assert {"personal_loss", "loss"} <= set(journal.rows[0])


def test_a_part_that_is_personal_in_the_global_model_has_an_own_copy_too():
    _, client = make("method.client.personal=[head]")
    (first,) = client.train([request(0, client.initial())])
    assert set(first.arrays) == {"generator.base"}
    assert set(first.personal) == {"head.weight", "head.bias", *as_personal(client.model.initial)}
    (second,) = client.train([replace(request(0, first.arrays, first.personal), server_round=2)])
    for name in ("head.weight", "personal.head.weight", "personal.generator.base"):
        assert not np.array_equal(first.personal[name], second.personal[name])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.local_epochs=3", r"optim\.local_epochs=3 cannot be halved"),
        ("method.client.strength=-1", r"method\.client\.strength=-1"),
    ],
)
def test_values_that_cannot_work_are_refused(override, message):
    with pytest.raises(ConfigError, match=message):
        make(override)

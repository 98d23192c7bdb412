"""The client of prompt tuning: its draws are its own, it keeps what is personal, its codes depend on the image."""

import numpy as np
import pytest
import torch
from smoke import smoke

from fedbayes import build
from fedbayes.comm.messages import ClientRequest
from fedbayes.config.compose import CONF
from fedbayes.data.federated import FederatedData
from fedbayes.errors import ConfigError
from fedbayes.simulation.in_process import InProcessGrid

METHODS = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))


class Journal:
    def __init__(self):
        self.rows = []

    def log(self, row):
        self.rows.append(row)

    def log_clients(self, rows): ...
    def note(self, text):
        assert "mixing" in text or "bound" in text, text  # what a posterior says of itself is no fault


def play(*overrides):
    cfg, client = smoke(*overrides)
    loop, journal = build.loop(cfg, build.sampling(cfg)), Journal()
    grid = InProcessGrid(client, cfg.clients)
    progress = loop.run(
        grid, build.strategy(cfg, loop), client.initial(), journal, build.partition_sizes(cfg, client.data)
    )
    return client, progress, journal, grid


def train(client, *partitions, server_round=1, arrays=None):
    arrays = arrays or client.initial()
    return client.train([ClientRequest(p, server_round, "train", "", arrays) for p in partitions])


@pytest.mark.parametrize(
    "kind",
    ["fixed", "deterministic", "gaussian", "low_rank", "semi_implicit", "semi_implicit inference.reverse=gaussian"],
)
def test_a_clients_result_does_not_depend_on_its_cohort(kind):
    _, client = smoke("clients=4", *f"generator.kind={kind}".split(), "optim.name=sgd", "partition.quantity=0.7")
    (alone,) = train(client, 2)
    for cohort in ((2, 0), (3, 2, 1), (0, 1, 2, 3)):
        together = next(update for update in train(client, *cohort) if update.partition == 2)
        assert together.num_examples == alone.num_examples
        for name, array in alone.arrays.items():
            np.testing.assert_allclose(together.arrays[name], array, atol=1e-5, err_msg=f"{name} in {cohort}")


def test_a_clients_predictions_do_not_depend_on_its_cohort():
    _, client = smoke("clients=4", "partition.test=0.1", "partition.quantity=0.7")
    arrays = train(client, 0)[0].arrays

    def ask(*partitions):
        updates = client.evaluate([ClientRequest(p, 1, "evaluate", "test", arrays) for p in partitions])
        return next(update for update in updates if update.partition == 2)

    for cohort in ((2, 0), (3, 2, 1)):
        for name in ("probabilities", "labels"):
            np.testing.assert_allclose(ask(*cohort).arrays[name], ask(2).arrays[name], atol=1e-5)
        assert ask(*cohort).metrics == pytest.approx(ask(2).metrics, abs=1e-5)


def test_draws_differ_between_rounds_clients_and_seeds():
    _, client = smoke()
    _, other = smoke("seed=1")
    same = client.initial()
    results = [
        train(client, 0)[0],
        train(client, 0, server_round=2)[0],
        train(client, 1)[0],
        train(other, 0, arrays=same)[0],
    ]
    weights = [result.arrays["generator.skip.weight"] for result in results]
    assert all(not np.array_equal(a, b) for i, a in enumerate(weights) for b in weights[:i])
    np.testing.assert_array_equal(train(client, 0)[0].arrays["generator.skip.weight"], weights[0])


SLOWER = {"feddpa": ["optim.local_epochs=4"]}
"""Half of its passes train what is sent, and the first matrices of pairs learn in the third step."""
VARIANTS = [[f"method={method}", *SLOWER.get(method, [])] for method in METHODS] + [
    ["generator.kind=low_rank"],
    ["inference.reverse=gaussian"],
    ["inference.reverse=gaussian", "inference.num_extra=0"],
]


@pytest.mark.parametrize("overrides", VARIANTS, ids=" ".join)
def test_every_parameter_that_is_sent_has_been_trained(overrides):
    _, client = smoke(*overrides)
    optim = getattr(getattr(client, "inner", client), "optim", None)
    if optim is None:
        pytest.skip("needs a method that trains by gradients")
    initial = client.initial()
    (first,) = train(client, 0)
    (second,) = train(client, 0, server_round=2, arrays={**initial, **first.arrays, **first.personal})
    if all(optim.blocks):
        pytest.skip("needs a method that trains everything at once; others are in test_methods_of_one_file")
    begun, learns = {**client.model.initial, **initial}, client.model.trainable()
    for name, array in {**second.arrays, **second.personal}.items():
        plain = name.removeprefix("personal.")
        if plain not in learns and (plain in client.model.owned() or plain not in begun):
            continue  # counted or summed
        start = begun[plain]
        assert not array.size or not np.array_equal(array, start), name


@pytest.mark.parametrize("method", METHODS)
def test_a_personal_head_is_in_no_reply(method):
    always = "weights.local" if method == "feddpa" else ""
    _, shared = smoke(f"method={method}", f"method.client.personal=[{always}]")
    if not any(name.startswith("head.") for name in shared.initial()):
        pytest.skip("needs a method with a head")
    shorter = ["optim.finetune_steps=3"] if method == "fedbabu" else []
    cfg, client = smoke(f"method={method}", f"method.client.personal=[{always or 'head'},head]", *shorter)
    if build.loop(cfg, build.sampling(cfg)).sampling.per_round < cfg.clients:
        pytest.skip("needs a method that trains every client; untrained ones are sent the mean head")
    assert not any(name.startswith("head.") for name in client.initial())
    loop, journal, traffic = build.loop(cfg, build.sampling(cfg)), Journal(), []

    class Spy(InProcessGrid):
        def send_and_receive(self, messages, *, timeout=None):
            messages = list(messages)
            replies = list(super().send_and_receive(messages, timeout=timeout))
            traffic.extend([*messages, *replies])
            return replies

    grid = Spy(client, cfg.clients)
    progress = loop.run(
        grid, build.strategy(cfg, loop), client.initial(), journal, build.partition_sizes(cfg, client.data)
    )
    names = {
        name
        for message in traffic
        if message.metadata.message_type in ("train", "evaluate")
        for record in message.content.array_records.values()
        for name in record
    }
    assert names
    assert not any(name.startswith(("head.", "personal.head.")) for name in names)
    assert sorted(progress.personal) == [0, 1, 2]
    heads = [state.get("personal.head.weight", state["head.weight"]) for state in progress.personal.values()]
    assert np.array_equal(heads[0], heads[1]) == (method == "fedbabu"), "FedBABU leaves the common random head"
    assert not any(name.startswith("head.") for name in progress.arrays)


def test_clients_that_never_trained_predict_with_the_mean_head():
    client, progress, _, _ = play("clients=4", "participation=0.5", "rounds=1", "method.client.personal=[head]")
    trained = sorted(progress.personal)
    assert len(trained) == 2
    stranger = next(p for p in range(4) if p not in trained)
    mean = {
        name: np.mean([progress.personal[p][name] for p in trained], axis=0, dtype=np.float64).astype(np.float32)
        for name in progress.personal[trained[0]]
    }
    request = ClientRequest(stranger, 1, "evaluate", "test", {**progress.arrays, **mean})
    (expected,) = client.evaluate([request])
    is_new = progress.final.partitions == stranger
    np.testing.assert_allclose(progress.final.pooled.probabilities[is_new], expected.arrays["probabilities"], atol=1e-5)


def test_the_weight_of_a_reply_is_the_number_of_its_images():
    _, client = smoke("partition.quantity=1.0", "partition.max_train=null", "optim.local_epochs=1")
    counts = [len(client.data.indices(p, "train")) for p in range(3)]
    assert len(set(counts)) > 1
    assert [update.num_examples for update in train(client, 0, 1, 2)] == counts


def test_tokens_that_do_not_fit_are_computed_again_with_the_same_result():
    updates, answers = [], []
    for megabytes in (2048, 0):
        _, client = smoke(f"simulation.cache_mb={megabytes}")
        updates.append(train(client, 0, 1)[1])
        asked = [ClientRequest(p, 1, "evaluate", "test", client.initial()) for p in range(3)]
        answers.append(client.evaluate(asked)[2])
    for name, array in updates[0].arrays.items():
        np.testing.assert_allclose(updates[1].arrays[name], array, atol=1e-4, err_msg=name)
    np.testing.assert_allclose(answers[0].arrays["probabilities"], answers[1].arrays["probabilities"], atol=1e-6)


def test_many_images_times_draws_go_through_in_parts_with_the_same_result(monkeypatch):
    _, client = smoke("partition.test=0.1")
    request = ClientRequest(1, 1, "evaluate", "test", train(client, 1)[0].arrays)
    whole = client.evaluate([request])[0].arrays
    monkeypatch.setattr("clients.base.LARGEST_PASS", 14)
    parts = client.evaluate([request])[0].arrays
    np.testing.assert_allclose(parts["probabilities"], whole["probabilities"], atol=1e-6)


def test_augmentation_changes_training_and_leaves_predictions_alone():
    _, plain = smoke()
    _, augmented = smoke("augment.shift=0.2", "augment.degrees=20")
    initial = plain.initial()
    assert not np.array_equal(train(plain, 0)[0].arrays["head.weight"], train(augmented, 0)[0].arrays["head.weight"])
    request = ClientRequest(0, 1, "evaluate", "test", train(plain, 0, arrays=initial)[0].arrays)
    (without,), (augmented_reply,) = plain.evaluate([request]), augmented.evaluate([request])
    np.testing.assert_allclose(without.arrays["probabilities"], augmented_reply.arrays["probabilities"], atol=1e-6)
    np.testing.assert_array_equal(
        train(augmented, 0)[0].arrays["head.weight"], train(augmented, 0)[0].arrays["head.weight"]
    )


def test_the_frozen_backbone_stays_as_it_was():
    _, client = smoke()
    before = {name: value.clone() for name, value in client.model.backbone.state_dict().items()}
    train(client, 0, 1)
    for name, value in client.model.backbone.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(p.grad is None and not p.requires_grad for p in client.model.backbone.parameters())


def between_images(client, arrays):
    """Variance over test images of the mean of psi, averaged over its entries."""
    inputs = client.inputs.plain(client.data.batch(range(3), "test"))
    client.model.stack([arrays] * 3)
    eps = torch.randn(
        64, *inputs.mask.shape, client.model.generator.noise_dim, generator=torch.Generator().manual_seed(0)
    )
    eps = eps[:, :1, :1].expand_as(eps)  # the same noise for every image: what differs is due to the image
    with torch.no_grad():
        psi = client.model.generator.mixing(inputs.z, eps).mean(0)[inputs.mask]  # (images, r)
    return psi.var(0).mean().item()


LEARNING = (
    "clients=3",
    "rounds=5",
    "partition.max_train=40",
    "partition.test=0.1",
    "optim.local_epochs=3",
    "evaluate.every=5",
)


@pytest.fixture(scope="module")
def spread():
    """Between-image variance of psi, and what the labels cost, by the weight of the KL."""
    results = {}
    for beta in ("1e-5", "1e3"):
        client, progress, journal, _ = play(*LEARNING, f"inference.beta={beta}")
        losses = [row["log_likelihood"] for row in journal.rows if row["phase"] == "train"]
        results[beta] = between_images(client, progress.arrays), losses
        results["untrained"] = between_images(client, client.initial()), losses
    return results


def test_after_training_the_code_depends_on_the_image(spread):
    (trained, likelihood), (untrained, _) = spread["1e-5"], spread["untrained"]
    assert likelihood[-1] > likelihood[0] + 0.3, "it has learnt"
    assert untrained == pytest.approx(0.0, abs=1e-12)
    assert trained > 0.01


def test_under_a_huge_weight_of_the_kl_the_posterior_is_the_same_for_every_image(spread):
    assert spread["1e3"][0] < 0.05 * spread["1e-5"][0]


@pytest.mark.parametrize("personal", [["foo"], ["generator", "hea"]])
def test_parts_that_the_model_lacks_are_refused(personal):
    with pytest.raises(ConfigError, match="its parts are generator, head"):
        smoke(f"method.client.personal=[{','.join(personal)}]")


@pytest.mark.parametrize("method", METHODS)
def test_training_asks_for_no_test_image(method, monkeypatch):
    _, client = smoke(f"method={method}")
    client.prepare()
    asked, indices = set(), FederatedData.indices
    monkeypatch.setattr(
        FederatedData, "indices", lambda self, who, split: asked.add(split) or indices(self, who, split)
    )
    train(client, 0)
    assert "train" in asked
    assert asked <= {"train", "validation"}

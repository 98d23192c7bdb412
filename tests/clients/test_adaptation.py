"""Training on a client's own images before an evaluation: new clients, and methods that fine-tune."""

import numpy as np
import pytest
import torch
from journal import Journal
from smoke import smoke

from fedbayes import build
from fedbayes.comm.messages import ClientRequest
from fedbayes.simulation.in_process import InProcessGrid


def asked(client, partition, steps, arrays=None, split="test"):
    request = ClientRequest(partition, 3, "evaluate", split, arrays or client.initial(), adapt=steps)
    return client.evaluate([request])[0]


def test_no_steps_are_the_servers_parameters():
    _, client = smoke("method=fedvpt")
    (plain,) = client.evaluate([ClientRequest(1, 3, "evaluate", "test", client.initial())])
    np.testing.assert_array_equal(asked(client, 1, 0).arrays["probabilities"], plain.arrays["probabilities"])


def test_steps_are_those_of_the_local_training_on_the_clients_own_images():
    """One step from zero weights of the head, by hand: with SGD, `lr * z^T (onehot - 1/classes)` of the batch."""
    _, client = smoke(
        *("method=fedavg_head", "optim.name=sgd", "optim.head_lr=0.5", "optim.clip=null", "optim.batch_size=64")
    )
    adapted = client.adapt([client.initial()], [ClientRequest(2, 3, "evaluate", "test", client.initial(), adapt=1)])
    batch = client.data.batch([2], "train")
    z = client.inputs.plain(batch)
    with torch.no_grad():
        feature = client.model.backbone(z.tokens[0], None, client.model.start_layer)
    hits = torch.nn.functional.one_hot(batch.labels[0], 10) - 0.1
    expected = 0.5 * feature.T @ hits / len(hits)
    np.testing.assert_allclose(adapted[0]["head.weight"], expected.numpy(), atol=1e-5)


def test_more_steps_fit_the_clients_training_images_better():
    _, client = smoke("method=fedvpt")
    nll = [asked(client, 0, steps, split="train").metrics["nll"] for steps in (0, 5, 40)]
    assert nll[0] > nll[1] + 0.5
    assert nll[1] > nll[2] + 0.03


def test_what_was_adapted_is_forgotten_and_depends_on_no_neighbour():
    _, client = smoke("method=pfedbayespt")
    arrays = client.initial()
    alone = asked(client, 1, 3, arrays)
    requests = [ClientRequest(p, 3, "evaluate", "test", arrays, adapt=3) for p in (0, 1, 2)]
    together = client.evaluate(requests)[1]
    np.testing.assert_allclose(together.arrays["probabilities"], alone.arrays["probabilities"], atol=1e-5)
    np.testing.assert_array_equal(asked(client, 1, 3, arrays).arrays["probabilities"], alone.arrays["probabilities"])


@pytest.mark.parametrize("method", ["pfedbayespt", "fedper", "fedncm"])
def test_new_clients_train_in_no_round_and_are_evaluated_after_each_number_of_steps(method):
    cfg, client = smoke(f"method={method}", "clients=4", "evaluate.new_clients=1", "evaluate.adapt_steps=[0,2]")
    loop, journal, trained = build.loop(cfg, build.sampling(cfg)), Journal(), []
    inner = client.train
    client.train = lambda requests: trained.extend(r.partition for r in requests) or inner(requests)
    progress = loop.run(
        InProcessGrid(client, 4),
        build.strategy(cfg, loop),
        client.initial(),
        journal,
        build.partition_sizes(cfg, client.data),
    )
    (newcomer,) = loop.sampling.new_clients
    assert newcomer not in trained
    assert newcomer not in progress.final.partitions
    assert list(progress.new_clients) == [0, 2]
    assert {row["phase"] for row in journal.rows} >= {"new_clients_0", "new_clients_2"}
    before, after = progress.new_clients.values()
    assert set(before.partitions.tolist()) == {newcomer}
    assert len(before.labels) == len(client.data.indices(newcomer, "test"))
    same = torch.equal(before.pooled.probabilities, after.pooled.probabilities)
    assert same == (method == "fedncm"), "training-free methods have no steps"
    if method == "fedper":
        heads = [state["head.bias"] for state in progress.personal.values()]
        mean = {
            name: np.mean([state[name] for state in progress.personal.values()], 0, np.float64).astype(np.float32)
            for name in ("head.weight", "head.bias")
        }
        assert len(heads) == 3
        expected = asked(client, newcomer, 0, {**progress.arrays, **mean})
        np.testing.assert_allclose(before.pooled.probabilities, expected.arrays["probabilities"], atol=1e-5)


@pytest.mark.parametrize("method", ["fedbabu", "pfedbayes_product"])
def test_no_steps_are_none_where_a_method_has_steps_of_its_own(method):
    _, client = smoke(f"method={method}", "optim.finetune_steps=3")
    state = client.model.initial if method == "fedbabu" else client.initial()

    def adapted(steps):
        return client.adapt([state], [ClientRequest(0, 1, "evaluate", "test", state, adapt=steps)])[0]

    none, default = adapted(0), adapted(None)
    shared = [name for name in none if name in state]
    assert shared
    assert all(np.array_equal(none[name], state[name]) for name in shared)
    assert any(not np.array_equal(default[name], none[name]) for name in shared)

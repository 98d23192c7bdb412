"""What holds for every method that wraps prompt tuning: cohorts, stand-ins, repetition, resumption, new clients."""

import numpy as np
import pytest
from journal import Journal
from smoke import smoke

from fedbayes import build
from fedbayes.comm.messages import ClientRequest
from fedbayes.simulation.in_process import InProcessGrid

METHODS = ["sgpt", "pep_fedpt", "fedapt"]
UNEQUAL = ("clients=4", "partition.quantity=0.7", "partition.test=0.1")


def make(method, *overrides):
    return smoke(f"method={method}", *overrides)


def play(method, *overrides):
    cfg, client = make(method, *overrides)
    loop, journal = build.loop(cfg, build.sampling(cfg)), Journal()
    progress = loop.run(
        InProcessGrid(client, cfg.clients),
        build.strategy(cfg, loop),
        client.initial(),
        journal,
        build.partition_sizes(cfg, client.data),
    )
    return client, progress, journal, loop


def shared_after(client, cfg, rounds=1):
    """What the server has after some rounds with everybody."""
    loop = build.loop(cfg, build.sampling(cfg))
    strategy, shared = build.strategy(cfg, loop), client.initial()
    for server_round in range(1, rounds + 1):
        strategy.shared = shared
        strategy.aggregate(client.train([ClientRequest(p, server_round, "train", "", shared) for p in range(4)]))
        shared = strategy.shared
    return shared


@pytest.mark.parametrize("method", METHODS)
def test_neither_training_nor_predictions_depend_on_the_cohort(method):
    cfg, client = make(method, *UNEQUAL, "optim.name=sgd")
    shared = shared_after(client, cfg)

    def trained(*partitions):
        updates = client.train([ClientRequest(p, 2, "train", "", shared) for p in partitions])
        return next(update for update in updates if update.partition == 2)

    def asked(*partitions):
        updates = client.evaluate([ClientRequest(p, 2, "evaluate", "test", shared, adapt=1) for p in partitions])
        return next(update for update in updates if update.partition == 2)

    for cohort in ((2, 0), (3, 2, 1), (~0, 2, 1, 3)):
        for name, array in trained(2).arrays.items():
            np.testing.assert_allclose(trained(*cohort).arrays[name], array, atol=1e-5, err_msg=f"{name} in {cohort}")
        np.testing.assert_allclose(asked(*cohort).arrays["probabilities"], asked(2).arrays["probabilities"], atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_what_the_server_sends_has_the_same_names_and_shapes_after_every_round(method):
    cfg, client = make(method, *UNEQUAL)
    initial, later = client.initial(), shared_after(client, cfg, rounds=2)
    assert {name: (a.shape, a.dtype) for name, a in later.items()} == {
        name: (a.shape, a.dtype) for name, a in initial.items()
    }


@pytest.mark.parametrize("method", METHODS)
def test_equal_runs_are_equal_to_the_last_bit(method):
    (_, first, first_journal, _), (_, second, second_journal, _) = (play(method) for _ in range(2))
    assert first_journal.numbers == second_journal.numbers
    for name, array in first.arrays.items():
        assert second.arrays[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize("method", METHODS)
def test_clients_that_never_trained_predict_and_learn_from_their_own_images(method):
    client, progress, _, loop = play(
        *(method, "clients=4", "evaluate.new_clients=1", "evaluate.adapt_steps=[0,20]", "partition.test=0.1")
    )
    (stranger,) = loop.sampling.new_clients
    before, after = progress.new_clients.values()
    assert before.pooled.probabilities.isfinite().all()
    assert not before.pooled.probabilities.equal(after.pooled.probabilities)
    nll = []
    for steps in (0, 20):
        request = ClientRequest(stranger, 2, "evaluate", "train", progress.arrays, adapt=steps)
        nll.append(client.evaluate([request])[0].metrics["nll"])
    assert nll[1] < nll[0] - 0.1


@pytest.mark.parametrize("method", METHODS)
def test_a_personal_generator_stays_with_the_client(method):
    client, progress, _, _ = play(method, "method.client.personal=[generator]")
    assert sorted(progress.personal) == [0, 1, 2]
    bases = [
        {name: array for name, array in state.items() if name.startswith("generator.")}
        for state in progress.personal.values()
    ]
    assert all(bases)
    assert any(not np.array_equal(bases[0][name], bases[1][name]) for name in bases[0])
    assert not any(name.startswith("generator.") for name in client.initial())


@pytest.mark.parametrize("method", METHODS)
def test_a_few_rounds_teach_it_something(method):
    _, _, journal, _ = play(method, "rounds=4", "partition.max_train=40", "evaluate.every=4")
    losses = [row["log_likelihood"] for row in journal.rows if row["phase"] == "train"]
    assert losses[-1] > losses[0] + 0.3


@pytest.mark.parametrize(("method", "counted"), [("sgpt", "generator.choices"), ("pep_fedpt", "generator.prototypes")])
def test_what_is_counted_is_moved_by_no_server_optimiser_and_shortened_by_no_clipping(method, counted):
    def after(*overrides):
        return play(method, "rounds=1", *overrides)[1].arrays

    plain, adam, clipped = after(), after("server.name=adam"), after("update_clipping.max_norm=0.01")
    assert plain[counted].any()
    np.testing.assert_array_equal(adam[counted], plain[counted])
    np.testing.assert_array_equal(clipped[counted], plain[counted])
    assert not np.array_equal(clipped["head.weight"], plain["head.weight"])

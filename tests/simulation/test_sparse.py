"""Clients of sparse training: what they train, send and measure, through whole rounds."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from breaking import broken, result
from journal import Journal
from smoke import play_rounds, smoke

import fedbayes
from fedbayes import build
from fedbayes.arrays import block_of
from fedbayes.comm.messages import ClientRequest
from fedbayes.config.compose import compose
from fedbayes.errors import ConfigError
from fedbayes.run import resume

DEEP = ("prompts.depth=deep", "prompts.start_layer=0")


def assembled(*overrides):
    return build.assemble(compose(["experiment=smoke", *overrides]), build.NoEngine())


def requests(client, partitions=(0, 1, 2), state=None):
    return [ClientRequest(p, 1, "train", "train", state or client.initial()) for p in partitions]


def moved_state(client):
    rng = np.random.default_rng(0)
    return {
        name: array + 0.1 * rng.standard_normal(array.shape).astype(array.dtype)
        for name, array in client.initial().items()
    }


def played(*words):
    cfg, client = smoke(*words)
    journal = Journal()
    return play_rounds(cfg, client, journal), journal


def test_all_blocks_are_the_method_without_it_to_the_bit():
    (plain, rows), (every, others) = (
        played("method=fedlora", *sparse) for sparse in ([], ["sparse=random", "sparse.fraction=1"])
    )
    assert rows.numbers == others.numbers
    for name, array in plain.arrays.items():
        assert array.tobytes() == every.arrays[name].tobytes(), name


def test_all_blocks_of_deep_prompts_predict_as_without_it_to_the_bit():
    # A clipped gradient's norm is summed over tensors, which are others here.
    words = ("method=pfedbayespt", *DEEP, "optim.clip=null")
    finals = [played(*words, *sparse)[0] for sparse in ([], ["sparse=random", "sparse.fraction=1"])]
    plain, every = (final.final.pooled.probabilities.numpy().tobytes() for final in finals)
    assert plain == every


@pytest.mark.parametrize(
    "words",
    [
        ("method=fedlora", "optim.weight_decay=0.1"),
        ("method=pfedbayespt", *DEEP, "optim.name=sgd", "optim.proximal=1"),
    ],
    ids=" ".join,
)
def test_only_selected_blocks_move_and_neighbours_change_nothing(words):
    client = assembled(*words, "sparse=random").client
    state = moved_state(client)
    asked = requests(client, state=state)
    updates = client.train(asked)
    learnt = client.model.unstack()
    sets = [{block_of(name) for name in update.arrays} - {None} for update in updates]
    assert len({frozenset(blocks) for blocks in sets}) > 1
    for c, update in enumerate(updates):
        assert len(sets[c]) == 2
        for name, array in learnt[c].items():
            is_same = array.tobytes() == state[name].tobytes()
            in_use = name != "generator.base" and array.size
            if block_of(name) in {None, *sets[c]}:
                assert not in_use or not is_same, name
                assert update.arrays[name].tobytes() == array.tobytes()
            else:
                assert is_same, name
                assert name not in update.arrays
        (alone,) = client.train([asked[c]])
        for name, array in alone.arrays.items():
            np.testing.assert_allclose(array, update.arrays[name], atol=2e-6, err_msg=name)


def test_losses_under_suppression_are_those_of_plain_and_of_frozen_weights():
    words = ("method=fedlora", "sparse=ist", "sparse.suppressed=1")
    kept = assembled(*words, "sparse.suppressed=0.75", "sparse.suppression=1").client
    state = moved_state(kept)
    losses = kept.train(requests(kept, state=state))[1].metrics
    assert losses["suppressed_loss_0"] == losses["suppressed_loss_1"] == losses["suppressed_loss_2"]
    frozen = {name: np.zeros_like(a) if name.startswith("weights.b") else a for name, a in state.items()}
    again = kept.train(requests(kept, state=frozen))[1].metrics["suppressed_loss_0"]
    assert again != losses["suppressed_loss_0"]
    halved = assembled(*words, "sparse.suppressed=0.25", "sparse.suppression=0").client
    only = {name: a if ".blocks.2." in name or not name.startswith("weights.b") else 0 * a for name, a in state.items()}
    sets = halved._choice.suppressed_sets(range(4), np.zeros(4), 1)
    metrics = halved.train(requests(halved, state=only))[1].metrics
    for j, blocks in enumerate(sets):
        plain = kept.train(requests(kept, state=only))[1].metrics["suppressed_loss_0"]
        assert (metrics[f"suppressed_loss_{j}"] == again) if 2 in blocks else (metrics[f"suppressed_loss_{j}"] == plain)


def test_before_anything_is_learnt_all_candidates_are_alike_and_importance_stays_zero():
    parts = assembled("method=fedlora", "sparse=ist")
    parts.strategy.shared = parts.client.initial()
    asked = parts.strategy.requests(1, [0, 1, 2], "train")
    parts.strategy.aggregate(
        parts.client.train([replace(r, arrays=asked[r.partition]) for r in requests(parts.client)])
    )
    assert not parts.strategy.importance.any()


def test_bytes_are_those_of_the_head_and_the_selected_blocks_and_a_dry_run_knows_them():
    words = ["experiment=smoke", "method=fedlora", "sparse=random"]
    estimated = fedbayes.simulate([*words, "dry_run=true"])
    cfg, client = smoke(*words[1:])
    progress = play_rounds(cfg, client)
    sizes = {name: array.nbytes for name, array in client.initial().items()}
    blocks = sum(size for name, size in sizes.items() if block_of(name) is not None)
    head = sum(sizes.values()) - blocks
    numbers = (head + blocks // 2) * cfg.clients * cfg.rounds
    overhead = progress.bytes_up - numbers  # names and shapes
    assert 0 < overhead < 200 * cfg.clients * cfg.rounds * len(sizes)
    assert estimated["bytes_up"] * cfg.rounds == progress.bytes_up
    assert progress.bytes_up <= 0.52 * progress.bytes_down


@pytest.mark.usefixtures("no_pictures")
def test_a_run_goes_on_with_the_importance_it_had_and_its_page_shows_it(tmp_path, monkeypatch):
    words = ["experiment=smoke", "method=fedvpt_deep", *DEEP, "sparse=ist", "rounds=3", "sparse.fraction=0.25"]
    summary = fedbayes.simulate([*words, f"run_dir={tmp_path / 'whole'}"])
    broken([*words, f"run_dir={tmp_path / 'parts'}"], monkeypatch, 2)
    resume(tmp_path / "parts")
    assert result(tmp_path / "parts") == result(tmp_path / "whole")
    importance = [summary["sparse"][f"importance_{b}"] for b in range(4)]
    assert summary["sparse"]["name"] == "ist"
    assert np.ptp(importance) > 0
    assert "Importance of blocks" in (tmp_path / "whole" / "report.html").read_text()
    assert len(fedbayes.load(tmp_path / "whole").predict(np.zeros((1, 3, 16, 16), np.uint8)).labels) == 1


@pytest.mark.parametrize(
    "words",
    [
        ["attack=sign_flip", "attack.fraction=0.3", "sparse=ist", "method.strategy.aggregate=krum"],
        ["faults.nan=0.3", "faults.drop=0.2", "sparse=ist", "update_clipping.max_norm=1", "server.name=adam"],
        ["sparse=random", "method.strategy._target_=flwr.serverapp.strategy.FedAvg"],
        ["sparse=random", "privacy.noise=1", "server.average=2"],
        ["sparse=ist", "emulator=uniform", "method.weights.start_layer=2"],
        ["sparse=ist", "method=fedsa_lora", "evaluate.new_clients=1"],
        ["sparse=ist", "method=fedadapter"],
        ["sparse=ist", "method=fedins"],
        ["sparse=random", "method=pfedbayespt_lora", "simulation.cohort=2", "optim.finetune_steps=1"],
    ],
    ids=" ".join,
)
def test_it_works_together_with(words):
    if words[1].startswith("privacy"):
        pytest.importorskip("dp_accounting", reason="needs fedbayes[dp]")
    cfg, client = smoke("method=fedlora", *words)
    before, journal = client.initial(), Journal()
    progress = play_rounds(cfg, client, journal)
    assert bool(progress.final.pooled.probabilities.isfinite().all())
    assert any(not np.array_equal(before[name], array) for name, array in progress.arrays.items())
    train = [row for row in journal.numbers if row["phase"] == "train"]
    assert all(row["bytes_up"] < row["bytes_down"] for row in train)
    assert ("importance_3" in train[-1]) is ("sparse=ist" in words)


def test_less_is_saved_for_gradients_the_higher_the_lowest_selected_block():
    parts = assembled("method=fedvpt", *DEEP, "sparse=random")
    model, saved = parts.client.model, []
    tokens = model.entering(parts.data.images.images[:4]).unsqueeze(0)

    def count(tensor):
        saved[-1] += tensor.nbytes
        return tensor

    for blocks in ({0, 1, 2, 3}, {0, 3}, {1, 3}, {2, 3}, {3}):
        saved.append(0)
        with model.restricted([frozenset(blocks)]), torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
            model.logits(tokens, model.generator.plain(tokens[:, :, 0]))
    assert saved[1] <= saved[0]
    assert saved[1] > 1.15 * saved[2] > 1.15 * saved[3] > 1.15 * saved[4]


@pytest.mark.parametrize(
    ("overrides", "place"),
    [
        (["method=fedvpt"], "prompts.depth=deep"),
        (["method=ditto"], "Ditto"),
        (["method=fedvpt_deep", "generator.kind=deterministic", "generator.code_dim=full"], r"generator\.code_dim"),
    ],
    ids=" ".join,
)
def test_what_has_no_blocks_is_rejected_by_name(overrides, place):
    with pytest.raises(ConfigError, match=place):
        assembled("sparse=random", *overrides)

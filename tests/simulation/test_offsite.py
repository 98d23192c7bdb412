"""Offsite tuning: clients train on the emulator alone, and what they learnt is plugged into the full ViT."""

import numpy as np
import pytest
import torch
from journal import Journal
from smoke import play_rounds, smoke

import fedbayes
from fedbayes import build
from fedbayes.comm.messages import ClientRequest
from fedbayes.config.compose import compose
from fedbayes.data.partitions.owner import set_aside
from fedbayes.errors import ConfigError, PartitionError

UNIFORM = ("emulator=uniform",)


def assembled(*overrides):
    cfg = compose(["experiment=smoke", *overrides])
    return cfg, build.assemble(cfg, build.NoEngine())


def requests(parts, kind, split="train"):
    return [ClientRequest(p, 1, kind, split, parts.client.initial()) for p in range(3)]


@pytest.mark.parametrize("method", ["fedvpt_deep", "pfedbayespt", "fedavg_head"])
def test_with_nothing_dropped_a_run_is_the_same_without_an_emulator_to_the_bit(method):
    journals, finals = [], []
    for emulator in (["emulator=none"], [*UNIFORM, "emulator.keep=1"]):
        cfg, client = smoke(f"method={method}", *emulator)
        journals.append(Journal())
        finals.append(play_rounds(cfg, client, journals[-1]))
    plain, emulated = finals
    for name, array in plain.arrays.items():
        assert array.tobytes() == emulated.arrays[name].tobytes(), name
    probabilities = plain.final.pooled.probabilities.numpy().tobytes()
    assert probabilities == emulated.final.pooled.probabilities.numpy().tobytes()
    assert probabilities == emulated.final.emulator_probabilities.numpy().tobytes()
    for before, after in zip(journals[0].numbers, journals[1].numbers, strict=True):
        assert before == {name: value for name, value in after.items() if name in before}


@torch.no_grad()
def spoil(vit):
    for block in vit.blocks[:2]:
        for parameter in block.parameters():
            parameter.fill_(torch.nan)


def test_nan_in_the_emulator_after_training_changes_no_prediction_of_the_full_vit():
    _, parts = assembled(*UNIFORM)
    parts.client.train(requests(parts, "train"))
    _, other = assembled(*UNIFORM)
    other.client.train(requests(other, "train"))
    spoil(other.tuned.backbone.vit)
    healthy, spoilt = (p.client.evaluate(requests(p, "evaluate", "test"))[0] for p in (parts, other))
    assert healthy.arrays["probabilities"].tobytes() == spoilt.arrays["probabilities"].tobytes()


def test_nan_in_the_lower_blocks_of_the_full_vit_changes_nothing_that_clients_send():
    replies = []
    for is_spoilt in (False, True):
        _, parts = assembled(*UNIFORM)
        if is_spoilt:
            spoil(parts.model.backbone.vit)
        replies.append(parts.client.train(requests(parts, "train")))
    for healthy, spoilt in zip(*replies, strict=True):
        assert healthy.metrics == spoilt.metrics
        for name, array in healthy.arrays.items():
            assert array.tobytes() == spoilt.arrays[name].tobytes(), name


def test_no_weight_of_either_vit_is_sent():
    _, parts = assembled(*UNIFORM)
    assert {name.split(".")[0] for name in parts.client.initial()} == {"generator", "head"}


def test_the_metrics_of_the_emulator_are_those_of_an_ordinary_client_on_it():
    cfg, parts = assembled(*UNIFORM)
    ordinary = build.client(cfg, parts.data, parts.tuned)
    asked = requests(parts, "evaluate", "test")
    for offsite, plain in zip(parts.client.evaluate(asked), ordinary.evaluate(asked), strict=True):
        assert {name: offsite.metrics[f"emulator_{name}"] for name in ("accuracy", "nll")} == {
            name: plain.metrics[name] for name in ("accuracy", "nll")
        }


def test_parameters_are_adapted_on_the_emulator():
    _, parts = assembled(*UNIFORM, "method=fedavg_ft", "optim.finetune_steps=2")
    spoil(parts.model.backbone.vit)
    asked = requests(parts, "evaluate", "test")
    adapted = parts.client.adapt([request.arrays for request in asked], asked)
    assert all(np.isfinite(array).all() for state in adapted for array in state.values())
    assert not np.array_equal(adapted[0]["head.weight"], asked[0].arrays["head.weight"])


@pytest.mark.parametrize(
    "overrides",
    [
        ["attack=sign_flip", "method.strategy.aggregate=krum"],
        ["attack=backdoor", "update_clipping.max_norm=1"],
        ["faults.drop=0.3", "faults.nan=0.2", "simulation.retries=9"],
        ["privacy.noise=0.1"],
        ["evaluate.held_out=[noise]", "evaluate.new_clients=1", "evaluate.adapt_steps=[0,1]"],
        ["sparse=random", "prompts.depth=deep"],
        ["method=fedncm"],
        ["method=ditto", "evaluate.temperature=true", "head.prior=estimated"],
    ],
    ids=" ".join,
)
@pytest.mark.usefixtures("no_pictures")
def test_it_works_with_what_else_a_run_may_have(overrides, tmp_path):
    summary = fedbayes.simulate(["experiment=smoke", *UNIFORM, *overrides, f"run_dir={tmp_path / 'run'}"])
    assert np.isfinite([summary["final"]["emulator"]["nll"], summary["final"]["gap"]["nll"]["mean"]]).all()


@pytest.mark.parametrize(
    ("overrides", "place"),
    [
        (["method=knn_per"], "KNNPer"),
        (["method=fedlora"], r"method\.weights\.start_layer=0"),
        (["method=fedavg_full"], r"method\.weights\.start_layer=None"),
        (["prompts.start_layer=0"], r"prompts\.start_layer"),
        (["emulator.keep=0.4"], r"emulator\.keep"),
        (["emulator.keep=0"], r"emulator\.keep"),
    ],
    ids=" ".join,
)
def test_what_does_not_fit_is_rejected_by_name(overrides, place):
    with pytest.raises(ConfigError, match=place):
        assembled(*UNIFORM, *overrides)


def test_a_size_without_an_emulator_is_rejected():
    with pytest.raises(ConfigError, match=r"emulator\.keep=0\.5"):
        assembled("emulator.keep=0.5")


@pytest.mark.parametrize("basis", ["kfac", "weight"])
def test_an_emulator_of_the_owners_images_is_the_same_each_time_and_whatever_is_cached(basis):
    words = ["emulator=gradot", f"emulator.basis={basis}", "owner.images=60"]
    probabilities = []
    for cache in (0, 2000):
        cfg, client = smoke(*words, f"simulation.cache_mb={cache}")
        final = play_rounds(cfg, client).final
        probabilities.append((final.pooled.probabilities, final.emulator_probabilities))
    for first, second in zip(*probabilities, strict=True):
        assert torch.equal(first, second)
    assert not torch.equal(*probabilities[0])


def test_low_rank_changes_of_raw_blocks_are_tuned_on_an_emulator():
    cfg, client = smoke(*UNIFORM, "method=fedlora", "method.weights.start_layer=2")
    final = play_rounds(cfg, client).final
    assert final.emulator_probabilities.shape == final.pooled.probabilities.shape


def test_images_of_the_owner_are_of_no_client_and_the_same_for_equal_seeds():
    data = [build.data(compose(["experiment=smoke", "owner.images=50"])) for _ in range(2)]
    assert data[0].owner == data[1].owner
    assert len(set(data[0].owner)) == 50
    used = {int(i) for split in data[0].clients for ids in split.parts().values() for i in ids}
    assert not used & set(data[0].owner)
    labels = data[0].images.labels
    client = data[0].clients[0].train
    assert labels[client].bincount(minlength=10).tolist() == data[0].class_counts[0].tolist()


def test_images_that_a_file_calls_test_stay_with_the_clients():
    images = build.data(compose(["experiment=smoke"])).images
    given = images.given_split.clone()
    given[100:] = 2
    image_set = type(images)(**{**vars(images), "given_split": given})
    owner, others = set_aside(image_set, 40, 0)
    assert owner.max() < 100
    assert sorted([*owner, *others]) == list(range(len(images)))
    with pytest.raises(PartitionError, match=r"owner\.images=100"):
        set_aside(image_set, 100, 0)


@pytest.mark.usefixtures("no_pictures")
def test_a_run_says_what_the_emulator_is_worth_and_is_loaded_with_the_full_vit(tmp_path):
    words = ["experiment=smoke", *UNIFORM, "owner.images=20"]
    estimated = fedbayes.simulate([*words, "dry_run=true"])
    summary = fedbayes.simulate([*words, f"run_dir={tmp_path / 'run'}"])
    emulator, final = summary["emulator"], summary["final"]
    assert (emulator["size"], emulator["predicts"]) == (0.5, "full")
    assert emulator["numbers"] * 2 == emulator["numbers_full"]
    assert estimated["emulator_bytes"] == emulator["bytes"]
    gap = final["accuracy"]["mean"] - final["emulator"]["accuracy"]["mean"]
    assert final["gap"]["accuracy"]["mean"] == pytest.approx(gap)
    assert final["gap"]["accuracy"]["low"] <= gap <= final["gap"]["accuracy"]["high"]
    assert final["gap"]["nll"]["mean"] != 0
    assert "plugged in minus emulator" in (tmp_path / "run" / "report.html").read_text()
    run = fedbayes.load(tmp_path / "run")
    images = run.clients.client.data.images.images[:4]
    before = run.predict(images).probabilities
    parts = build.assemble(run.config, build.NoEngine())
    plain = build.client(run.config, parts.data, parts.model)  # on the full ViT alone
    again = fedbayes.load(tmp_path / "run")
    again.clients.client = plain
    np.testing.assert_array_equal(before, again.predict(images).probabilities)

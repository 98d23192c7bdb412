"""Changes of the ViT end to end: plain torch's steps, FedAvg's averages, and only what must travel."""

import copy

import numpy as np
import pytest
import torch
from journal import Journal
from smoke import play_rounds, smoke
from torch.nn import functional as F

import fedbayes
from fedbayes.comm.messages import ClientRequest

pytestmark = pytest.mark.usefixtures("no_pictures")

LORA, FULL = "method=fedlora", "method=fedavg_full"
FFA = [LORA, "method.weights.freeze_a=true"]
VARIANTS = [[LORA], FFA, [LORA, "method.weights.start_layer=2"], [FULL]]


def play(*overrides):
    cfg, client = smoke(*overrides)
    journal = Journal()
    progress = play_rounds(cfg, client, journal)
    return client, progress, journal


def train(client, *partitions, arrays=None):
    arrays = arrays or client.initial()
    return client.train([ClientRequest(p, 1, "train", "", arrays) for p in partitions])


def test_a_step_of_full_fine_tuning_is_plain_torchs():
    sgd = ("optim.name=sgd", "optim.momentum=0", "optim.clip=null", "optim.weight_decay=0")
    rates = ("optim.lr=0.05", "optim.head_lr=0.2")
    _, client = smoke(FULL, *sgd, *rates, "optim.local_epochs=1", "optim.batch_size=64", "head.init_std=0.3")
    vit, images = copy.deepcopy(client.model.backbone.vit), client.data.images
    head = torch.nn.Linear(client.model.backbone.dim, 10)
    head.weight.data = torch.from_numpy(client.initial()["head.weight"].T.copy())
    head.bias.data = torch.from_numpy(client.initial()["head.bias"][0].copy())
    index = client.data.indices(1, "train")
    pixels = (images.images[index].float() / 255 - client.model.backbone.mean) / client.model.backbone.std
    vit.requires_grad_(True)
    F.cross_entropy(head(vit(pixels)), images.labels[index]).backward()
    (update,) = train(client, 1)
    for name, parameter in vit.named_parameters():
        moved = update.arrays[f"weights.{name}"] - parameter.detach().numpy()
        np.testing.assert_allclose(moved, -0.05 * parameter.grad.numpy(), rtol=0, atol=2e-6, err_msg=name)
    assert vit.patch_embed.proj.weight.grad.abs().max() > 1e-3, "far above the tolerance"
    moved = update.arrays["head.weight"].T - head.weight.detach().numpy()
    np.testing.assert_allclose(moved, -0.2 * head.weight.grad.numpy(), rtol=0, atol=2e-6)


@pytest.mark.parametrize("variant", VARIANTS, ids=" ".join)
def test_a_clients_result_does_not_depend_on_its_cohort(variant):
    _, client = smoke(*variant, "clients=4", "optim.name=sgd", "partition.quantity=0.7")
    (alone,) = train(client, 2)
    for cohort in ((2, 0), (3, 2, 1), (~0, 2)):
        together = next(update for update in train(client, *cohort) if update.partition == 2)
        for name, array in alone.arrays.items():
            np.testing.assert_allclose(together.arrays[name], array, atol=1e-5, err_msg=f"{name} in {cohort}")


@pytest.mark.parametrize("method", [LORA, FULL])
def test_a_neighbour_of_nans_changes_no_bit(method):
    _, client = smoke(method)
    arrays = client.initial()
    nan = {name: np.full_like(value, np.nan) for name, value in arrays.items()}
    results = []
    for neighbour in (arrays, nan):
        requests = [ClientRequest(p, 1, "train", "", state) for p, state in ((0, neighbour), (1, arrays))]
        results.append(client.train(requests)[1])
    for name, array in results[0].arrays.items():
        np.testing.assert_array_equal(results[1].arrays[name], array, err_msg=name)


@pytest.mark.parametrize("variant", VARIANTS, ids=" ".join)
def test_the_server_averages_by_images(variant):
    unequal = ("partition.quantity=0.3", "partition.max_train=null", "partition.test=0.9", "partition.validation=0.05")
    client, progress, _ = play(*variant, *unequal, "rounds=1", "optim.local_epochs=1")
    updates = train(client, 0, 1, 2)
    counts = np.array([len(client.data.indices(p, "train")) for p in range(3)])
    assert len(set(counts)) > 1
    for name, array in progress.arrays.items():
        stacked = np.stack([update.arrays[name].astype(np.float64) for update in updates])
        mean = np.tensordot(counts / counts.sum(), stacked, 1)
        np.testing.assert_allclose(array, mean, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("variant", VARIANTS, ids=" ".join)
def test_two_rounds_give_the_same_bits_twice_and_the_likelihood_rises(variant):
    runs = [play(*variant, "optim.local_epochs=3")[1:] for _ in range(2)]
    (first_progress, first), (second_progress, second) = runs
    assert first.numbers == second.numbers
    for name, array in first_progress.arrays.items():
        assert array.tobytes() == second_progress.arrays[name].tobytes(), name
    likelihood = [row["log_likelihood"] for row in first.rows if row["phase"] == "train"]
    assert likelihood[1] > likelihood[0] + 0.05


def test_only_a_b_and_head_travel_and_with_a_frozen_a_not_even_that():
    sizes = {}
    for name, variant in {"lora": [LORA], "ffa": FFA, "full": [FULL]}.items():
        _, client = smoke(*variant)
        factor_arrays = {name: array for name, array in train(client, 0)[0].arrays.items() if array.size}
        assert {name: array.shape for name, array in client.initial().items() if array.size} == {
            name: array.shape for name, array in factor_arrays.items()
        }
        sizes[name] = sum(array.size for array in factor_arrays.values())
        factors = {parameter.split(".")[1] for parameter in factor_arrays if parameter.startswith("weights.")}
        assert name == "full" or factors == {"lora": {"a", "b"}, "ffa": {"b"}}[name]
    blocks, width, rank, head = 4, 96, 16, 96 * 10 + 10
    assert sizes["ffa"] == blocks * rank * (3 * width + width) + head
    assert sizes["lora"] == sizes["ffa"] + blocks * rank * 2 * width
    for method, size in {
        "fedssf": blocks * 2 * (2 + 3 + 1 + 4 + 1) * width + 2 * width,
        "fedadapter": blocks * 2 * 16 * width,
        "fedins": 25 * (blocks * 2 * (2 + 3 + 1 + 4 + 1) * width + 2 * width + width),
    }.items():
        (update,) = train(smoke(f"method={method}")[1], 0)
        assert sum(array.size for array in update.arrays.values()) == size + head
    vit = client.model.backbone.vit
    assert sizes["full"] == sum(p.numel() for p in vit.parameters()) + head


@pytest.mark.parametrize(
    ("method", "parts"), [(LORA, ("weights.a.blocks.3", "weights.b.blocks.3")), (FULL, ("weights.blocks.3",))]
)
def test_blocks_and_personal_parts_go_by_the_names_of_weights(method, parts):
    _, client = smoke(method, f"optim.blocks=[[head],[{','.join(parts)}]]", "method.client.personal=[weights]")
    (update,) = train(client, 0)
    assert not any(name.startswith("weights.") for name in update.arrays)
    moved = {name for name, value in update.personal.items() if not np.array_equal(value, client.model.initial[name])}
    assert moved
    assert all(name.startswith(tuple(f"{part}." for part in parts)) for name in moved)


@pytest.mark.parametrize("method", [LORA, FULL])
def test_steps_before_an_evaluation_fit_the_own_images_and_are_forgotten(method):
    _, client = smoke(method)
    arrays = client.initial()

    def nll(steps):
        (reply,) = client.evaluate([ClientRequest(0, 1, "evaluate", "train", arrays, adapt=steps)])
        return reply.metrics["nll"]

    before = nll(0)
    assert before > nll(20) + 0.3
    assert nll(0) == before


@pytest.mark.parametrize("variant", [[LORA, "method.weights.start_layer=2"], [FULL]], ids=" ".join)
def test_a_cache_is_only_that_and_augmentation_acts_on_what_is_learnt_from(variant):
    replies = {}
    for override in ("simulation.cache_mb=2048", "simulation.cache_mb=0", "augment.shift=0.2"):
        _, client = smoke(*variant, "optim.name=sgd", override)
        replies[override] = train(client, 0)[0].arrays
    cached, computed, augmented = replies.values()
    for name, array in cached.items():
        np.testing.assert_allclose(computed[name], array, atol=1e-5, err_msg=name)
    assert not np.allclose(augmented["head.weight"], cached["head.weight"], atol=1e-4)


def test_the_backbone_stays_as_it_was():
    _, client = smoke(FULL)
    before = {name: value.clone() for name, value in client.model.backbone.state_dict().items()}
    train(client, 0, 1)
    for name, value in client.model.backbone.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(p.grad is None and not p.requires_grad for p in client.model.backbone.parameters())


@pytest.mark.parametrize("variant", [FFA, [FULL, "method.client.personal=[head]"]], ids=" ".join)
def test_a_finished_run_predicts_as_its_clients_did(variant, tmp_path):
    fedbayes.simulate(["experiment=smoke", *variant, f"run_dir={tmp_path / 'run'}"])
    run = fedbayes.load(tmp_path / "run")
    client, checkpoint = run.clients.client, run.clients.checkpoint
    index = client.data.indices(1, "test")
    predicted = run.predict(client.data.images.images[index], partition=1).probabilities
    arrays = {**checkpoint.server, **checkpoint.personal.get(1, {})}
    (expected,) = client.evaluate([ClientRequest(1, 2, "evaluate", "test", arrays)])
    np.testing.assert_allclose(predicted, expected.arrays["probabilities"], atol=1e-6)
    assert expected.metrics["accuracy"] > 0.2, "it has learnt: ten classes"


@pytest.mark.parametrize("method", ["method=fedvpt_lora", "method=deterministic_lora", "method=pfedbayespt_lora"])
@pytest.mark.parametrize("part", ["generator", "weights", "head"])
def test_prompts_low_rank_changes_and_head_learn_each_at_its_rate(method, part):
    rates = {"generator": "optim.lr", "weights": "optim.weights_lr", "head": "optim.head_lr"}
    _, client = smoke(
        method, "head.init_std=0.3", *(f"{key}={0.01 if name == part else 0}" for name, key in rates.items())
    )
    start = client.initial()
    (update,) = train(client, 1)
    moved = {name for name, array in update.arrays.items() if not np.array_equal(array, start[name])}
    assert {name.split(".")[0] for name in moved} == {part}


def test_an_untrained_adapter_changes_no_prediction_of_pfedbayespt():
    probabilities = []
    for overrides in (["method=pfedbayespt"], ["method=pfedbayespt_lora", "method.weights.start_layer=2"]):
        _, client = smoke(*overrides, "head.init_std=0.3", "prompts.start_layer=2")
        (update,) = client.evaluate([ClientRequest(0, 1, "evaluate", "test", client.initial())])
        probabilities.append(update.arrays["probabilities"])
    np.testing.assert_array_equal(*probabilities)

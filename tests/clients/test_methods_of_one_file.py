"""Methods that are a configuration of prompt tuning: what defines each, seen in what it sends, keeps and trains."""

import numpy as np
import pytest
from smoke import smoke

from fedbayes import build
from fedbayes.comm.messages import ClientRequest
from fedbayes.config.compose import compose


def make(method, *overrides):
    return smoke(f"method={method}", *overrides)[1]


def train(client, *partitions, arrays=None, server_round=1):
    arrays_sent = client.initial() if arrays is None else arrays
    return client.train([ClientRequest(p, server_round, "train", "", arrays_sent) for p in partitions])


@pytest.mark.parametrize(
    ("method", "shared", "personal"),
    [
        ("fedvpt", {"generator", "head"}, set()),
        ("fedprox", {"generator", "head"}, set()),
        ("centralised", {"generator", "head"}, set()),
        ("pfedbayespt_personal", {"generator"}, {"head"}),
        ("gaussian_prompts_personal", {"generator"}, {"head"}),
        ("deterministic_prompts_personal", {"generator"}, {"head"}),
        ("fedper", {"generator"}, {"head"}),
        ("fedrep", {"generator"}, {"head"}),
        ("fedbabu", {"generator"}, {"head"}),
        ("local_head", {"generator"}, {"head"}),
        ("local_vpt", set(), {"generator", "head"}),
        ("fedavg_head", {"generator", "head"}, set()),
    ],
)
def test_what_is_sent_and_what_is_kept(method, shared, personal):
    (update,) = train(make(method), 0)
    assert {name.split(".")[0] for name in update.arrays} == shared
    assert {name.split(".")[0] for name in update.personal} == personal


def test_fedprox_with_mu_0_is_fedvpt_and_a_larger_mu_stays_nearer_to_what_was_sent():
    start = make("fedprox").initial()

    def moved(mu):
        plainly = (
            "optim.name=sgd",
            "optim.momentum=0",
            "optim.clip=null",
            "optim.local_epochs=4",
            "optim.lr=0.01",
        )
        (update,) = train(make("fedprox", f"optim.proximal={mu}", *plainly), 1)
        return sum(float(np.abs(array - start[name]).sum()) for name, array in update.arrays.items())

    (plain,), (loose,) = train(make("fedvpt"), 1), train(make("fedprox", "optim.proximal=0"), 1)
    for name, array in plain.arrays.items():
        np.testing.assert_array_equal(loose.arrays[name], array)
    # For a constant gradient 4 steps at rate .01 become (1 - r^4) / (1 - r), r = 1 - .01 mu.
    assert moved(90) < 0.5 * moved(0)
    assert moved(10) < 0.95 * moved(0)


def test_fedrep_trains_the_head_first_and_the_prompts_against_the_head_it_has_found():
    """By its definition: the head of a FedRep client is that of a client which trains nothing but the head."""
    rep, head_alone = make("fedrep"), make("fedrep", "optim.blocks=[[head]]")
    (both,), (first,) = train(rep, 2), train(head_alone, 2)
    np.testing.assert_array_equal(both.personal["head.weight"], first.personal["head.weight"])
    np.testing.assert_array_equal(first.arrays["generator.base"], head_alone.initial()["generator.base"])
    assert not np.array_equal(both.arrays["generator.base"], first.arrays["generator.base"])


def test_fedbabu_never_trains_its_random_head_but_fine_tunes_it_before_an_evaluation():
    client = make("fedbabu")
    (update,) = train(client, 0)
    np.testing.assert_array_equal(update.personal["head.weight"], client.model.initial["head.weight"])
    assert client.model.initial["head.weight"].std() > 0.05
    request = ClientRequest(0, 1, "evaluate", "test", update.arrays, update.personal)
    (tuned,) = client.adapt([{**update.arrays, **update.personal}], [request])
    assert not np.array_equal(tuned["head.weight"], update.personal["head.weight"])
    assert not np.array_equal(tuned["generator.base"], update.arrays["generator.base"])


def test_all_random_heads_are_equal():
    heads = [make("fedbabu").model.initial["head.weight"] for _ in range(2)]
    np.testing.assert_array_equal(*heads)


def test_centralised_training_sees_everybodys_images_and_evaluation_only_the_clients_own():
    client = make("centralised")
    images = sum(len(client.data.indices(p, "train")) for p in range(3))
    (update,) = train(client, 1)
    assert update.num_examples == images
    (answer,) = client.evaluate([ClientRequest(1, 1, "evaluate", "test", update.arrays)])
    assert answer.num_examples == len(client.data.indices(1, "test"))


def test_centralised_runs_one_client_a_round():
    cfg = compose(["experiment=smoke", "method=centralised", "clients=3"])
    assert build.loop(cfg, build.sampling(cfg)).sampling.per_round == 1


def test_local_head_is_a_probe_of_the_frozen_features():
    client = make("local_head")
    assert client.model.start_layer == client.model.backbone.depth
    assert client.initial()["generator.base"].size == 0


def test_fedvpt_deep_has_prompts_of_its_own_for_each_block_and_fedvpt_for_one():
    deep, shallow = make("fedvpt_deep", "prompts.start_layer=1"), make("fedvpt", "prompts.start_layer=1")
    assert deep.initial()["generator.base"].shape[0] == deep.model.backbone.depth - 1
    assert shallow.initial()["generator.base"].shape[0] == 1


@pytest.mark.parametrize("method", ["deterministic_prompts", "gaussian_prompts"])
def test_instance_wise_ablations_have_a_posterior_or_none(method):
    """A Gaussian pays a KL for each image, deterministic prompts pay nothing; neither has a mixing."""
    (update,) = train(make(method), 0)
    assert ("kl" in update.metrics) == (method == "gaussian_prompts")
    assert "effective_components" not in update.metrics
    assert any(name.startswith("generator.location") for name in update.arrays), "prompts depend on the image"

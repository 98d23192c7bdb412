"""SGPT: choice, prompts and key term by hand, what each block trains, and what the client says of its choices."""

import numpy as np
import pytest
import torch
from generators import special
from smoke import smoke

from clients.sgpt import FLOOR, GroupPrompts
from fedbayes.comm.messages import ClientRequest
from fedbayes.errors import ConfigError

SIZES = {"blocks": 3, "length": 2, "dim": 6, "classes": 10, "clients": 4}
SETTINGS = {"groups": 3, "group_blocks": 1}


def prompts(**changes):
    return special(GroupPrompts, SIZES, SETTINGS, **changes)


def make(*overrides):
    return smoke("method=sgpt", *overrides)[1]


def train(client, partition, arrays=None):
    return client.train([ClientRequest(partition, 1, "train", "", arrays or client.initial())])[0]


def cosines(z, keys):
    return np.array([[k @ q / np.linalg.norm(k) / np.linalg.norm(q) for k in keys] for q in z])


def set_keys(generator, keys, choices):
    with torch.no_grad():
        generator.keys.copy_(torch.from_numpy(keys))
        generator.choices.copy_(torch.tensor(choices))
    return generator


def test_keys_start_orthonormal_and_nothing_has_been_chosen():
    generator = prompts()
    keys = generator.keys[0]
    torch.testing.assert_close(keys @ keys.T, torch.eye(3, dtype=torch.float64), atol=1e-6, rtol=0)
    assert not generator.choices.any()
    assert not generator.choices.requires_grad


def test_without_earlier_choices_the_nearest_key_wins():
    rng = np.random.default_rng(0)
    z, keys = rng.standard_normal((20, 6)), rng.standard_normal((3, 6))
    actual = set_keys(prompts(), keys, [0, 0, 0]).choice(torch.from_numpy(z)[None])
    np.testing.assert_array_equal(actual[0], cosines(z, keys).argmax(1))


def test_groups_that_were_chosen_often_are_dearer():
    rng = np.random.default_rng(0)
    z, keys, choices = rng.standard_normal((20, 6)), rng.standard_normal((3, 6)), np.array([6.0, 1.0, 3.0])
    actual = set_keys(prompts(), keys, choices).choice(torch.from_numpy(z)[None])[0].numpy()
    cost = (1 - cosines(z, keys)) * (choices / 10 + FLOOR)
    np.testing.assert_array_equal(actual, cost.argmin(1))
    assert (actual != cosines(z, keys).argmax(1)).any()
    only_one_was = set_keys(prompts(), keys, [10.0, 0, 0]).choice(torch.from_numpy(z)[None])[0].numpy()
    np.testing.assert_array_equal(only_one_was, 1 + cosines(z, keys)[:, 1:].argmax(1))


def test_first_blocks_are_shared_and_the_last_is_the_groups():
    generator = prompts(group_blocks=2)
    z = torch.randn(1, 7, 6, dtype=torch.float64)
    actual, chosen = generator.plain(z), generator.choice(z)[0]
    assert actual.shape == (1, 7, 3, 2, 6)
    assert len(set(chosen.tolist())) > 1
    for i, g in enumerate(chosen):
        torch.testing.assert_close(actual[0, i, :1], generator.shared[0])
        torch.testing.assert_close(actual[0, i, 1:], generator.groups[0, g])


def test_the_key_term_is_minus_the_cosine_of_the_chosen_key_over_the_clients_images():
    rng = np.random.default_rng(1)
    z, keys = rng.standard_normal((5, 6)), rng.standard_normal((3, 6))
    weights = torch.tensor([[0.25, 0.25, 0.25, 0.25, 0.0]], dtype=torch.float64)
    actual = set_keys(prompts(), keys, [0, 0, 0]).penalty(torch.from_numpy(z)[None], weights)
    assert actual.shape == (1,)
    assert actual.item() == pytest.approx(-cosines(z, keys).max(1)[:4].mean(), rel=1e-12)


def test_gradients_reach_the_chosen_groups_and_keys_alone():
    generator = prompts()
    z = torch.randn(1, 1, 6, dtype=torch.float64)
    (g,) = generator.choice(z)[0].tolist()
    (generator.plain(z).square().sum() + generator.penalty(z, torch.ones(1, 1, dtype=torch.float64)).sum()).backward()
    for grad in (generator.groups.grad[0], generator.keys.grad[0]):
        assert [bool(row.any()) for row in grad] == [i == g for i in range(3)]
    assert generator.shared.grad.all()


def changed(update, start):
    return {name for name, array in update.arrays.items() if not np.array_equal(array, start[name])}


def test_each_block_trains_its_own_part():
    head, choices = {"head.weight", "head.bias"}, {"generator.choices"}
    blocks = ["[generator.shared,head]", "[generator.groups,generator.keys,head]"]
    first, second, both = (make(f"optim.blocks=[{b}]", "head.init_std=0.1") for b in (*blocks, ",".join(blocks)))
    start = both.initial()
    assert changed(train(first, 0), start) == {"generator.shared"} | head | choices
    assert changed(train(second, 0), start) == {"generator.groups", "generator.keys"} | head | choices
    assert changed(train(both, 0), start) == set(start)
    shared = [train(client, 0).arrays["generator.shared"] for client in (first, both)]
    np.testing.assert_array_equal(*shared, err_msg="the second block leaves it as the first has found it")
    assert make().inner.optim.passes == 2, "passes over the images in a round, as the other methods"


def test_a_step_of_the_keys_goes_up_the_cosine():
    """By hand: d cos(q, k) / dk = (q/|q| - cos(q, k) k/|k|) / |k|, with SGD on one batch."""
    rate = 0.3
    client = make(
        *("optim.blocks=[[generator.keys]]", "optim.name=sgd", f"optim.lr={rate}", "optim.clip=null"),
        "optim.batch_size=64",
    )
    start = client.initial()
    z = client.inputs.features(client.data.batch([1], "train"))[0][0].double().numpy()
    keys = start["generator.keys"].astype(np.float64)
    near = cosines(z, keys)
    expected = keys.copy()
    for q, row in zip(z, near, strict=True):
        g, k = row.argmax(), keys[row.argmax()]
        size = np.linalg.norm(k)
        expected[g] += rate / len(z) * (q / np.linalg.norm(q) - row[g] * k / size) / size
    np.testing.assert_allclose(train(client, 1).arrays["generator.keys"], expected, atol=1e-5)


def test_the_reply_counts_the_images_that_chose_each_group_when_the_round_began():
    client = make("partition.quantity=0.7", "clients=4")
    start = {**client.initial(), "generator.choices": np.array([40, 3, 3, 3, 3], np.float32)}
    updates = client.train([ClientRequest(p, 1, "train", "", start) for p in (0, 2, -2)])
    share = start["generator.choices"] / 52
    for update in updates[:2]:
        z = client.inputs.features(client.data.batch([update.partition], "train"))[0][0].numpy()
        cost = (1 - cosines(z, start["generator.keys"])) * (share + FLOOR)
        np.testing.assert_array_equal(update.arrays["generator.choices"], np.bincount(cost.argmin(1), minlength=5))
        assert update.arrays["generator.choices"].sum() == update.num_examples


def test_predictions_take_the_nearest_key_whatever_was_chosen_before():
    client = make()
    start = train(client, 0).arrays
    answers = []
    for choices in ([0, 0, 0, 0, 0], [50, 1, 0, 7, 2]):
        arrays = {**start, "generator.choices": np.array(choices, np.float32)}
        answers.append(client.evaluate([ClientRequest(0, 1, "evaluate", "test", arrays)])[0])
    np.testing.assert_array_equal(*(answer.arrays["probabilities"] for answer in answers))


def test_whoever_looks_at_the_prompts_of_a_prediction_gets_the_nearest_keys_too():
    client = make()
    state = {**train(client, 0).arrays, "generator.choices": np.float32([50, 1, 0, 7, 2])}
    for adapt in (None, 1):
        (used,) = client.adapt([state], [ClientRequest(0, 1, "evaluate", "test", state, adapt=adapt)])
        assert not used["generator.choices"].any()
        assert np.array_equal(used["head.weight"], state["head.weight"]) == (adapt is None)
    assert not client.for_new_clients(state)["generator.choices"].any()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"group_blocks": 3}, "leaves none of 3 prompted blocks.*prompts.depth=deep"),
        ({"group_blocks": 0}, "group_blocks=0"),
        ({"groups": 0}, "groups=0"),
        ({"groups": 7}, "groups=7 keys cannot be orthogonal in 6 dimensions"),
        ({"length": 0}, "prompts.length=0"),
    ],
)
def test_values_out_of_range_are_refused_by_name(changes, words):
    with pytest.raises(ConfigError, match=words):
        prompts(**changes)


def test_shallow_prompts_have_no_room_for_both_kinds():
    with pytest.raises(ConfigError, match=r"prompts\.depth=deep"):
        make("prompts.depth=shallow")

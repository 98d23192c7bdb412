"""feddpa: the shared part is FedLoRA's, the local change learns beside it, and each image mixes the two."""

import numpy as np
import pytest
import torch
from smoke import smoke
from torch.nn import functional as F

from clients.feddpa import CONSTANT, DIRECTION, LOCAL
from fedbayes.comm.messages import ClientRequest
from fedbayes.errors import ConfigError

SGD = ("optim.name=sgd", "optim.momentum=0", "optim.clip=null", "optim.weight_decay=0", "head.init_std=0.3")


def train(client, arrays=None, personal=None):
    (update,) = client.train([ClientRequest(0, 1, "train", "", arrays or client.initial(), personal or {})])
    return update


def moved(arrays, seed):
    rng = np.random.default_rng(seed)
    return {
        name: value if name in (CONSTANT, DIRECTION) else value + 0.1 * rng.standard_normal(value.shape).astype("f")
        for name, value in arrays.items()
    }


def scores_of(client, state, weight, pixels):
    """Class scores by a timm ViT whose layers have both changes, `weight` of them the local one; and the changes."""
    vit = client.model.backbone.vit
    parameters = {n: torch.from_numpy(v.copy()).requires_grad_() for n, v in state.items() if n.startswith("weights.")}
    handles = []
    for name in client.model.weights.shared.names:
        a, b, local_a, local_b = (
            parameters[f"weights.{part}.{x}.{name}"] for part in ("shared", "local") for x in "ab"
        )
        change = 2 * ((1 - weight) * b @ a + weight * local_b @ local_a)
        hook = lambda layer, inputs, outputs, change=change: outputs + inputs[0] @ change.T  # noqa: E731
        handles.append(vit.get_submodule(name).register_forward_hook(hook))
    feature = vit.forward_head(vit.forward_features(client.model.backbone.normalised(pixels)), pre_logits=True)
    for handle in handles:
        handle.remove()
    return feature @ torch.from_numpy(state["head.weight"]) + torch.from_numpy(state["head.bias"]), parameters


def test_the_shared_part_is_trained_as_fedlora_trains_it_for_half_of_the_epochs():
    _, dual = smoke("method=feddpa", *SGD, "optim.local_epochs=2")
    _, plain = smoke("method=fedlora", *SGD, "optim.local_epochs=1")
    update, expected = train(dual), train(plain)
    assert {name.replace("weights.shared.", "weights.") for name in update.arrays} == set(expected.arrays)
    for name, array in update.arrays.items():
        np.testing.assert_allclose(array, expected.arrays[name.replace(".shared", "")], atol=1e-6, err_msg=name)


def test_a_step_of_the_local_change_is_plain_torchs_beside_the_received_one():
    _, client = smoke("method=feddpa", *SGD, "optim.lr=0.5", "optim.local_epochs=2", "optim.batch_size=1000")
    state = moved(client.model.initial, 0)
    shared, personal = client.split(state)
    update = train(client, shared, personal)
    index = client.data.indices(0, "train")
    scores, parameters = scores_of(client, state, 0.5, client.data.images.images[index])
    F.cross_entropy(scores, client.data.images.labels[index]).backward()
    local = [name for name in parameters if name.startswith(LOCAL) and name not in (CONSTANT, DIRECTION)]
    assert len(local) == 16
    for name in local:
        step = update.personal[name] - state[name]
        assert np.abs(step).max() > 1e-5
        np.testing.assert_allclose(step, -0.5 * parameters[name].grad.numpy(), atol=2e-5, err_msg=name)
    assert not any(name.startswith(LOCAL) for name in update.arrays)


def test_an_image_has_the_local_change_by_its_likeness_to_the_training_images():
    _, client = smoke("method=feddpa", "method.client.weight=0.8")
    state = moved(client.model.initial, 0)
    shared, personal = client.split(state)
    (update,) = client.evaluate([ClientRequest(0, 1, "evaluate", "test", shared, personal)])
    z, known = (client.inputs.features(client.data.batch([0], split))[0][0] for split in ("test", "train"))
    weights = 0.8 * F.cosine_similarity(z[:, None], known[None], dim=-1).mean(1)
    assert weights.std() > 0.01
    pixels = client.data.images.images[client.data.indices(0, "test")]
    for i in range(3):
        scores, _ = scores_of(client, state, weights[i].item(), pixels[i : i + 1])
        np.testing.assert_allclose(update.arrays["probabilities"][i], scores.softmax(-1)[0].detach(), atol=1e-5)


def test_a_client_that_never_trained_has_the_global_change_alone():
    _, dual = smoke("method=feddpa")
    _, plain = smoke("method=fedlora")
    arrays = moved(dual.initial(), 0)
    plain_arrays = {name.replace(".shared", ""): array for name, array in arrays.items()}
    (update,), (expected,) = (
        client.evaluate([ClientRequest(0, 1, "evaluate", "test", state)])
        for client, state in ((dual, arrays), (plain, plain_arrays))
    )
    np.testing.assert_allclose(update.arrays["probabilities"], expected.arrays["probabilities"], atol=1e-5)


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["method.client.personal=[head]"], r"method\.client\.personal"),
        (["method.client.weight=2"], r"method\.client\.weight=2"),
        (["optim.local_epochs=1"], r"optim\.local_epochs=1"),
        (["method.weights.rank=0"], r"method\.weights\.rank=0"),
    ],
)
def test_settings_that_cannot_work_are_refused(overrides, key):
    with pytest.raises(ConfigError, match=key):
        smoke("method=feddpa", *overrides)

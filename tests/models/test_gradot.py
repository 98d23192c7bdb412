"""GradOT's scores and its exact form in the K-FAC basis, against numbers by hand, autograd and Hessians."""

import pytest
import torch
from torch.autograd.functional import hessian

from fedbayes.errors import ConfigError
from fedbayes.models.emulators import compression, gradot
from fedbayes.models.emulators.base import Owner, emulate, size
from fedbayes.models.emulators.compression import channel_scores, rank_of, refitted
from fedbayes.models.emulators.compression import truncated as published
from fedbayes.models.emulators.compression import truncated_kfac as kfac
from fedbayes.models.emulators.statistics import Moments, fit_probe, moments
from fedbayes.models.zoo import shipped

DEFAULTS = {"keep": 0.75, "basis": "kfac", "attention": None, "damping": 1e-5, "privacy": 0.0, "loss": "features"}
TINY = 1e-13
"""A damping that is none, in float64."""


def truncated(*args, **settings):
    left, right = published(*args, **settings)
    return left @ right


def truncated_kfac(*args, **settings):
    left, right = kfac(*args, **settings)
    return left @ right


def diagonal(*values):
    return torch.diag(torch.tensor(values, dtype=torch.float64))


def random_moments(m, n, count=40):
    x, s = torch.randn(count, n).double(), torch.randn(count, m).double()
    return Moments(x.mT @ x / count, s.mT @ s / count, s.mT @ x / count)


def energy(change, layer):
    return float(torch.trace(layer.outputs @ change @ layer.inputs @ change.mT))


@pytest.fixture
def by_hand():
    """y = W x, loss |y|^2 / 2: W = diag(3, 2), E[x x'] = diag(1, 4), so dl/dW = diag(3, 8)."""
    return diagonal(3, 2), Moments(diagonal(1, 4), diagonal(1, 1), diagonal(3, 8))


def test_a_score_is_the_change_of_the_gradient_where_singular_values_say_the_contrary(by_hand):
    weight, layer = by_hand
    inputs = diagonal(1, 2)  # columns x with mean square diag(1, 4)

    def gradient(w):
        return (w @ inputs @ inputs.mT,)[0]

    for component, l1, loss in ((0, 3.0, -4.5), (1, 8.0, -8.0)):
        removed = weight.clone()
        removed[component, component] = 0
        assert float((gradient(removed) - gradient(weight)).abs().sum()) == l1
        change = removed - weight
        assert float((layer.outputs @ change @ layer.inputs).abs().sum()) == l1
        losses = [float((w @ inputs).square().sum()) / 2 for w in (weight, removed)]
        assert losses[1] - losses[0] == loss
        assert float((layer.gradient * change).sum()) == 2 * loss
    torch.testing.assert_close(truncated(weight, layer, 1), diagonal(0, 2))
    plain = Moments(diagonal(1, 1), diagonal(1, 1), layer.gradient)
    torch.testing.assert_close(truncated(weight, plain, 1), diagonal(3, 0))


def test_the_change_of_an_adapters_gradient_has_a_closed_form():
    w, a, x, target = (torch.randn(*shape).double() for shape in ((3, 4), (2, 3), (4, 50), (2, 50)))
    inputs, cross = x @ x.mT / 50, target @ x.mT / 50

    def gradient(w):
        adapter = a.clone().requires_grad_()
        ((adapter @ w @ x - target).square().sum() / 100).backward()
        return adapter.grad

    u, sigma, vh = torch.linalg.svd(w)
    removed = w - sigma[1] * u[:, [1]] @ vh[[1]]
    closed = [a @ v @ inputs @ v.mT - cross @ v.mT for v in (w, removed)]
    torch.testing.assert_close(gradient(removed) - gradient(w), closed[1] - closed[0], rtol=0, atol=1e-10)


def test_the_kfac_form_is_the_hessian_of_a_squared_loss():
    x, weight, change = torch.randn(4, 30).double(), torch.randn(3, 4).double(), torch.randn(3, 4).double()
    metric = torch.randn(3, 3).double()
    metric = metric @ metric.mT
    layer = Moments(x @ x.mT / 30, metric, torch.zeros(3, 4).double())
    full = hessian(lambda w: torch.einsum("on,op,pn->", w @ x, metric, w @ x) / 60, weight)
    torch.testing.assert_close(torch.einsum("abcd,cd->ab", full, change), layer.outputs @ change @ layer.inputs)
    assert energy(change, layer) == pytest.approx(float(torch.einsum("ab,abcd,cd->", change, full, change)))


def test_the_kfac_basis_has_the_least_curvature_of_all_matrices_of_that_rank():
    for _ in range(50):
        weight, layer = torch.randn(5, 7).double(), random_moments(5, 7)
        lossy = truncated_kfac(weight, layer, 2, damping=TINY)
        lowest = energy(lossy - weight, layer)
        assert torch.linalg.matrix_rank(lossy) == 2
        left, right = (compression.roots(part, TINY)[0] for part in (layer.outputs, layer.inputs))
        tail = torch.linalg.svdvals(left @ weight @ right)[2:].square().sum()
        assert lowest == pytest.approx(float(tail))
        u, sigma, vh = torch.linalg.svd(weight, full_matrices=False)
        for other in (truncated(weight, layer, 2), u[:, :2] * sigma[:2] @ vh[:2]):
            assert lowest <= energy(other - weight, layer) + 1e-12


def test_with_moments_that_tell_nothing_every_basis_is_the_svd():
    weight = torch.randn(5, 7).double()
    u, sigma, vh = torch.linalg.svd(weight, full_matrices=False)
    svd = u[:, :3] * sigma[:3] @ vh[:3]
    layer = Moments(2 * torch.eye(7).double(), 3 * torch.eye(5).double(), torch.zeros(5, 7).double())
    torch.testing.assert_close(truncated_kfac(weight, layer, 3, damping=TINY), svd, rtol=0, atol=1e-10)
    assert float((svd - weight).square().sum()) == pytest.approx(float(sigma[3:].square().sum()), abs=1e-14)
    torch.testing.assert_close(truncated_kfac(weight, layer, 5, damping=TINY), weight)


def test_the_kfac_basis_does_not_depend_on_the_basis_of_the_inputs_or_the_size_of_the_loss():
    weight, layer = torch.randn(4, 6).double(), random_moments(4, 6)
    change = torch.randn(6, 6).double()
    moved = Moments(change @ layer.inputs @ change.mT, layer.outputs, layer.gradient)
    lossy = truncated_kfac(weight, layer, 2, damping=TINY)
    elsewhere = truncated_kfac(weight @ torch.linalg.inv(change), moved, 2, damping=TINY)
    torch.testing.assert_close(elsewhere @ change, lossy, rtol=1e-5, atol=1e-6)
    scaled = Moments(layer.inputs, 9 * layer.outputs, 9 * layer.gradient)
    torch.testing.assert_close(truncated_kfac(weight, scaled, 2, damping=TINY), lossy)
    torch.testing.assert_close(truncated(weight, scaled, 2), truncated(weight, layer, 2))


def test_with_a_large_lambda_the_loss_decides_and_grows_with_it():
    weight, layer = diagonal(3, 2, 1), Moments(diagonal(1, 1, 1), diagonal(1, 1, 1), diagonal(-1, 0.1, 2))
    # removing component k changes the loss by -sigma_k G_kk: 3, -.2 and -2
    losses = []
    for privacy in (0.0, 0.4, 5.0):
        for rule in (truncated_kfac, truncated):
            damping = {"damping": TINY} if rule is truncated_kfac else {}
            lossy = rule(weight, layer, 1, privacy=privacy, **damping)
            losses.append(float((layer.gradient * (lossy - weight)).sum()))
    for changes in (losses[::2], losses[1::2]):
        assert changes == sorted(changes)
        assert (changes[0], changes[-1]) == (pytest.approx(-2.2), pytest.approx(2.8))


def test_some_components_stay_whatever_the_score():
    weight = diagonal(*range(40, 0, -1))
    layer = Moments(diagonal(*[0.0] * 20, *[1.0] * 20), torch.eye(40).double(), torch.zeros(40, 40).double())
    chosen = truncated(weight, layer, 5).diagonal().nonzero().flatten().tolist()
    assert chosen == [0, 1, 20, 21, 22], "5 % of 40 by singular value, then by score"


def test_channels_that_do_nothing_go_first_and_permuting_channels_permutes_scores():
    x = torch.randn(200, 4).double()
    w1, w2 = torch.randn(6, 4).double(), torch.randn(4, 6).double()
    w1[2], w2[:, 2] = 0, 0
    hidden = (x @ w1.mT).relu()
    s = torch.randn(200, 4).double()
    inner = s @ w2 * (hidden > 0)
    first = Moments(x.mT @ x / 200, inner.mT @ inner / 200, inner.mT @ x / 200)
    second = Moments(hidden.mT @ hidden / 200, s.mT @ s / 200, s.mT @ hidden / 200)
    scores = channel_scores(w1, w2, first, second, privacy=0.5)
    assert float(scores[2]) == 0
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    again = channel_scores(
        *(w1[order], w2[:, order]),
        Moments(first.inputs, first.outputs[order][:, order], first.gradient[order]),
        Moments(second.inputs[order][:, order], second.outputs, second.gradient[:, order]),
        privacy=0.5,
    )
    torch.testing.assert_close(again, scores[order])
    others = torch.tensor([0, 1, 3, 4, 5])
    torch.testing.assert_close(refitted(w2, second, others, damping=TINY), w2[:, others], rtol=1e-6, atol=1e-6)


def test_the_refit_takes_over_what_a_duplicate_channel_did():
    hidden = torch.randn(100, 3).double()
    hidden = torch.cat([hidden, hidden[:, :1]], dim=1)
    weight = torch.randn(2, 4).double()
    second = Moments(hidden.mT @ hidden / 100, torch.eye(2).double(), torch.zeros(2, 4).double())
    chosen = torch.tensor([0, 1, 2])
    expected = weight[:, :3].clone()
    expected[:, 0] += weight[:, 3]
    torch.testing.assert_close(refitted(weight, second, chosen, damping=TINY), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("keep", "rank"), [(1.0, 96), (0.5, 48), (0.011, 1)])
def test_a_rank_of_half_saves_nothing(keep, rank):
    assert rank_of((192, 192), keep) == rank


def owner(count=48, classes=10):
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % classes
    patterns = 128 * torch.rand(classes, 3, 32, 32, generator=rng)
    images = torch.randint(0, 100, (count, 3, 32, 32), generator=rng) + patterns[labels]
    return Owner(images.to(torch.uint8), labels, classes, 0)


@pytest.mark.parametrize("basis", ["kfac", "weight", "svd"])
def test_an_emulator_is_no_larger_than_asked_and_as_large_as_counted_by_hand(basis):
    backbone = shipped(32)
    make = gradot.GradOT(**{**DEFAULTS, "basis": basis})
    emulator = emulate(make, backbone, 2, owner())
    block, full = emulator.backbone.vit.blocks[0], backbone.vit.blocks[0]
    d, channels = 96, emulator.backbone.vit.blocks[0].mlp.fc1.out_features
    ranks = rank_of((3 * d, d), 0.75), rank_of((d, d), 0.75)
    assert size(block) == ranks[0] * 4 * d + 3 * d + ranks[1] * 2 * d + d + channels * (2 * d + 1) + d + 4 * d
    assert 0.74 < size(block) / size(full) <= 0.75
    assert torch.linalg.matrix_rank(block.attn.qkv.weight.double(), rtol=1e-5) == ranks[0]
    assert all(bool(parameter.isfinite().all()) for parameter in emulator.backbone.parameters())


def test_with_everything_kept_no_weight_changes():
    backbone = shipped(32)
    emulator = emulate(gradot.GradOT(**{**DEFAULTS, "keep": 1}), backbone, 2, owner())
    state = emulator.backbone.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in backbone.state_dict().items())


def test_moments_are_those_of_the_layers_inputs_and_gradients():
    backbone, images = shipped(32), owner(20)
    layer = moments(backbone, 2, images, loss="features", emulator="gradot")["blocks.0.attn.qkv"]
    tokens = backbone.vit.blocks[0].norm1(backbone.embed(images.images, 0)).double()
    expected = torch.einsum("nti,ntj->ij", tokens, tokens) / tokens.shape[:2].numel()
    torch.testing.assert_close(layer.inputs, expected, rtol=1e-5, atol=1e-6)
    assert float(layer.outputs.trace()) > 0
    assert float(layer.gradient.abs().sum()) == 0


def test_the_gradient_of_true_labels_moves_the_probes_loss_as_it_says():
    backbone, images = shipped(32), owner()
    name = "blocks.1.mlp.fc2"
    gradient = moments(backbone, 2, images, loss="labels", emulator="gradot")[name].gradient
    with torch.no_grad():
        z = torch.nn.functional.layer_norm(backbone.features(images.images), (96,))
        probe = fit_probe(z, images.labels, 10, 0)
        losses = []
        for step in (-1e-2, 1e-2):
            weight = backbone.vit.get_submodule(name).weight
            weight += step * gradient / gradient.norm()
            moved = torch.nn.functional.layer_norm(backbone.features(images.images), (96,))
            losses.append(torch.nn.functional.cross_entropy(probe.scores(moved.double()), images.labels))
            weight -= step * gradient / gradient.norm()
    assert float(losses[1] - losses[0]) / 2e-2 == pytest.approx(float(gradient.norm()), rel=0.02)


@pytest.mark.parametrize(
    ("count", "changes", "place"),
    [
        (0, {}, r"owner\.images=0"),
        (20, {"loss": "labels"}, r"owner\.images=20"),
        (48, {"privacy": 1.0}, r"emulator\.privacy"),
        (48, {"keep": 0.001}, r"emulator\.keep"),
        (48, {"basis": "none"}, r"emulator\.basis"),
    ],
)
def test_what_cannot_work_is_rejected_by_name(count, changes, place):
    with pytest.raises(ConfigError, match=place):
        emulate(gradot.GradOT(**{**DEFAULTS, **changes}), shipped(32), 2, owner(count))


def test_labels_that_images_do_not_tell_are_rejected():
    images = owner(200)
    random = torch.randint(0, 10, (200,), generator=torch.Generator().manual_seed(1))
    with pytest.raises(ConfigError, match=r"owner\.images=200"):
        moments(shipped(32), 1, Owner(images.images * 0, random, 10, 0), loss="labels", emulator="gradot")


def test_one_image_of_the_owner_gives_finite_weights():
    emulator = emulate(gradot.GradOT(**DEFAULTS), shipped(32), 2, owner(1))
    assert all(bool(parameter.isfinite().all()) for parameter in emulator.backbone.parameters())

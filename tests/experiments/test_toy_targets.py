"""The toy targets by quadrature, against their exact moments; the two helpers against closed forms."""

import pytest
import torch
import toy_targets as toys

# entropy in nats, mean, variance, covariance
EXACT = {
    "banana": (3.53102, (0.0, 1.0), (4.0, 3.0), 0.0),
    "multimodal": (3.94945, (0.5, -0.5), (4.75, 4.75), -1.75),
    "x_shaped": (3.12258, (0.0, 0.0), (2.0, 2.0), 0.0),
}


@pytest.mark.parametrize("name", EXACT)
def test_density_is_normalised_and_has_the_published_moments(name):
    x, y = torch.linspace(-14, 14, 281, dtype=torch.float64), torch.linspace(-12, 50, 621, dtype=torch.float64)
    grid = torch.cartesian_prod(x, y)
    log_p = toys.TARGETS[name].log_density(grid.float()).double()
    p = log_p.exp() * (x[1] - x[0]) * (y[1] - y[0])
    mean = p @ grid
    covariance = (grid - mean).T @ ((grid - mean) * p.unsqueeze(1))
    entropy, expected_mean, variance, off = EXACT[name]
    assert p.sum().item() == pytest.approx(1, abs=1e-6)
    assert -(p @ log_p).item() == pytest.approx(entropy, abs=2e-5)
    assert mean.tolist() == pytest.approx(expected_mean, abs=1e-5)
    assert covariance.diagonal().tolist() == pytest.approx(variance, abs=1e-4)
    assert covariance[0, 1].item() == pytest.approx(off, abs=1e-4)


@pytest.mark.parametrize("name", EXACT)
def test_draws_come_from_the_density(name):
    torch.manual_seed(0)
    target = toys.TARGETS[name]
    z = target.sample(100_000)
    entropy, mean, variance, _ = EXACT[name]
    assert -target.log_density(z).mean().item() == pytest.approx(entropy, abs=0.02)
    assert z.mean(0).tolist() == pytest.approx(mean, abs=0.03)
    assert z.var(0).tolist() == pytest.approx(variance, rel=0.03)


def test_sliced_distance_of_a_shift_is_its_root_mean_square_projection():
    torch.manual_seed(0)
    z = torch.randn(2_000, 2)
    assert toys.sliced_wasserstein(z, z) == 0
    # E[(3 cos a)^2] = 4.5 over directions a
    assert toys.sliced_wasserstein(z, z + torch.tensor([3.0, 0.0]), 5_000) == pytest.approx(4.5**0.5, rel=0.03)


def test_quasi_normal_draws_have_the_moments_of_a_normal():
    noise = toys.quasi_normal(0)
    z = torch.cat([noise(torch.Size((256, 2))), noise(torch.Size((16, 16, 2))).reshape(-1, 2)])
    assert len(z.unique(dim=0)) == 512, "the second call goes on where the first stopped"
    assert z.mean(0).tolist() == pytest.approx([0, 0], abs=0.01)
    assert z.var(0).tolist() == pytest.approx([1, 1], abs=0.03)
    assert torch.equal(toys.quasi_normal(0)(torch.Size((4, 2))), z[:4])

"""What a semi-implicit posterior refuses, and what it says then."""

import math

import pytest
import torch
from posteriors import no_aim, pushed, unit

from fedbayes.inference.mixing import Pushforward
from fedbayes.inference.reverse import GaussianReverse
from fedbayes.inference.semi_implicit import SemiImplicitNormal

REFUSED = [
    ({"num_extra": -1}, "num_extra must be a whole number of at least 0, got -1: it counts fresh draws"),
    ({"num_extra": 1.5}, "num_extra must be a whole number of at least 0, got 1.5"),
    ({"num_extra": True}, "num_extra must be a whole number of at least 0, got True"),
    ({"event_dim": -1}, "event_dim must be a whole number of at least 0, got -1"),
    ({"event_dim": 3}, r"gave psi of shape \(4, 2\), too few for event_dim=3"),
    ({"chunk": 0}, "chunk must be a whole number of at least 1, got 0: it counts draws at once; None takes all"),
    ({"scale": torch.zeros(1)}, "scale must be positive and finite, got 0: .*use exp or softplus"),
    ({"scale": -0.5}, "scale must be positive and finite, got -0.5"),
    ({"scale": torch.tensor([1.0, math.nan])}, "scale must be positive and finite, got nan"),
    ({"scale": math.inf}, "scale must be positive and finite, got inf"),
    ({"scale": torch.ones(3)}, r"scale of shape \(3,\) does not broadcast to psi of shape \(4, 2\); give one number"),
    ({"scale": torch.ones(5, 4, 2)}, r"scale of shape \(5, 4, 2\) does not broadcast"),
    ({"reverse": no_aim()}, "reverse needs a mixing that tells its noise; wrap the function in a Pushforward"),
    ({"reverse": no_aim(3), "mixing": pushed((4,))}, "models 3 noise dimensions, mixing has 2; make them equal"),
    ({"reverse": no_aim(), "mixing": pushed((4,)), "path_gradient": True}, "path_gradient and reverse exclude each"),
    ({"chunk": 2}, "a plain mixing's psi twice, and differently; use a Pushforward or path_gradient"),
    ({"mixing": Pushforward(lambda eps: eps + torch.zeros(4, 1), 2)}, r"batch_shape \(\) but gave psi of .*\(4,\)"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_arguments_that_make_no_density_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SemiImplicitNormal(
            **{"mixing": unit((4,)), "scale": torch.ones(1), "num_extra": 3, **options}, validate_args=True
        )


def test_draws_of_another_shape_are_refused_when_they_come():
    stubborn = SemiImplicitNormal(lambda shape: torch.zeros(4, 2), torch.ones(1), 3)
    with pytest.raises(ValueError, match=r"gave psi of shape \(4, 2\) for sample_shape \(7,\); it must be \(7, 4, 2\)"):
        stubborn.rsample((7,))
    noisy = SemiImplicitNormal(unit((4,)), torch.ones(1), 3, noise=lambda shape: torch.zeros(1))
    with pytest.raises(ValueError, match=r"noise\(\(4, 2\)\) gave draws of shape \(1,\); return the shape asked for"):
        noisy.rsample()
    aimless = GaussianReverse(lambda p: p, 2)
    posterior = SemiImplicitNormal(pushed((4,)), torch.ones(1), 3, reverse=aimless)
    with pytest.raises(ValueError, match="gave 2 outputs for noise_dim=2; it must give 5"):
        posterior.log_prob(posterior.rsample())
    with pytest.raises(ValueError, match="support"):
        SemiImplicitNormal(unit(), 1.0, 1, validate_args=True).log_prob(torch.full((2,), math.nan))

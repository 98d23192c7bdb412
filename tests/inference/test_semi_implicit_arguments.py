"""Arguments that make no semi-implicit posterior."""

import math

import pytest
import torch
from posteriors import no_aim, pushed, unit

from fedbayes.inference.mixing import Pushforward
from fedbayes.inference.reverse import GaussianReverse
from fedbayes.inference.semi_implicit import SemiImplicitNormal

REFUSED = [
    ({"num_extra": -1}, "num_extra .*-1"),
    ({"num_extra": 1.5}, "num_extra .*1.5"),
    ({"num_extra": True}, "num_extra .*True"),
    ({"event_dim": -1}, "event_dim .*-1"),
    ({"event_dim": 3}, r"\(4, 2\).* event_dim=3"),
    ({"chunk": 0}, "chunk .*0"),
    ({"scale": torch.zeros(1)}, "scale .*got 0"),
    ({"scale": -0.5}, "scale .*-0.5"),
    ({"scale": torch.tensor([1.0, math.nan])}, "scale .*nan"),
    ({"scale": math.inf}, "scale .*inf"),
    ({"scale": torch.ones(3)}, r"scale of shape \(3,\) .*\(4, 2\)"),
    ({"scale": torch.ones(5, 4, 2)}, r"scale of shape \(5, 4, 2\)"),
    ({"reverse": no_aim()}, "reverse .*Pushforward"),
    ({"reverse": no_aim(3), "mixing": pushed((4,))}, "reverse models 3 .*mixing has 2"),
    ({"reverse": no_aim(), "mixing": pushed((4,)), "path_gradient": True}, "path_gradient and reverse"),
    ({"chunk": 2}, "chunk .*Pushforward or path_gradient"),
    ({"mixing": Pushforward(lambda eps: eps + torch.zeros(4, 1), 2)}, r"batch_shape \(\) .*\(4,\)"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_arguments_that_make_no_density_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SemiImplicitNormal(
            **{"mixing": unit((4,)), "scale": torch.ones(1), "num_extra": 3, **options}, validate_args=True
        )


def test_draws_of_another_shape_are_refused_when_they_come():
    stubborn = SemiImplicitNormal(lambda shape: torch.zeros(4, 2), torch.ones(1), 3)
    with pytest.raises(ValueError, match=r"sample_shape \(7,\).* \(7, 4, 2\)"):
        stubborn.rsample((7,))
    noisy = SemiImplicitNormal(unit((4,)), torch.ones(1), 3, noise=lambda shape: torch.zeros(1))
    with pytest.raises(ValueError, match=r"noise\(\(4, 2\)\) gave .*\(1,\)"):
        noisy.rsample()
    aimless = GaussianReverse(lambda p: p, 2)
    posterior = SemiImplicitNormal(pushed((4,)), torch.ones(1), 3, reverse=aimless)
    with pytest.raises(ValueError, match="2 outputs for noise_dim=2"):
        posterior.log_prob(posterior.rsample())
    with pytest.raises(ValueError, match="support"):
        SemiImplicitNormal(unit(), 1.0, 1, validate_args=True).log_prob(torch.full((2,), math.nan))

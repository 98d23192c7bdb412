"""pFedBayes's server: averages by hand, and products that are exact on a linear-Gaussian federation."""

import numpy as np
import pytest
import torch
from hydra.utils import instantiate

from fedbayes.comm.messages import ClientUpdate, from_record, to_record
from fedbayes.config.compose import compose
from fedbayes.inference.mean_field import Natural, rho_of, std_of
from strategies.pfedbayes import PFedBayes


def gaussian(mean, std):
    """As it goes over the wire."""
    rho = rho_of(torch.as_tensor(std, dtype=torch.float64)).numpy()
    return {"w": np.asarray(mean, np.float64), "w.rho": np.asarray(rho, np.float64)}


def moments(arrays):
    return arrays["w"], std_of(torch.from_numpy(arrays["w.rho"])).numpy()


def serve(strategy, shared, *replies, server_round=1):
    """A round: what was sent is in `shared`, then partitions answer with arrays, or from what they are sent."""
    strategy.shared = shared
    start = {partition: strategy.outgoing(server_round, partition) for partition, _, _ in replies}
    answers = [(p, n, reply(start[p]) if callable(reply) else reply) for p, n, reply in replies]
    strategy.aggregate([ClientUpdate(partition, arrays, images, {}) for partition, images, arrays in answers])
    return strategy.shared


def test_the_mean_by_hand():
    start = {"w": np.array([10.0]), "w.rho": np.array([-4.0])}
    replies = [
        (0, 1, {"w": np.array([2.0]), "w.rho": np.array([-1.0])}),
        (3, 3, {"w": np.array([6.0]), "w.rho": np.array([-3.0])}),
    ]
    whole = serve(PFedBayes("mean"), start, *replies)
    assert (whole["w"].item(), whole["w.rho"].item()) == (5.0, -2.5)
    part = serve(PFedBayes("mean", beta=0.25), start, *replies)
    assert (part["w"].item(), part["w.rho"].item()) == (0.75 * 10 + 0.25 * 5, 0.75 * -4 + 0.25 * -2.5)


@pytest.mark.parametrize(("method", "precision"), [("pfedbayes", 4.0), ("pfedbayes_product", 7.0)])
def test_the_published_method_averages_and_ours_multiplies(method, precision):
    """As in the product by hand below; the mean has rho's mean, of one and the same standard deviation here."""
    cfg = compose([f"method={method}", "method.strategy.beta=1.0"])
    strategy = instantiate(cfg.method.strategy)()
    assert cfg.method.client.aggregate == cfg.method.strategy.aggregate
    replies = [(0, 1, gaussian([2.0], [4**-0.5])), (1, 1, gaussian([-1.0], [4**-0.5]))]
    _, std = moments(serve(strategy, gaussian([1.0], [1.0]), *replies))
    np.testing.assert_allclose(std**-2, precision)


def test_the_product_by_hand():
    """Prior N(1, 1), posteriors N(2, 1/3) and N(-1, 1/5): precision 3 + 5 - 1, shift 6 - 5 - 1."""
    replies = [(0, 1, gaussian([2.0], [3**-0.5])), (1, 50, gaussian([-1.0], [5**-0.5]))]
    mean, std = moments(serve(PFedBayes("product", beta=1.0), gaussian([1.0], [1.0]), *replies))
    np.testing.assert_allclose(mean, 0 / 7, atol=1e-12)
    np.testing.assert_allclose(std, 7**-0.5)


class Regression:
    """Five clients of a linear regression, heterogeneous in size, scale, noise and truth.

    The columns of each design are orthogonal, so that posteriors are products of independent Gaussians, as ours are.
    """

    def __init__(self, weights=3):
        rng = np.random.default_rng(0)
        self.prior_mean, self.prior_std = rng.normal(size=weights), rng.uniform(0.5, 2, weights)
        self.evidence = []
        for m, n in enumerate((4, 7, 30, 5, 12)):
            columns = np.linalg.qr(rng.normal(size=(n, weights)))[0]
            design = columns * rng.uniform(0.1, 4, weights)
            y, noise = rng.normal(size=n) * 3 + m, 0.3 + m
            self.evidence.append((np.square(design).sum(0) / noise**2, design.T @ y / noise**2))

    def posterior(self, mean, std, clients):
        precision, shift = 1 / std**2, mean / std**2
        for m in clients:
            precision, shift = precision + self.evidence[m][0], shift + self.evidence[m][1]
        return gaussian(shift / precision, precision**-0.5)

    def replies(self, clients):
        """Each client's exact posterior from the prior that it is sent."""

        def reply(m):
            return lambda start: self.posterior(*moments({n: start.get(f"prior.{n}", start[n]) for n in start}), [m])

        return [(m, 10 + m, reply(m)) for m in clients]


@pytest.mark.parametrize(
    "rounds",
    [
        [(0, 1, 2, 3, 4)],
        [(0, 1, 2, 3, 4)] * 4,  # images are not counted again and again
        [(0, 3), (1, 3, 4), (2,), (0, 2)],  # nor forgotten where their client is not sampled
    ],
)
def test_the_product_is_the_posterior_of_the_pooled_data(rounds):
    federation, strategy = Regression(), PFedBayes("product", beta=1.0)
    shared = gaussian(federation.prior_mean, federation.prior_std)
    for server_round, clients in enumerate(rounds, 1):
        shared = serve(strategy, shared, *federation.replies(clients), server_round=server_round)
    pooled = moments(federation.posterior(federation.prior_mean, federation.prior_std, range(5)))
    np.testing.assert_allclose(moments(shared), pooled, rtol=1e-10, atol=1e-10)
    first = gaussian(federation.prior_mean, federation.prior_std)
    mean = moments(serve(PFedBayes("mean"), first, *federation.replies(range(5))))
    assert np.abs(mean[0] - pooled[0]).max() > 0.1, "the mean is not"


def test_with_damping_it_is_reached_step_by_step():
    federation, strategy = Regression(), PFedBayes("product", beta=0.2)
    shared = gaussian(federation.prior_mean, federation.prior_std)
    pooled = moments(federation.posterior(federation.prior_mean, federation.prior_std, range(5)))
    gaps = []
    for server_round in range(1, 120):
        shared = serve(strategy, shared, *federation.replies(range(5)), server_round=server_round)
        gaps.append(np.abs(np.subtract(moments(shared), pooled)).max())
    assert gaps[0] > 0.01
    assert gaps[-1] < 1e-9


def test_beta_is_by_default_an_equal_part_for_each_reply():
    federation = Regression()
    shared = gaussian(federation.prior_mean, federation.prior_std)
    default, quarter = (
        serve(PFedBayes("product", beta), shared, *federation.replies((0, 1, 3, 4))) for beta in (None, 0.25)
    )
    for name in shared:
        np.testing.assert_array_equal(default[name], quarter[name])


def test_a_client_that_has_contributed_is_sent_what_the_others_said_as_its_prior():
    federation, strategy = Regression(), PFedBayes("product", beta=1.0)
    shared = gaussian(federation.prior_mean, federation.prior_std)
    strategy.shared = serve(strategy, shared, *federation.replies((0, 1, 2)))
    start = strategy.outgoing(2, 1)
    prior = moments({name: start[f"prior.{name}"] for name in shared})
    expected = moments(federation.posterior(federation.prior_mean, federation.prior_std, (0, 2)))
    np.testing.assert_allclose(prior, expected, rtol=1e-9)
    assert set(strategy.outgoing(2, 4)) == set(shared), "what all others have said is w itself"


def test_evidence_that_would_widen_the_prior_leaves_its_precision():
    replies = [(0, 1, gaussian([0.5, 0.5], [3.0, 0.5])), (1, 1, gaussian([0.5, 0.5], [5.0, 0.5]))]
    mean, std = moments(serve(PFedBayes("product", beta=1.0), gaussian([0.0, 0.0], [1.0, 1.0]), *replies))
    assert np.isfinite(mean).all()
    assert std[0] == pytest.approx(1.0)
    assert std[1] == pytest.approx(7**-0.5)
    assert mean[0] == pytest.approx(0.5 / 9 + 0.5 / 25)


@pytest.mark.parametrize("beta", [1.0, 0.5])
def test_a_prior_that_was_raised_counts_for_no_image(beta):
    """Likelihoods of precision -1/2 and 2 on p_0 = N(0, 1): w has 2.5, and without the second's images .5, raised to 1.

    Whose prior was raised trains from what it is sent, so its factor stays what its images say, however many rounds.
    """

    def reply(evidence):
        def answer(start):
            mean, std = moments({name: start.get(f"prior.{name}", start[name]) for name in start})
            precision = std**-2 + evidence
            return gaussian((mean * std**-2 + evidence) / precision, precision**-0.5)

        return answer

    strategy, shared = PFedBayes("product", beta=beta), gaussian([0.0], [1.0])
    for server_round in range(1, 60):
        shared = serve(strategy, shared, (0, 1, reply(-0.5)), (1, 1, reply(2.0)), server_round=server_round)
    mean, std = moments(shared)
    np.testing.assert_allclose([mean.item(), std.item()], [1.5 / 2.5, 2.5**-0.5], rtol=1e-9)


@pytest.mark.parametrize("aggregate", ["mean", "product"])
def test_what_is_no_gaussian_is_averaged_and_types_stay(aggregate):
    def start(scale):
        return {
            "w": np.full(2, scale, np.float32),
            "w.rho": np.full(2, -3.0, np.float32),
            "fixed": np.full(3, scale, np.float32),
        }

    shared = serve(PFedBayes(aggregate), start(0.0), (0, 1, start(1.0)), (1, 3, start(3.0)))
    assert set(shared) == set(start(0.0))
    assert {array.dtype for array in shared.values()} == {np.dtype(np.float32)}
    np.testing.assert_allclose(shared["fixed"], 2.5)


def test_a_strategy_goes_on_from_its_state():
    federation, strategy, resumed = Regression(), PFedBayes("product", beta=1.0), PFedBayes("product", beta=1.0)
    shared = gaussian(federation.prior_mean, federation.prior_std)
    shared = serve(strategy, shared, *federation.replies((0, 2, 4)))
    resumed.restore(from_record(to_record(strategy.state())))
    assert set(resumed.state()) == set(strategy.state())
    replies = federation.replies((1, 2))
    expected = serve(strategy, shared, *replies)
    for name, array in serve(resumed, shared, *replies).items():
        assert array.tobytes() == expected[name].tobytes(), name
    assert PFedBayes("mean").state() == {}


def test_a_product_of_no_precision_stands_where_the_last_prior_stood():
    strategy = PFedBayes("product")
    strategy.first, strategy.shared = gaussian([0.0], [1.0]), gaussian([5.0], [0.5])
    nothing = torch.zeros(1).double()
    mean, std = moments(strategy._arrays({"w": Natural(nothing, nothing)}))
    assert (mean.item(), std.item()) == pytest.approx((5.0, 1.0))

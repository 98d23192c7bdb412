"""SGPT's server by hand: groups and keys by choices and with momentum, the rest by images."""

import numpy as np

from fedbayes.comm.messages import ClientUpdate
from strategies.sgpt import SGPT

RNG = np.random.default_rng(0)
OLD = {
    "generator.shared": RNG.standard_normal((1, 2, 4)),
    "generator.groups": RNG.standard_normal((3, 1, 2, 4)),
    "generator.keys": RNG.standard_normal((3, 4)),
    "generator.choices": np.array([5.0, 0.0, 1.0]),
    "head.weight": RNG.standard_normal((4, 10)),
}
CHOICES = np.array([[8, 0, 2], [0, 0, 30]], np.float32)


def replies():
    return [
        ClientUpdate(
            i, {name: value + 1 + i for name, value in OLD.items()} | {"generator.choices": row}, row.sum(), {}
        )
        for i, row in enumerate(CHOICES)
    ]


def after(momentum):
    strategy = SGPT(momentum)
    strategy.shared = dict(OLD)
    strategy.aggregate(replies())
    return strategy.shared


def test_groups_and_keys_are_averaged_among_those_who_chose_them():
    for name in ("generator.groups", "generator.keys"):
        result = after(0.0)[name]
        np.testing.assert_allclose(result[0], OLD[name][0] + 1, err_msg="only client 0 chose it")
        np.testing.assert_array_equal(result[1], OLD[name][1], err_msg="nobody did")
        np.testing.assert_allclose(result[2], OLD[name][2] + (2 * 1 + 30 * 2) / 32)


def test_momentum_keeps_its_share_of_the_old():
    for name in ("generator.groups", "generator.keys"):
        result = after(0.75)[name]
        np.testing.assert_allclose(result[0], OLD[name][0] + 0.25)
        np.testing.assert_allclose(result[2], OLD[name][2] + 0.25 * 62 / 32)


def test_everything_else_is_averaged_by_images_without_momentum_and_choices_add_up():
    for name in ("generator.shared", "head.weight"):
        np.testing.assert_allclose(after(0.75)[name], OLD[name] + (10 * 1 + 30 * 2) / 40)
    np.testing.assert_array_equal(after(0.5)["generator.choices"], [13, 0, 33])


def test_choices_that_no_images_can_have_made_are_impossible():
    honest, malicious = replies()
    assert SGPT(0.0).rejection_reason(honest) is None
    for choices in (-1e7, 0.5, 11.0):
        malicious.arrays["generator.choices"] = np.full(3, choices, np.float32)
        assert "generator.choices " in SGPT(0.0).rejection_reason(malicious)

"""A and -A: two equal posteriors whose parameters average to none, unless their noise is turned back first."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from journal import Journal

from fedbayes import build
from fedbayes.configuration import compose
from fedbayes.errors import ConfigError
from fedbayes.messages import ClientRequest, ClientUpdate
from fedbayes.models.anchoring import RECEIVED, SENT, noise_bank, response
from fedbayes.simulation.in_process import InProcessGrid
from strategies.averaging import Averaging

NOISY = ("generator.noise.weight", "generator.skip.weight")


@pytest.fixture(scope="module")
def trained():
    """A client, its trained parameters, and how its generator answers the noise bank."""
    cfg = compose(["experiment=smoke", "optim.local_epochs=10"])
    data = build.data(cfg)
    client = build.client(cfg, data, build.model(cfg, data, "cpu"))
    (update,) = client.train([ClientRequest(0, 1, "train", "", client.initial(), noise_bank=True)])
    return client, update


def psi(client, arrays):
    """Draws of psi on the noise bank for the client's images, (bank, 1, images, r)."""
    client.model.stack([arrays])
    z = client.inputs.plain(client.data.whole([0], "train")).z
    bank = noise_bank(client.model.generator.noise_dim, 0)
    with torch.no_grad():
        return client.model.generator.mixing(z, bank[:, None, None].expand(-1, *z.shape[:2], -1))


def variance(client, arrays):
    return psi(client, arrays).var(0).sum(-1).mean().item()


def mirrored(client, update):
    """The same posterior with every direction of its noise the other way round, and what it answers."""
    arrays = {name: -a if name in NOISY else a for name, a in update.arrays.items()}
    bank = noise_bank(client.model.generator.noise_dim, 0)
    draws = psi(client, {name: a for name, a in arrays.items() if name not in (RECEIVED, SENT)})
    weights = torch.full(draws.shape[1:3], 1 / draws.shape[2])
    return replace(update, partition=1, arrays={**arrays, SENT: response(draws, bank, weights)[0].numpy()})


def test_a_and_minus_a_average_to_no_mixing_and_anchored_to_themselves(trained):
    client, update = trained
    alone = variance(client, update.arrays)
    other = mirrored(client, update)
    assert variance(client, other.arrays) == pytest.approx(alone, rel=1e-4), "it is the same posterior"
    kept = {}
    for name in ("mean", "anchored"):
        strategy = Averaging(name)
        strategy.aggregate([update, other])
        kept[name] = variance(client, strategy.shared) / alone
        if name == "anchored":
            assert not {RECEIVED, SENT} & set(strategy.shared), "answers are not parameters"
    assert kept["mean"] < 1e-6
    assert kept["anchored"] == pytest.approx(1.0, rel=1e-2)  # a finite bank looks a little different when turned


def test_a_reply_tells_its_answers_only_where_it_is_asked(trained):
    client, update = trained
    (silent,) = client.train([ClientRequest(0, 1, "train", "", client.initial())])
    assert set(update.arrays) - set(silent.arrays) == {RECEIVED, SENT}
    skip = client.initial()["generator.skip.weight"]  # f starts at zero, so psi starts linear
    np.testing.assert_allclose(update.arrays[RECEIVED], skip, atol=1e-6)


def test_a_generator_without_noise_cannot_be_anchored():
    with pytest.raises(ConfigError, match=r"aggregate=anchored: client 3 says nothing .* or aggregate=mean"):
        Averaging("anchored").aggregate([ClientUpdate(3, {"w": np.zeros(2)}, 1, {})])
    with pytest.raises(ConfigError, match=r"method\.strategy\.aggregate=median"):
        Averaging("median")


def play(*overrides):
    cfg = compose(["experiment=smoke", *overrides])
    data = build.data(cfg)
    client = build.client(cfg, data, build.model(cfg, data, "cpu"))
    loop, journal = build.loop(cfg), Journal()
    loop.run(InProcessGrid(client, cfg.clients, None, None), build.strategy(cfg, loop), client.initial(), journal)
    return client, [row for row in journal.rows if row["phase"] == "train"]


@pytest.mark.parametrize("aggregate", ["mean", "anchored"])
def test_every_round_says_what_became_of_the_mixing(aggregate):
    client, rows = play("rounds=3", f"method.strategy.aggregate={aggregate}")
    skip, scale = client.initial()["generator.skip.weight"], 0.5
    bank = len(noise_bank(2, 0))
    mixing = float(np.square(skip).sum()) * bank / (bank - 1)  # variances are unbiased
    first = mixing / (mixing + len(skip[0]) * scale**2)
    assert rows[0]["mixing_ratio_received"] == pytest.approx(first, rel=1e-4)
    assert "mixing_kept" not in rows[0]
    for before, row in pairwise(rows):
        assert row["mixing_kept"] == pytest.approx(row["mixing_ratio_received"] / before["mixing_ratio_sent"])


def test_a_lone_client_keeps_all_of_its_mixing():
    _, rows = play("clients=1", "rounds=2")
    assert rows[1]["mixing_kept"] == pytest.approx(1.0, rel=1e-4)


def test_prompts_without_noise_have_no_mixing_to_report():
    _, rows = play("method=fedvpt")
    assert not any("mixing" in name for row in rows for name in row)

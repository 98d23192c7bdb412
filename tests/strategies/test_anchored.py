"""A and -A: two equal posteriors whose parameters average to none, unless their noise is turned back first."""

from dataclasses import replace

import pytest
import torch
from journal import Journal
from smoke import play_rounds, smoke

from fedbayes.comm.messages import ClientRequest
from fedbayes.errors import ConfigError
from fedbayes.models.anchoring import noise_bank
from strategies.averaging import Averaging

NOISY = ("generator.noise.weight", "generator.skip.weight")


@pytest.fixture(scope="module")
def trained():
    """A client and the replies of a round of real training from the common start."""
    cfg, client = smoke("optim.local_epochs=3")
    return client, client.train([ClientRequest(p, 1, "train", "", client.initial()) for p in range(cfg.clients)])


def variance(client, arrays):
    """Of psi on the noise bank, mean over some images of a client."""
    client.model.stack([arrays])
    z, _ = client.inputs.features(client.data.batch([0], "train"))
    bank = noise_bank(client.model.generator.noise_dim, 0)
    with torch.no_grad():
        psi = client.model.generator.mixing(z, bank[:, None, None].expand(-1, *z.shape[:2], -1))
    return psi.var(0).sum(-1).mean().item()


def aggregated(client, updates, aggregate):
    strategy = Averaging(aggregate)
    strategy.shared = client.initial()
    strategy.aggregate(updates)
    return variance(client, strategy.shared)


def test_a_and_minus_a_average_to_no_mixing_and_anchored_to_themselves(trained):
    client, (update, *_) = trained
    mirror = replace(update, arrays={name: -a if name in NOISY else a for name, a in update.arrays.items()})
    alone = variance(client, update.arrays)
    assert variance(client, mirror.arrays) == pytest.approx(alone, rel=1e-4), "it is the same posterior"
    assert aggregated(client, [update, mirror], "mean") < 1e-6 * alone
    # A finite bank looks a little different when turned.
    assert aggregated(client, [update, mirror], "anchored") == pytest.approx(alone, rel=0.05)


def test_where_nothing_has_turned_anchoring_takes_nothing_away(trained):
    client, updates = trained
    mean, anchored = (aggregated(client, updates, name) for name in ("mean", "anchored"))
    assert anchored > 0.9 * mean


def play(*overrides):
    cfg, client = smoke(*overrides)
    journal = Journal()
    play_rounds(cfg, client, journal)
    return journal.rows


@pytest.mark.parametrize(
    "overrides",
    [["generator.kind=gaussian"], ["method.client.personal=[generator]"], ["method.client.personal=[generator.noise]"]],
)
def test_what_cannot_be_anchored_is_said_before_the_first_round(overrides):
    with pytest.raises(ConfigError, match=r"anchored needs .* aggregate=mean"):
        play("method.strategy.aggregate=anchored", *overrides)


@pytest.mark.parametrize("aggregate", ["mean", "anchored"])
def test_every_round_says_what_became_of_the_mixing(aggregate):
    rows = play("rounds=3", f"method.strategy.aggregate={aggregate}")
    trained = [row for row in rows if row["phase"] == "train"]
    evaluated = [row for row in rows if row["phase"] == "validation"]
    assert len(trained) == len(evaluated) == 3
    for before, after in zip(trained, evaluated, strict=True):
        assert 0 < before["mixing_ratio_sent"] < 1
        assert after["mixing_kept"] == pytest.approx(after["mixing_ratio"] / before["mixing_ratio_sent"])


def test_what_is_received_is_what_the_generator_starts_with():
    _, client = smoke()
    row = next(row for row in play() if row["phase"] == "train")
    skip, bank = client.initial()["generator.skip.weight"], len(noise_bank(2, 0))
    mixing = float((skip**2).sum()) * bank / (bank - 1)  # f starts at zero; variances are unbiased
    assert row["mixing_ratio_received"] == pytest.approx(mixing / (mixing + len(skip[0]) * 0.5**2), rel=1e-4)


def test_a_lone_client_keeps_all_of_its_mixing_and_prompts_without_noise_have_none():
    rows = play("clients=1", "inference.predict_samples=200")
    ratios = [row["mixing_kept"] for row in rows if row["phase"] == "validation"]
    assert ratios == pytest.approx([1.0] * len(ratios), rel=0.15)  # two estimates of one ratio
    assert not any("mixing" in name for row in play("method=fedvpt") for name in row), "there is none without noise"

"""Held-out domains: which client has which image, in what order, and which requests are refused."""

import numpy as np
import pytest
import torch
from schemes import ALL, scheme

from fedbayes.data.datasets import ImageSet
from fedbayes.data.federated import FederatedData
from fedbayes.data.partitions.held_out import hold_out, share_held_out
from fedbayes.data.partitions.splits import describe
from fedbayes.errors import ConfigError, PartitionError

DOMAINS = ("ink", "noise", "chalk", "empty", "paint")


@pytest.fixture
def image_set():
    """400 images whose pixels are their numbers; domain 3 has none."""
    number = torch.arange(400)
    return ImageSet(
        images=(number % 256).to(torch.uint8)[:, None, None, None].expand(-1, 3, 2, 2).contiguous(),
        labels=number % 4,
        domains=torch.tensor([0, 1, 2, 4])[number % 7 % 4],
        classes=("a", "b", "c", "d"),
        domain_names=DOMAINS,
        given_split=torch.full((400,), -1, dtype=torch.int8),
        names=tuple(map(str, range(400))),
    )


def test_nothing_held_out_leaves_everything_as_it_is(image_set):
    inside, whole = hold_out(image_set, [])
    assert inside is image_set
    assert whole is image_set
    splits = scheme("iid")(inside, 5)
    assert share_held_out(splits, 400, 400, seed=0) == splits
    assert "held_out" not in str(describe(splits, whole, "iid"))


def test_held_out_images_come_last_and_every_image_keeps_what_belongs_to_it(image_set):
    inside, whole = hold_out(image_set, ["chalk", "ink"])
    assert inside.domain_names == ("noise", "empty", "paint")
    assert whole.domain_names == ("noise", "empty", "paint", "ink", "chalk")
    assert len(whole) == len(image_set)
    assert len(inside) == sum(DOMAINS[d] not in ("chalk", "ink") for d in image_set.domains.tolist())
    assert all(torch.equal(getattr(inside, name), getattr(whole, name)[: len(inside)]) for name in ("images", "labels"))
    assert inside.images.data_ptr() == whole.images.data_ptr(), "pixels are kept once"
    place = [int(name) for name in whole.names]
    assert sorted(place) == list(range(400))
    for images in (inside, whole):
        rows = [int(name) for name in images.names]
        assert torch.equal(images.images, image_set.images[rows])
        assert torch.equal(images.labels, image_set.labels[rows])
        assert [images.domain_names[d] for d in images.domains] == [DOMAINS[d] for d in image_set.domains[rows]]
    assert place[: len(inside)] == sorted(place[: len(inside)]), "in their old order"


@pytest.mark.parametrize("name", ALL)
def test_no_client_has_a_held_out_image_in_its_own_splits(image_set, name):
    inside, whole = hold_out(image_set, ["noise"])
    splits = share_held_out(scheme(name)(inside, 6), len(inside), len(whole), seed=0)
    data = FederatedData(whole, splits)
    noise = whole.domain_names.index("noise")
    for client in range(6):
        for split in ("train", "validation", "test"):
            assert not (whole.domains[data.indices(client, split)] == noise).any()
        assert (whole.domains[data.indices(client, "held_out")] == noise).all()
    parts = [client.held_out for client in splits]
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(inside), len(whole)))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert all(np.array_equal(part, np.sort(part)) for part in parts)
    description = describe(splits, whole, name)
    assert description["domains"] == list(whole.domain_names)
    for row, client in zip(description["clients"], splits, strict=True):
        assert row["held_out"] == len(row["indices"]["held_out"]) == len(client.held_out)
        assert row["domains"][-1] == 0
        assert sum(row["domains"]) == row["train"] + row["validation"] + row["test"]


def test_held_out_images_depend_on_the_partitions_seed_alone(image_set):
    splits = scheme("iid")(image_set, 3)
    first, same, other = (share_held_out(splits, 300, 400, seed) for seed in (0, 0, 1))
    assert all(np.array_equal(a.held_out, b.held_out) for a, b in zip(first, same, strict=True))
    assert not all(np.array_equal(a.held_out, b.held_out) for a, b in zip(first, other, strict=True))


def test_fewer_held_out_images_than_clients(image_set):
    splits = scheme("iid")(image_set, 5)
    with pytest.raises(PartitionError, match=r"clients=5 .* 4 images .*evaluate\.held_out"):
        share_held_out(splits, 400, 404, seed=0)
    assert [len(client.held_out) for client in share_held_out(splits, 400, 405, seed=0)] == [1] * 5


@pytest.mark.parametrize(
    ("domains", "message"),
    [
        ("noise", r"evaluate.held_out=noise .*write \[noise\]"),
        (None, r"evaluate.held_out=None .*write \[\]"),
        (["noise", "snow"], r"held_out=\[noise, snow\]: snow .* ink, noise"),
        (["empty"], "empty .* ink, noise, chalk, paint"),
        (["ink", "noise", "chalk", "paint"], "no domain to train on"),
    ],
)
def test_impossible_domains_are_refused(image_set, domains, message):
    with pytest.raises(ConfigError, match=message):
        hold_out(image_set, domains)


def test_a_domain_that_is_named_by_a_number_and_named_twice(image_set):
    numbered = ImageSet(**{**vars(image_set), "domain_names": tuple("01234")})
    assert hold_out(numbered, [1, 1])[0].domain_names == ("0", "2", "3", "4")

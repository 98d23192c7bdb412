"""Partitions: what holds for every scheme, and small cases worked out by hand."""

import json
import logging
import time
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from schemes import ALL, effective, grid, image_set, scheme

from fedbayes.data.datasets import ImageSet
from fedbayes.data.partitions.base import AbstractScheme
from fedbayes.data.partitions.splits import ClientSplit, describe
from fedbayes.errors import PartitionError

MIXTURES = ["domain_and_label", "domain_mixture", "iid", "label_dirichlet"]


def images_of(client: ClientSplit) -> np.ndarray:
    return np.concatenate([client.train, client.validation, client.test])


def sizes(splits: tuple[ClientSplit, ...]) -> list[int]:
    return [len(images_of(client)) for client in splits]


def same(a: tuple[ClientSplit, ...], b: tuple[ClientSplit, ...]) -> bool:
    return describe(a, grid(4, 6, 40), "") == describe(b, grid(4, 6, 40), "")


def rows_of(scheme: AbstractScheme, images: ImageSet, clients: int) -> list[dict[str, Any]]:
    """The clients as `partition.json` describes them."""
    rows: list[dict[str, Any]] = describe(scheme(images, clients), images, "")["clients"]
    return rows


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=25)
@given(data=st.data())
def test_every_image_is_used_once_and_every_client_has_all_three_splits(name: str, data: st.DataObject) -> None:
    counts = data.draw(st.lists(st.integers(0, 30), min_size=6, max_size=6).filter(lambda counts: sum(counts) >= 30))
    images = image_set({(d, c): counts[3 * d + c] for d in range(2) for c in range(3)} | {(1, 2): counts[5] + 1})
    clients = data.draw(st.integers(1, 9))
    partition = scheme(name, seed=data.draw(st.integers(0, 2**40)), validation=data.draw(st.floats(0.01, 0.49)))
    try:
        splits = partition(images, clients)
    except PartitionError as error:
        if name in MIXTURES or "client" not in str(error):  # sizes of the others follow the supply
            raise
        return
    used = np.concatenate([images_of(client) for client in splits])
    assert len(np.unique(used)) == len(used)
    assert len(splits) == clients
    if name in MIXTURES:
        assert len(used) == len(images)
        assert max(sizes(splits)) - min(sizes(splits)) <= 1
    for client in splits:
        for part in (client.train, client.validation, client.test):
            assert len(part) >= 1
            assert (np.diff(part) > 0).all()


@pytest.mark.parametrize("name", ALL)
def test_the_seed_alone_decides(name: str) -> None:
    images = grid(4, 6, 40)
    first = scheme(name)(images, 12)
    np.random.seed(7)
    torch.manual_seed(7)
    assert same(first, scheme(name)(images, 12))
    assert not same(first, scheme(name, seed=1)(images, 12))


@pytest.mark.parametrize("name", ALL)
def test_a_cap_keeps_the_other_splits_and_is_nested(name: str) -> None:
    full, fewer, few = (scheme(name, max_train=most)(grid(4, 6, 40), 12) for most in (None, 20, 5))
    for a, b, c in zip(full, fewer, few, strict=True):
        assert len(b.train) == 20
        assert len(c.train) == 5
        assert set(c.train) < set(b.train) < set(a.train)
        for capped in (b, c):
            assert np.array_equal(capped.validation, a.validation)
            assert np.array_equal(capped.test, a.test)


@pytest.mark.parametrize("name", ALL)
def test_log_normal_sizes_have_the_asked_spread(name: str) -> None:
    more = {"classes_per_client": 4} if name == "label_shards" else {}
    totals = sizes(scheme(name, quantity=0.7, **more)(grid(4, 6, 4000), 100))
    assert np.log(totals).std() == pytest.approx(0.7, abs=0.2)
    assert sum(totals) == 96_000


@pytest.mark.parametrize("name", ALL)
def test_splits_are_stratified_to_within_two_images(name: str) -> None:
    images = grid(3, 4, 100)
    strata = (images.domains * 4 + images.labels).numpy()
    for client in scheme(name)(images, 6):
        counts = np.bincount(strata[images_of(client)], minlength=12)
        for part, fraction in ((client.train, 0.5), (client.validation, 0.15), (client.test, 0.35)):
            assert abs(len(part) - fraction * counts.sum()) <= 1
            assert (abs(np.bincount(strata[part], minlength=12) - fraction * counts) <= 2.5).all()


@pytest.mark.parametrize("name", ALL)
def test_given_splits_are_kept_and_follow_the_same_mixture(name: str) -> None:
    images = grid(3, 4, 300, given_split=([0] * 200 + [2] * 100) * 12)
    test_images = set(np.flatnonzero(images.given_split.numpy() == 2))
    splits = scheme(name)(images, 12)
    used: set[int] = set()
    for client in splits:
        assert not (set(client.train) | set(client.validation)) & test_images
        assert len(client.validation) == pytest.approx(0.15 * (len(client.train) + len(client.validation)), abs=1)
        used |= set(client.test)
        for groups, count in ((images.labels.numpy(), 4), (images.domains.numpy(), 3)):
            mixtures = [np.bincount(groups[part], minlength=count) / len(part) for part in (client.train, client.test)]
            assert abs(mixtures[0] - mixtures[1]).max() < 0.2
    assert used == test_images


def test_given_validation_without_test_has_test_images_taken_from_train() -> None:
    images = image_set({(0, 0): 60, (0, 1): 60}, given_split=[0] * 40 + [1] * 20 + [0] * 40 + [1] * 20)
    for client in scheme("iid")(images, 4):
        assert (len(client.train), len(client.validation), len(client.test)) == (13, 10, 7)
        assert (images.given_split[client.validation] == 1).all()
        assert (images.given_split[client.test] == 0).all()


def test_domain_mixture_with_tiny_alpha_fills_from_what_is_left() -> None:
    # Two clients of 40 images each: whichever domain they want, 30 + 10 or 50 - 10 is what there is.
    images = image_set({(0, 0): 30, (1, 0): 50})
    seen = set()
    for seed in range(12):
        rows = rows_of(scheme("domain_mixture", alpha=1e-4, seed=seed), images, 2)
        table = sorted(tuple(row["domains"]) for row in rows)
        assert sum(row[0] for row in table) == 30
        assert [sum(row) for row in table] == [40, 40]
        seen.add(table[0] if table[0][0] == 0 else "shared")
    assert seen == {(0, 40), "shared"}  # apart where they want different domains, by halves where they want the same


def test_domain_mixture_with_huge_alpha_makes_clients_alike() -> None:
    for row in rows_of(scheme("domain_mixture", alpha=1e6), grid(4, 2, 500), 4):
        assert np.array(row["domains"]) == pytest.approx(250, abs=60)  # four standard deviations of 1000 draws


def test_clients_are_mixed_inside_and_different_outside() -> None:
    rows = rows_of(scheme("domain_mixture"), grid(5, 10, 100), 20)
    assert 1.5 < effective(rows, "domains").mean() < 3.5
    assert (np.array([row["domains"] for row in rows]) / 250).std(0).mean() > 0.2


def test_one_domain_deals_clients_to_domains_largest_first() -> None:
    images = image_set({(0, 0): 10, (1, 0): 40, (2, 0): 21})
    rows = rows_of(scheme("one_domain"), images, 5)
    assert [row["domains"] for row in rows] == [[0, 20, 0], [0, 0, 11], [10, 0, 0], [0, 20, 0], [0, 0, 10]]


def test_label_dirichlet_with_tiny_alpha_gives_one_label_where_supply_permits() -> None:
    images = grid(1, 4, 1000)
    rows = rows_of(scheme("label_dirichlet", alpha=1e-4), images, 40)
    assert [sum(row["labels"]) for row in rows] == [100] * 40
    labels = effective(rows, "labels")
    assert (labels < 1.01).sum() >= 8
    assert labels.mean() < 2, "labels that many want run out"
    assert effective(rows_of(scheme("label_dirichlet", alpha=100.0), images, 40), "labels").mean() > 3.5
    rows = rows_of(scheme("label_dirichlet", alpha=1e-4), grid(1, 50, 20), 3)
    assert [sum(row["labels"]) for row in rows] == [334, 333, 333]
    (row,) = rows_of(scheme("label_dirichlet", alpha=1e-4, quantity=0.0), grid(1, 2, 1000), 1)
    assert row["labels"] == [1000, 1000]


def test_label_shards_shares_each_class_equally_among_its_clients() -> None:
    labels = np.array([row["labels"] for row in rows_of(scheme("label_shards"), grid(2, 4, 30), 6)])
    assert ((labels == 20).sum(1) == 2).all()  # 6 clients x 2 classes = 3 clients for each of 4 classes of 60 images
    assert ((labels == 20).sum(0) == 3).all()
    assert labels.sum() == 240


def test_label_shards_leaves_out_classes_of_no_client(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "fedbayes"):
        assert sizes(scheme("label_shards")(grid(1, 10, 12), 3)) == [24, 24, 24]
    assert "6 of 10 classes; 48 images" in caplog.text


def test_domain_and_label_wants_the_product_of_both_mixtures() -> None:
    rows = []
    for seed in range(9):
        rows += rows_of(scheme("domain_and_label", alpha=1e-4, label_alpha=1e6, seed=seed), grid(3, 4, 100), 3)
    assert [sum(row["labels"]) for row in rows] == [400] * 27
    assert any(sorted(row["domains"]) == [0, 0, 400] for row in rows)
    assert all(max(row["labels"]) - min(row["labels"]) <= 60 for row in rows)


def test_iid_clients_follow_the_whole() -> None:
    images = image_set({(0, 0): 3000, (1, 1): 1000})
    for row in rows_of(scheme("iid"), images, 4):
        assert row["labels"] == row["domains"]
        assert row["labels"][0] == pytest.approx(750, abs=48)  # four standard deviations


def test_clients_of_three_images_have_one_of_each() -> None:
    for client in scheme("iid", validation=0.45, test=0.5)(grid(1, 3, 10), 10):
        assert (len(client.train), len(client.validation), len(client.test)) == (1, 1, 1)


def test_thousands_of_clients_take_seconds() -> None:
    images, start = grid(6, 10, 200), time.process_time()
    assert sizes(scheme("domain_mixture")(images, 2000)) == [6] * 2000
    assert time.process_time() - start < 4


def test_description_is_json_and_counts_all_splits() -> None:
    images = image_set({(0, 0): 4, (1, 1): 6})
    splits = (ClientSplit(np.array([0, 4, 5]), np.array([1]), np.array([2, 9])),)
    expected = {
        "scheme": "iid",
        "classes": ["class0", "class1"],
        "domains": ["domain0", "domain1"],
        "clients": [
            {
                "partition": 0,
                "train": 3,
                "validation": 1,
                "test": 2,
                "labels": [3, 3],
                "domains": [3, 3],
                "indices": {"train": [0, 4, 5], "validation": [1], "test": [2, 9]},
            }
        ],
    }
    assert json.loads(json.dumps(describe(splits, images, "iid"))) == expected


@pytest.mark.parametrize("value", [1e-300, 1e-12, 1e12, 1.7e308])
def test_extreme_concentrations_still_use_every_image(value: float) -> None:
    for name in ("domain_mixture", "label_dirichlet"):
        assert sum(sizes(scheme(name, alpha=value)(grid(4, 6, 20), 7))) == 480


def test_order_of_calls_does_not_matter() -> None:
    images = grid(4, 6, 40)
    alone = scheme("label_dirichlet")(images, 12)
    for name in ALL:
        scheme(name)(images, 12)
    assert same(alone, scheme("label_dirichlet")(images, 12))

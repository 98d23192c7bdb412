"""Requests that no partition can meet: each is refused with its value, its place and a remedy."""

from typing import Any

import pytest
from schemes import ALL, grid, scheme

from fedbayes.errors import ConfigError, PartitionError


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    ("clients", "change", "message"),
    [
        (0, {}, "clients=0"),
        (2.5, {}, "clients=2.5"),
        (500, {}, "clients=500 with partition.min_images=3 need at least 1500 images, but the data has 480; lower"),
        (10, {"min_images": 2}, "partition.min_images=2"),
        (10, {"min_images": 49}, "clients=10 with partition.min_images=49 need at least 490 images"),
        (10, {"quantity": -1.0}, "partition.quantity=-1.0"),
        (10, {"quantity": float("nan")}, "partition.quantity=nan"),
        (10, {"max_train": 0}, "partition.max_train=0"),
        (10, {"validation": 0.0}, "partition.validation=0.0"),
        (10, {"test": 1.5}, "partition.test=1.5"),
        (10, {"test": float("nan")}, "partition.test=nan"),
        (10, {"validation": 0.5, "test": 0.5}, "partition.validation=0.5 and partition.test=0.5 leave nothing"),
    ],
)
def test_impossible_requests_are_refused(name: str, clients: int, change: dict[str, Any], message: str) -> None:
    with pytest.raises(PartitionError) as caught:
        scheme(name, **change)(grid(4, 6, 20), clients)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("domain_mixture", "alpha"),
        ("label_dirichlet", "alpha"),
        ("domain_and_label", "alpha"),
        ("domain_and_label", "label_alpha"),
    ],
)
@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), "much"])
def test_concentrations_must_be_positive_and_finite(name: str, key: str, value: object) -> None:
    with pytest.raises(PartitionError, match=f"partition.{key}={value}"):
        scheme(name, **{key: value})(grid(2, 2, 20), 4)


def test_seed_must_not_be_negative() -> None:
    with pytest.raises(ConfigError, match=r"partition\.seed=-1"):
        scheme("iid", seed=-1)(grid(2, 2, 20), 4)


def test_more_requests_that_only_one_scheme_refuses() -> None:
    with pytest.raises(PartitionError, match=r"clients=3 cannot hold one domain each of 4 .*raise clients to 4"):
        scheme("one_domain")(grid(4, 6, 20), 3)
    for wrong in (0, 7, 1.5):
        with pytest.raises(PartitionError, match=f"partition.classes_per_client={wrong}"):
            scheme("label_shards", classes_per_client=wrong)(grid(4, 6, 20), 10)


def test_a_client_with_too_little_is_named() -> None:
    with pytest.raises(
        PartitionError, match=r"client \d+ of 40 received \d images \(alpha=0.3, quantity=3.0, min_images=10\); lower"
    ):
        scheme("domain_mixture", quantity=3.0, min_images=10)(grid(4, 6, 20), 40)
    images = grid(2, 2, 10, given_split=[0] * 15 + [2] * 5 + [0] * 20)
    with pytest.raises(PartitionError, match=r"client \d of 2 received no image for tests \(one of 2 domains"):
        scheme("one_domain")(images, 2)

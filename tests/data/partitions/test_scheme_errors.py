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
        (2.5, {}, r"clients=2\.5"),
        (500, {}, r"clients=500 .*partition\.min_images=3 .* 1500 .* 480"),
        (10, {"min_images": 2}, r"partition\.min_images=2"),
        (10, {"min_images": 49}, r"clients=10 .*partition\.min_images=49 .* 490"),
        (10, {"quantity": -1.0}, r"partition\.quantity=-1\.0"),
        (10, {"quantity": float("nan")}, r"partition\.quantity=nan"),
        (10, {"max_train": 0}, r"partition\.max_train=0"),
        (10, {"validation": 0.0}, r"partition\.validation=0\.0"),
        (10, {"test": 1.5}, r"partition\.test=1\.5"),
        (10, {"test": float("nan")}, r"partition\.test=nan"),
        (10, {"validation": 0.5, "test": 0.5}, r"partition\.validation=0\.5 and partition\.test=0\.5"),
        (10, {"seed": -1}, r"partition\.seed=-1"),
    ],
)
def test_impossible_requests_are_refused(name: str, clients: int, change: dict[str, Any], message: str) -> None:
    with pytest.raises(PartitionError if clients == 500 or 49 in change.values() else ConfigError, match=message):
        scheme(name, **change)(grid(4, 6, 20), clients)


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
    with pytest.raises(ConfigError, match=f"partition.{key}={value}"):
        scheme(name, **{key: value})(grid(2, 2, 20), 4)


def test_more_requests_that_only_one_scheme_refuses() -> None:
    with pytest.raises(PartitionError, match=r"clients=3 .* 4 .*raise clients to 4"):
        scheme("one_domain")(grid(4, 6, 20), 3)
    for classes in (0, 7, 1.5):
        with pytest.raises(ConfigError, match=rf"partition\.classes_per_client={classes}"):
            scheme("label_shards", classes_per_client=classes)(grid(4, 6, 20), 10)


def test_a_client_with_too_little_is_named() -> None:
    with pytest.raises(PartitionError, match=r"client \d+ of 40 .*\(alpha=0.3, quantity=3.0, min_images=10\)"):
        scheme("domain_mixture", quantity=3.0, min_images=10)(grid(4, 6, 20), 40)
    images = grid(2, 2, 10, given_split=[0] * 15 + [2] * 5 + [0] * 20)
    with pytest.raises(PartitionError, match=r"client \d of 2 .* no test images"):
        scheme("one_domain")(images, 2)

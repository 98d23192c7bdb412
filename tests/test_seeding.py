"""Equal names give equal draws, different names different ones, and nobody's neighbours matter."""

import numpy as np
import pytest
import torch

from fedbayes.seeding import Streams, generator, key, numpy_generator


def test_a_key_is_the_same_in_every_process():
    # blake2b of "(1, 2, 3, 'noise')", once and for all: a change would change every published number.
    assert key(1, 2, 3, "noise") == 4589821914128567610


def test_a_key_depends_on_every_part_and_on_their_order():
    names = [(1, 2), (2, 1), (1, 2, 0), (12,), ("1", 2), (1, "2"), (1, 2, "noise"), (1, 2, "order"), ("1, 2",)]
    assert len({key(*name) for name in names}) == len(names)
    assert all(0 <= key(*name) < 2**63 for name in names)
    assert key(np.int64(3), np.int32(4), "noise") == key(3, 4, "noise")
    with pytest.raises(TypeError):
        key(3.0)


def test_generators_are_keyed_and_leave_the_global_ones_alone():
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, second, other = (torch.randn(5, generator=generator(*name)) for name in ((1, "a"), (1, "a"), (1, "b")))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert np.array_equal(numpy_generator(1, "a").random(5), numpy_generator(1, "a").random(5))
    Streams(0, 1, [4, 5], "noise").normal((2,), [3, 4], 5)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)


@pytest.mark.parametrize("lead", [(), (3,), (3, 2)])
def test_a_clients_draws_do_not_depend_on_its_neighbours(lead):
    alone = Streams(0, 1, [7], "noise").normal(lead, [4], 5)
    assert alone.shape == (*lead, 1, 4, 5)
    for partitions, counts in (([7, 8], [4, 9]), ([8, 7], [0, 4]), ([1, 7, 2], [30, 4, 1]), ([7, 9], [4, 1])):
        place = partitions.index(7)
        cohort = Streams(0, 1, partitions, "noise").normal(lead, counts, 5)
        assert torch.equal(cohort[..., place, :4, :], alone[..., 0, :, :])
        assert not cohort[..., place, 4:, :].any()


def test_later_draws_do_not_depend_on_the_neighbours_either_and_an_absent_client_does_not_draw():
    alone, pair = Streams(0, 1, [7], "order"), Streams(0, 1, [3, 7], "order")
    for round_trip in range(3):
        alone.normal((), [2], 3)
        pair.normal((), [round_trip, 2], 3)
        assert torch.equal(alone.permutation(0, 11), pair.permutation(1, 11))
    absent, present = Streams(0, 1, [7, 8], "noise"), Streams(0, 1, [7, 8], "noise")
    absent.normal((2,), [0, 3], 5)
    assert torch.equal(absent.normal((2,), [4, 1], 5)[:, 0], present.normal((2,), [4, 1], 5)[:, 0])


def test_seed_round_client_and_purpose_each_make_another_stream():
    names = [(0, 1, 7, "noise"), (1, 1, 7, "noise"), (0, 2, 7, "noise"), (0, 1, 8, "noise"), (0, 1, 7, "order")]
    draws = [Streams(seed, at, [client], purpose).normal((), [3], 2) for seed, at, client, purpose in names]
    assert len({tuple(draw.flatten().tolist()) for draw in draws}) == len(names)


def test_draws_are_standard_normal_and_permutations_permute():
    draws = Streams(0, 1, [1, 2], "noise").normal((50,), [100, 100], 20)
    assert abs(draws.mean().item()) < 0.01
    assert draws.std().item() == pytest.approx(1.0, abs=0.01)
    order = Streams(0, 1, [1], "order").permutation(0, 50)
    assert order.sort().values.tolist() == list(range(50))
    assert order.tolist() != list(range(50))

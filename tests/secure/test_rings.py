"""Elements of Z/m: arithmetic against Python's integers, bits on the wire, uniform samples, fixed point."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbayes.errors import ConfigError
from fedbayes.secure.rings import BIT, Residues, Ring, decode, encode, integers, pack, size_in_bits, unpack
from fedbayes.secure.stream import Shares, Stream, expanded, total

MODULI = [2, 3, 5, 8, 13, 64, 67, 127, 2**8, 2**9, 2**14, 2**24, 2**32, 2**33, 2**63, 2**64, 2**65]


def numbers(elements):
    """Elements as Python's integers."""
    if elements.dtype.names:
        return [int(low) + (int(top) << 64) for low, top in zip(elements["low"], elements["top"], strict=True)]
    return [int(element) for element in elements]


@pytest.mark.parametrize("modulus", MODULI)
def test_sums_and_negatives_are_those_of_python(modulus):
    module, stream = integers(modulus), Stream(bytes(32))
    a, b = stream.sample(module, (300,)), stream.sample(module, (300,))
    pairs = list(zip(numbers(a), numbers(b), strict=True))
    assert numbers(module.add(a, b)) == [(x + y) % modulus for x, y in pairs]
    assert numbers(module.subtract(a, b)) == [(x - y) % modulus for x, y in pairs]
    assert numbers(module.negate(a)) == [-x % modulus for x, _ in pairs]
    assert max(numbers(a)) < modulus
    assert max(numbers(a)) >= modulus * 0.9 - 1


@pytest.mark.parametrize("modulus", [3, 67, 127])
def test_products_of_residues_are_those_of_python(modulus):
    field = Residues(modulus)
    a, b = np.meshgrid(*2 * [np.arange(modulus, dtype=np.uint8)])
    assert (field.multiply(a, b) == a.astype(int) * b % modulus).all()


@pytest.mark.parametrize("modulus", MODULI)
def test_a_message_takes_the_bits_of_its_elements_and_comes_back(modulus):
    module, stream = integers(modulus), Stream(bytes(range(32)))
    parts = [
        (module, stream.sample(module, (3, 5))),
        (BIT, stream.sample(BIT, (7,))),
        (module, stream.sample(module, (0,))),
    ]
    forms = [(ring, array.shape) for ring, array in parts]
    data = pack(parts)
    assert size_in_bits(forms) == 15 * (modulus - 1).bit_length() + 7
    assert len(data) == -(-size_in_bits(forms) // 8)
    for (_, array), back in zip(parts, unpack(data, forms), strict=True):
        assert (array == back).all()
        assert array.shape == back.shape
    with pytest.raises(ValueError, match="bytes"):
        unpack(data + b"0", forms)


@pytest.mark.parametrize("modulus", [2, 5, 64, 67, 251 // 2, 2**8])
def test_samples_are_uniform(modulus):
    from scipy.stats import chisquare

    counts = np.bincount(Stream(b"7" * 32).sample(integers(modulus), (200_000,)), minlength=modulus)
    assert len(counts) == modulus
    assert chisquare(counts).pvalue > 1e-3


def test_streams_of_one_seed_differ_by_their_number_and_repeat():
    ring = Ring(64)
    first = [Stream(bytes(32), number).sample(ring, (100,)) for number in (0, 1, 0)]
    assert (first[0] == first[2]).all()
    assert not (first[0] == first[1]).any()
    whole, stream = Stream(bytes(32)).sample(ring, (100,)), Stream(bytes(32))
    assert (whole == np.concatenate([stream.sample(ring, (size,)) for size in (1, 60, 39)])).all()
    with pytest.raises(ValueError, match="32 bytes"):
        Stream(b"short")


@given(
    st.lists(st.floats(-8, 8), min_size=1, max_size=20),
    st.integers(0, 20),
    st.sampled_from([25, 32, 64]),
)
def test_fixed_point_is_within_half_a_unit(values, fraction, bits):
    ring = Ring(bits)
    back = decode(encode(np.array(values), ring, fraction), ring, fraction)
    assert np.abs(back - values).max() <= 2.0 ** -(fraction + 1)


@pytest.mark.parametrize("value", [8.0, -8.0, np.inf, np.nan])
def test_a_value_that_does_not_fit_is_refused(value):
    with pytest.raises(ConfigError, match="fraction"):
        encode(np.array([0.0, value]), Ring(24), 20)
    assert decode(encode(np.array([7.9999, -7.9999]), Ring(24), 20), Ring(24), 20) == pytest.approx([7.9999, -7.9999])


def test_signed_numbers_reach_both_ends():
    for bits in (1, 7, 8, 33, 64):
        ring = Ring(bits)
        edges = np.array([-(2 ** (bits - 1)), -1, 2 ** (bits - 1) - 1])
        assert (ring.signed(ring.reduce(edges)) == edges).all()


@pytest.mark.parametrize("modulus", [67, 2**8, 2**32, 2**64])
def test_two_shares_are_the_secret_and_one_is_a_seed(modulus):
    module = integers(modulus)
    secret = module.reduce(np.arange(600).reshape(20, 30))
    shares = Shares.split(module, secret)
    assert (total(module, [shares.vector, expanded(module, (20, 30), shares.seed)]) == secret).all()
    again = Shares.split(module, secret)
    assert again.seed != shares.seed
    assert (again.vector != shares.vector).any()


def test_a_ring_of_no_or_too_many_bits_is_refused():
    for bits in (0, 65):
        with pytest.raises(ValueError, match=f"bits={bits}"):
            Ring(bits)
    with pytest.raises(ValueError, match="modulus=129"):
        integers(129)

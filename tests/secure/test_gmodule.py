"""Each protocol of the G-module, on every element of small groups, at its counted cost."""

import numpy as np
import pytest
from two_parties import counts, run, split, uniform

from fedbayes.secure.actions import Shift, ShiftScale, Sign
from fedbayes.secure.gmodule import action, cross_action, first_nonzero, module_transform, next_prime, recover
from fedbayes.secure.party import in_threads
from fedbayes.secure.rings import BIT, Residues, integers


@pytest.mark.parametrize("modulus", [2, 3, 67, 2**9, 2**64, 2**65])
def test_bits_change_their_module(modulus):
    module, bits = integers(modulus), np.array([0, 1] * 30, np.uint8)
    result, transcript = run(lambda party, b: module_transform(party, module, b), module, (BIT, bits))
    assert (result == module.reduce(bits)).all()
    assert counts(transcript, 60) == (2, 1, (modulus - 1).bit_length())


@pytest.mark.parametrize("modulus", [2, 13, 2**16])
@pytest.mark.parametrize("count", [1, 5, 8])
def test_an_action_shifts_what_the_other_party_knows(modulus, count):
    acting = Shift(modulus, count) if count > 1 else Sign(modulus, 1)
    name = "shift" if count > 1 else "sign"
    g = np.tile(np.arange(acting.indices.modulus, dtype=np.uint8), 20)
    x = uniform(acting.module, (len(g), count))
    operands = g, x

    def program(party):
        return action(party, acting, name, operands[party.index]), party.transcript

    (first, transcript), (second, _) = in_threads(program)
    result = acting.module.add(first, second)
    for i, row in enumerate(result):
        expected = np.roll(x[i], -int(g[i])) if count > 1 else [int(x[i, 0]) * (-1) ** int(g[i]) % modulus]
        assert (row == expected).all()
    size = count * acting.module.bits
    assert counts(transcript, len(g)) == (size + acting.indices.bits, 1, size)


@pytest.mark.parametrize("modulus", [2, 67, 2**10, 2**64])
def test_signs_in_shares_act_on_numbers_in_shares(modulus):
    module = integers(modulus)
    signs, x = np.array([0, 1] * 20, np.uint8), uniform(module, (40, 3))
    acting = Sign(modulus, 3)
    result, transcript = run(
        lambda party, g, share: cross_action(party, acting, "sign", g, share), module, (BIT, signs), (module, x)
    )
    expected = [
        [int(entry) * (1 - 2 * int(sign)) % modulus for entry in row] for sign, row in zip(signs, x, strict=True)
    ]
    assert (result == expected).all()
    assert counts(transcript, 40) == (2 * (3 * module.bits + 1), 1, 3 * module.bits)


def test_shifts_in_shares_act_on_arrays_in_shares():
    acting, module = Shift(2**16, 5), integers(2**16)
    places, x = np.arange(5, dtype=np.uint8), uniform(module, (5, 5))
    result, _ = run(
        lambda party, g, share: cross_action(party, acting, "shift", g, share),
        module,
        (integers(5), places),
        (module, x),
    )
    assert (result == [np.roll(row, -i) for i, row in enumerate(x)]).all()


def test_recovery_gives_one_party_g_and_the_other_g_b():
    acting, field = ShiftScale(11, 6), Residues(11)
    b = uniform(field, (500, 6))
    shares = split(field, b)

    def program(party):
        return recover(party, acting, "shift_scale", shares[party.index]), party.transcript

    (g, transcript), ((image,), _) = in_threads(program)
    assert (acting.act(g, b) == image).all()
    assert set(g[0]) == set(range(6))
    assert set(g[1].ravel()) == set(range(10)), "multipliers are 1 to 10"
    assert counts(transcript, 500) == (2 * 6 * 4, 2, 6 * 4)


@pytest.mark.parametrize("count", [2, 9, 64])
def test_the_first_one_is_where_it_is(count):
    field, rng = Residues(next_prime(count + 2)), np.random.default_rng(count)
    bits = (rng.random((300, count)) < rng.random((300, 1))).astype(np.uint8)
    bits[np.arange(300), rng.integers(0, count, 300)] = 1
    place, transcript = run(lambda party, z: first_nonzero(party, field, z), integers(count), (field, bits))
    assert (place == bits.argmax(axis=1)).all()
    assert transcript.total("online").rounds == 2


def test_primes():
    assert [next_prime(n) for n in (2, 4, 14, 24, 66, 67, 114)] == [2, 5, 17, 29, 67, 67, 127]

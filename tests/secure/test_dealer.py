"""The dealer answers both parties alike, each request once, in this process and over a connection."""

import json
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Client, Listener

import numpy as np
import pytest

from fedbayes.errors import RunError
from fedbayes.secure.bilinear import Triple
from fedbayes.secure.channel import LOOPBACK
from fedbayes.secure.dealer import Dealer, from_json, remote_source, to_json
from fedbayes.secure.rings import Ring

KEY = b"a key for one test"
SEEDS = (b"0" * 32, b"1" * 32)
REQUESTS = [
    Triple("multiply", 64, (3, 1), (1, 4)),
    Triple("matmul", 24, (2, 3), (3, 5)),
    Triple("multiply", 1, (5,), (5,)),
]


@pytest.mark.parametrize("request_", REQUESTS)
def test_the_image_of_the_masks_is_shared(request_):
    dealer = Dealer()
    first, second = (dealer.source(index).deal(request_) for index in (0, 1))
    ring = Ring(request_.bits)
    x, y, z = (ring.add(a, b).astype(object) for a, b in zip(first, second, strict=True))
    assert (z == (x * y if request_.name == "multiply" else x @ y) % ring.modulus).all()


def test_equal_seeds_repeat_and_fresh_ones_do_not():
    deals = [Dealer(seeds).source(0).deal(REQUESTS[0])[0] for seeds in (SEEDS, SEEDS, None, None)]
    assert (deals[0] == deals[1]).all()
    assert not (deals[0] == deals[2]).any()
    assert not (deals[2] == deals[3]).any()


def test_two_requests_have_two_masks():
    source = Dealer(SEEDS).source(0)
    assert not (source.deal(REQUESTS[0])[0] == source.deal(REQUESTS[0])[0]).any()


def test_a_mask_is_not_dealt_twice():
    dealer = Dealer()
    dealer.answer(1, 0, REQUESTS[0])
    with pytest.raises(RunError, match="twice"):
        dealer.answer(1, 0, REQUESTS[0])
    with pytest.raises(RunError, match="request 5"):
        dealer.answer(0, 5, REQUESTS[0])


@pytest.mark.parametrize("first", [0, 1])
def test_parties_that_ask_for_different_things_are_refused(first):
    dealer = Dealer()
    dealer.answer(first, 0, REQUESTS[0])
    with pytest.raises(RunError, match="request 0"):
        dealer.answer(1 - first, 0, REQUESTS[1])


@pytest.mark.parametrize("request_", REQUESTS)
def test_a_request_survives_the_wire_and_is_no_pickle(request_):
    assert from_json(to_json(request_)) == request_
    assert json.loads(to_json(request_))[0] == "Triple"


def test_a_request_of_an_unknown_kind_is_refused():
    with pytest.raises(KeyError):
        from_json(b'["os.system", {}]')


def clients(listener):
    return [Client(listener.address, authkey=KEY) for _ in range(2)]


def test_a_dealer_over_connections_deals_the_same():
    with Listener((LOOPBACK, 0), authkey=KEY) as listener, ThreadPoolExecutor(3) as threads:
        served = threads.submit(Dealer(SEEDS).serve, listener)
        connections = clients(listener)
        sources = list(threads.map(remote_source, (0, 1), connections))
        remote = [[source.deal(request) for request in REQUESTS] for source in sources]
        for connection in connections:
            connection.close()
        assert served.result() is None
    local = Dealer(SEEDS)
    for index in (0, 1):
        source = local.source(index)
        for request, arrays in zip(REQUESTS, remote[index], strict=True):
            for a, b in zip(arrays, source.deal(request), strict=True):
                assert np.array_equal(a, b)


def test_a_dealer_hangs_up_on_parties_that_ask_for_different_things():
    with Listener((LOOPBACK, 0), authkey=KEY) as listener, ThreadPoolExecutor(3) as threads:
        served = threads.submit(Dealer(SEEDS).serve, listener)
        connections = clients(listener)
        first, second = threads.map(remote_source, (0, 1), connections)
        second.deal(REQUESTS[0])
        first.deal(REQUESTS[1])
        connections[1].close()
        with pytest.raises(RunError, match="request 0"):
            served.result()
        connections[0].close()


def test_one_party_cannot_take_both_places():
    with Listener((LOOPBACK, 0), authkey=KEY) as listener, ThreadPoolExecutor(1) as threads:
        served = threads.submit(Dealer(SEEDS).serve, listener)
        connections = clients(listener)
        for connection in connections:
            connection.send_bytes(bytes([1]))
        with pytest.raises(RunError, match="party 1"):
            served.result()
        for connection in connections:
            connection.close()

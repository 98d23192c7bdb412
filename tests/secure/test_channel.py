"""Two parties on queues and on sockets: equal results, counted bits are the bytes of the line, errors reach both."""

import threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Listener

import numpy as np
import pytest

from fedbayes.errors import RunError
from fedbayes.secure.channel import LOOPBACK, Connected, Paired
from fedbayes.secure.dealer import Dealer
from fedbayes.secure.party import Party, in_threads
from fedbayes.secure.rings import BIT, Ring, integers

KEY = b"a key for one test"


def line_over_loopback():
    with Listener((LOOPBACK, 0), authkey=KEY) as listener, ThreadPoolExecutor(1) as thread:
        other = thread.submit(Connected.connect, listener.address[1], KEY)
        return Connected.listen(listener), other.result()


@pytest.mark.parametrize("line", [Paired.line, line_over_loopback])
def test_both_ends_get_what_the_other_sends(line):
    ends = line()
    large = 3_000_000  # beyond any socket's buffer: two parties that write first would block
    with ThreadPoolExecutor(2) as threads:
        futures = [threads.submit(end.exchange, bytes([i]) * large, large) for i, end in enumerate(ends)]
        assert [future.result()[0] for future in futures] == [1, 0]
        one_way = [threads.submit(ends[0].exchange, b"abc", 0), threads.submit(ends[1].exchange, b"", 3)]
        assert [future.result() for future in one_way] == [b"", b"abc"]
    for end in ends:
        end.close()


@pytest.mark.parametrize("line", [Paired.line, line_over_loopback])
def test_a_closed_line_ends_the_other_party(line):
    a, b = line()
    a.close()
    with pytest.raises(RunError):
        b.exchange(b"", 1)
    b.close()


def test_a_stranger_without_the_key_is_turned_away():
    from multiprocessing import AuthenticationError

    with Listener((LOOPBACK, 0), authkey=KEY) as listener:
        outcome = []

        def stranger():
            try:
                Connected.connect(listener.address[1], b"another key")
            except AuthenticationError as error:
                outcome.append(error)

        thread = threading.Thread(target=stranger)
        thread.start()
        with pytest.raises(AuthenticationError):
            Connected.listen(listener)
        thread.join()
        assert len(outcome) == 1


def test_costs_are_counted_by_phase_and_protocol():
    def program(party):
        with party.protocol("outer"):
            party.swap((integers(67), np.zeros(3, np.uint8)))
            with party.protocol("inner"):
                party.exchange(
                    [(BIT, np.zeros(9, np.uint8))] if party.index else [], [] if party.index else [(BIT, (9,))]
                )
        party.open((Ring(64), np.zeros(2, np.uint64)))
        return party.transcript

    first, second = in_threads(program)
    assert first.costs == second.costs
    assert first.rows() == [
        {"phase": "online", "protocol": "outer", "bits": 42, "bytes": 6, "messages": 2, "rounds": 1},
        {"phase": "online", "protocol": "outer/inner", "bits": 9, "bytes": 2, "messages": 1, "rounds": 1},
        {"phase": "online", "protocol": "", "bits": 256, "bytes": 32, "messages": 2, "rounds": 1},
    ]
    assert first.total("online", "outer").bits == 51
    assert first.total("online").rounds == 3


def test_opening_adds_the_shares():
    shares = [np.array([2**63 + 5], np.uint64), np.array([2**63 + 7], np.uint64)]
    for result in in_threads(lambda party: party.open((Ring(64), shares[party.index]))):
        assert result[0] == 12


def test_an_error_of_one_party_is_raised_and_the_other_stops():
    def program(party):
        if party.index == 1:
            raise ZeroDivisionError
        return party.swap((BIT, np.zeros(1, np.uint8)))

    with pytest.raises(ZeroDivisionError):
        in_threads(program)


def test_parties_need_a_new_dealer_for_another_program():
    from fedbayes.secure.bilinear import product

    dealer, x = Dealer(), np.zeros(1, np.uint64)
    in_threads(lambda party: product(party, Ring(64), x, x), dealer)
    with pytest.raises(RunError, match="twice"):
        in_threads(lambda party: product(party, Ring(64), x, x), dealer)


def test_both_parties_over_sockets_end_as_in_threads():
    from fedbayes.secure.bilinear import product

    ring = Ring(32)
    shares = np.random.default_rng(0).integers(0, 2**32, (2, 2, 50), np.uint32)
    seeds = (b"0" * 32, b"1" * 32)

    def program(party):
        return product(party, ring, *shares[party.index]), party.transcript.costs

    dealer = Dealer(seeds)
    with ThreadPoolExecutor(2) as threads:
        ends = line_over_loopback()
        futures = [threads.submit(program, Party(i, end, dealer.source(i))) for i, end in enumerate(ends)]
        over_sockets = [future.result() for future in futures]
    for end in ends:
        end.close()
    for (result, costs), (expected, expected_costs) in zip(
        over_sockets, in_threads(program, Dealer(seeds)), strict=True
    ):
        assert (result == expected).all()
        assert costs == expected_costs

"""Three processes on loopback end as two threads do, and a socket carries the bytes that were counted."""

import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Listener

from three_processes import KEY, SEEDS, program, results

from fedbayes.secure.channel import LOOPBACK, Connected
from fedbayes.secure.dealer import Dealer
from fedbayes.secure.party import Party, in_threads

HEADER = 4  # bytes of a message's length, by which `multiprocessing.connection` frames it


def test_processes_end_as_threads_do_bit_for_bit():
    expected = in_threads(program, Dealer(SEEDS))
    for (shares, rows), (shares_of_threads, rows_of_threads) in zip(results(), expected, strict=True):
        assert all((a == b).all() for a, b in zip(shares, shares_of_threads, strict=True))
        assert rows == rows_of_threads


def relay(port, counted):
    """Listen in front of a port and pass everything on, counting bytes in both directions."""
    front = socket.create_server((LOOPBACK, 0))

    def copy(source, target):
        while data := source.recv(1 << 16):
            counted.append(len(data))
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)

    def serve():
        with front, front.accept()[0] as a, socket.create_connection((LOOPBACK, port)) as b:
            back = threading.Thread(target=copy, args=(b, a))
            back.start()
            copy(a, b)
            back.join()

    thread = threading.Thread(target=serve)
    thread.start()
    return front.getsockname()[1], thread


def bytes_on_a_socket(work):
    """What two parties transmit, counted on the wire, and the transcript."""
    counted, dealer = [], Dealer(SEEDS)
    with Listener((LOOPBACK, 0), authkey=KEY) as listener, ThreadPoolExecutor(2) as threads:
        port, thread = relay(listener.address[1], counted)
        other = threads.submit(Connected.connect, port, KEY)
        ends = Connected.listen(listener), other.result()
        parties = [Party(index, end, dealer.source(index)) for index, end in enumerate(ends)]
        for future in [threads.submit(work, party) for party in parties]:
            future.result()
        for end in ends:
            end.close()
    thread.join()
    return sum(counted), parties[0].transcript.total("online")


def test_a_socket_carries_the_counted_bytes():
    handshake, _ = bytes_on_a_socket(lambda party: None)
    transmitted, cost = bytes_on_a_socket(program)
    assert cost.bytes * 8 == cost.bits
    assert transmitted - handshake == cost.bytes + HEADER * cost.messages

"""Two parties and a dealer, each a process of its own, on loopback."""

import multiprocessing
from multiprocessing.connection import Client, Listener

import numpy as np

from fedbayes.secure.arithmetic import COMPARISONS, relu
from fedbayes.secure.channel import LOOPBACK, Connected
from fedbayes.secure.dealer import Dealer, remote_source
from fedbayes.secure.party import Party
from fedbayes.secure.rings import Ring

KEY = b"a key for one test"
SEEDS = (b"0" * 32, b"1" * 32)


def program(party):
    """ReLU by either comparison, of a multiple of 8 numbers: every message is of whole bytes."""
    x = np.arange(104, dtype=np.uint64) * np.uint64(2**57 + 1) * np.uint64(party.index)
    return [relu(party, Ring(64), x, less) for less in COMPARISONS.values()], party.transcript.rows()


def deal(pipe):
    with Listener((LOOPBACK, 0), authkey=KEY) as listener:
        pipe.send(listener.address)
        Dealer(SEEDS).serve(listener)


def take_part(index, address, pipe):
    if index == 0:
        with Listener((LOOPBACK, 0), authkey=KEY) as listener:
            pipe.send(listener.address[1])
            channel = Connected.listen(listener)
    else:
        channel = Connected.connect(pipe.recv(), KEY)
    with Client(address, authkey=KEY) as connection:
        pipe.send(program(Party(index, channel, remote_source(index, connection))))
    channel.close()


def results():
    """What both parties end with; nothing is left running."""
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(3)]
    dealer = context.Process(target=deal, args=(pipes[2][1],))
    dealer.start()
    address = pipes[2][0].recv()
    parties = [context.Process(target=take_part, args=(index, address, pipes[index][1])) for index in (0, 1)]
    for process in parties:
        process.start()
    pipes[1][0].send(pipes[0][0].recv())
    ends = [pipes[index][0].recv() for index in (0, 1)]
    for process in (*parties, dealer):
        process.join()
        process.close()
    return ends

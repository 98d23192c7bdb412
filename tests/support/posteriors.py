"""Mixings and a reverse model that tests of several files use."""

import torch

from fedbayes.inference.mixing import Pushforward
from fedbayes.inference.reverse import GaussianReverse


def unit(batch=(), event=2, spread=1.0):
    """A mixing of independent normals."""
    return lambda shape: spread * torch.randn(*shape, *batch, event)


def pushed(batch=(), event=2):
    return Pushforward(lambda eps: eps, event, batch)


def no_aim(event=2):
    """A reverse model that is N(0, I) whatever p is."""
    return GaussianReverse(lambda p: p.new_zeros(*p.shape[:-1], GaussianReverse.outputs(event)), event)

"""Prompt generators of all kinds, small."""

from functools import partial

import torch

from fedbayes.models.prompts import make_prompts
from fedbayes.models.prompts.base import Sizes
from fedbayes.models.prompts.coded import GeneratorSettings

SETTINGS = {"hidden": 5, "code_dim": 6, "noise_dim": 4, "init_scale": 0.3, "init_mixing": 0.5, "decoder_scale": 0.2}


def maker(kind="fixed", reverse_outputs=0, **changes):
    """What `PromptedViT` takes as its generator."""
    return partial(make_prompts, GeneratorSettings(kind=kind, **SETTINGS | changes), reverse_outputs=reverse_outputs)


def prompts(kind, sizes=(2, 3, 8), **changes):
    return maker(kind, **changes)(sizes=Sizes(*sizes), rng=torch.Generator().manual_seed(0))


def special(kind, sizes, settings, **changes):
    """Prompts of a method's own class, some of whose sizes or settings may differ."""
    sizes = Sizes(**{name: changes.pop(name, size) for name, size in sizes.items()})
    return kind(sizes, torch.Generator().manual_seed(0), **settings | changes).double()

"""Several sets of prompts side by side: which of them an image is near to, and how they are mixed for it."""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def cosine(
    z: Float[Tensor, "clients images dim"], keys: Float[Tensor, "clients sets dim"]
) -> Float[Tensor, "clients images sets"]:
    """Cosine of the angle between each client's images and its keys; 0 for a key of length 0."""
    return F.normalize(z, dim=-1) @ F.normalize(keys, dim=-1).mT


def mixture(
    weights: Float[Tensor, "clients images sets"], prompts: Float[Tensor, "clients_or_1 sets blocks length dim"]
) -> Float[Tensor, "clients images blocks length dim"]:
    """`sum_k w_k P_k` for each image; weights of 0 and 1 choose a set."""
    mixed: Tensor = (weights @ prompts.flatten(2)).unflatten(-1, prompts.shape[2:])
    return mixed

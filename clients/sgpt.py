r"""SGPT: shared prompts for all images, group prompts for those that are alike (Deng et al., CVPR 2024).

Unlocking the Potential of Prompt-Tuning in Bridging Generalized and Personalized Federated Learning, arXiv 2310.18285.
The first prompted blocks have shared prompts P_S, the last ones the prompts P_g of the image's group. With q the
image's frozen class token, k_g learnable keys and r_g the share of all choices that fell on group g so far,

    training      g = argmin_g (1 - cos(q, k_g)) (r_g + 0.0005)
    prediction    g = argmin_g (1 - cos(q, k_g))

so that no group takes everything while they are learnt. A round is two blocks of coordinate descent (`optim.blocks`):
P_S and head, then groups, keys and head; the loss has the term `-cos(q, k_g)`, which pulls a key towards its images.
`strategies/sgpt.py` is the server's side.

Choice, key term and orthonormal initial keys follow the authors' code. What is different here: prompts replace those of
the block before instead of joining them, so that group prompts are read by the last `group_blocks` alone, where the
code puts them into two or three blocks in the middle and keeps them up to the last; the head reads the class token
alone and not its mean with group prompts; the group prompts are also there while P_S is trained; all clients of a round
are sent the same r_g, where the code counts client after client; and q enters the cosine as it is, where the code cuts
off what is negative. Its second choice for data of several domains, by the majority of a batch, supposes one domain per
client.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import cast, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from clients.base import parameters_of
from clients.wrapping import AbstractWrappingClient
from fedbayes.arrays import Arrays
from fedbayes.comm.messages import ClientRequest, ClientUpdate
from fedbayes.errors import ConfigError, require_whole
from fedbayes.models.prompt_sets import cosine, mixture
from fedbayes.models.prompts.base import AbstractPrompts, Sizes, xavier

CHOICES = "generator.choices"  # number of choices of each group: sent out of all clients, sent back of one
FLOOR = 5e-4  # stands for the fraction of a group that was never chosen


@final
class GroupPrompts(AbstractPrompts):
    """Shared prompts in the first blocks, those of the image's group in the last.

    Args:
        sizes: of the prompts.
        rng: samples the initial values.
        groups: number of groups.
        group_blocks: prompted blocks, from the last, that have group prompts; the others have shared ones.

    Raises:
        ConfigError: if a value is out of range.
    """

    kind = "group"

    def __init__(self, sizes: Sizes, rng: torch.Generator, *, groups: int, group_blocks: int) -> None:
        super().__init__()
        blocks, length, dim = sizes.shape
        require_whole("prompts.length", length, 1)
        if require_whole("method.generator.groups", groups, 1) > dim:
            raise ConfigError(
                f"method.generator.groups={groups} keys cannot be orthogonal in {dim} dimensions; lower it."
            )
        if require_whole("method.generator.group_blocks", group_blocks, 1) >= blocks:
            raise ConfigError(
                f"method.generator.group_blocks={group_blocks} leaves none of {blocks} prompted blocks to shared "
                "prompts; set prompts.depth=deep, and lower it or prompts.start_layer."
            )
        self.shared = nn.Parameter(xavier(1, blocks - group_blocks, length, dim, rng=rng))
        self.groups = nn.Parameter(xavier(1, groups, group_blocks, length, dim, rng=rng))
        directions, _ = torch.linalg.qr(torch.randn(dim, groups, generator=rng))
        self.keys = nn.Parameter(directions.mT.unsqueeze(0).contiguous())
        self.choices = nn.Parameter(torch.zeros(1, groups), requires_grad=False)

    def choice(self, z: Float[Tensor, "clients images dim"]) -> Int[Tensor, "clients images"]:
        """Return each image's group; as in training where earlier choices are known, else the nearest key's."""
        fraction = self.choices / self.choices.sum(-1, keepdim=True).clamp(min=1)
        cost = (1 - cosine(z, self.keys)) * (fraction + FLOOR).unsqueeze(1)
        return cost.argmin(-1)

    def plain(self, z: Float[Tensor, "clients images dim"]) -> Float[Tensor, "clients images blocks length dim"]:
        """Return `P_S` in the first blocks, `P_g` in the last."""
        group = mixture(self._one_hot_choice(z), self.groups)
        shared = self.shared.unsqueeze(1).expand(-1, z.shape[1], -1, -1, -1)
        return torch.cat([shared, group], dim=2)

    def penalty(
        self, z: Float[Tensor, "clients images dim"], weights: Float[Tensor, "clients images"]
    ) -> Float[Tensor, " clients"]:
        """Return `-cos(q, k_g)`, the mean over each client's images."""
        closeness = (cosine(z, self.keys) * self._one_hot_choice(z)).sum(-1)
        return -(closeness * weights).sum(-1)

    def _one_hot_choice(self, z: Tensor) -> Tensor:
        """Return `(C, B, G)`."""
        return F.one_hot(self.choice(z), self.keys.shape[1]).to(z.dtype)


@final
class SGPTClient(AbstractWrappingClient):
    """Counts how many of its images chose each group; predicts with the nearest keys."""

    def train(self, requests: Sequence[ClientRequest]) -> list[ClientUpdate]:
        """Tune prompts; replies say, as `choices`, how many images chose each group when the round began."""
        self.model.stack([parameters_of(request) for request in requests])
        generator = cast(GroupPrompts, self.model.generator)
        partitions = [request.partition for request in requests]
        z, weights = self.inputs.features(self.data.batch(partitions, "train"))
        choices = F.one_hot(generator.choice(z), generator.keys.shape[1]) * (weights > 0).unsqueeze(-1)
        counts = choices.sum(1).float().cpu().numpy()  # (C, G)
        updates = self.inner.train(requests)
        if not self.is_shared(CHOICES):
            return updates
        return [replace(update, arrays={**update.arrays, CHOICES: counts[c]}) for c, update in enumerate(updates)]

    def adapt(self, parameters: Sequence[Arrays], requests: Sequence[ClientRequest]) -> Sequence[Arrays]:
        """Take steps as in training; the prediction ignores earlier choices and takes the nearest keys."""
        return [self._without_choices(state) for state in self.inner.adapt(parameters, requests)]

    def for_new_clients(self, parameters: Arrays) -> Arrays:
        """Return the shared parameters, without the choices of other clients."""
        return self._without_choices(super().for_new_clients(parameters))

    def _without_choices(self, parameters: Arrays) -> Arrays:
        return {**parameters, CHOICES: self.model.initial[CHOICES]}

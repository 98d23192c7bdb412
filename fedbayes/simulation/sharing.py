"""Clients that send their steps as two shares, of which each looks like noise."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, final

import numpy as np

from fedbayes.arrays import non_finite
from fedbayes.comm.messages import ClientRequest, ClientUpdate
from fedbayes.errors import RunError
from fedbayes.secure.sharing import SEEDED, VECTOR, Sharing, flat
from fedbayes.secure.stream import Shares


@final
class SharingClient:
    """A client whose reply is its step in fixed point, split in two; metrics of training stay with it.

    A malicious client may share anything, so it is shared what the attack made.
    """

    def __init__(self, client: Any, sharing: Sharing) -> None:
        self._client, self._sharing = client, sharing

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def train(self, requests: Sequence[ClientRequest]) -> list[ClientUpdate]:
        """Train a cohort and share each step."""
        return [self._shared(*pair) for pair in zip(requests, self._client.train(requests), strict=True)]

    def _shared(self, request: ClientRequest, update: ClientUpdate) -> ClientUpdate:
        """Return the reply with two shares in the place of what was learnt.

        Raises:
            RunError: if a number is not finite, which a share would hide.
        """
        if (name := non_finite(update.arrays)) is not None:
            raise RunError(f"{name} is not finite, so it is not shared.")
        step = self._sharing.encode(flat(request.arrays, update.arrays))
        shares = Shares.split(self._sharing.share_ring, step)
        seed = np.frombuffer(shares.seed, np.uint8)
        return replace(update, arrays={VECTOR: shares.vector, SEEDED: seed}, metrics={})

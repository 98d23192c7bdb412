"""Who holds what: images of each client by domain and by label, from `partition.json`."""

from collections.abc import Mapping, Sequence
from typing import Any

Dealt = list[tuple[str, list[str], list[list[int]]]]
"""`domain` or `label`, its names, and for each client the images of each name."""


def dealt(partition: Mapping[str, Any]) -> tuple[list[Mapping[str, Any]], Dealt]:
    """A partition's clients in their order, and what they hold; left out is what nobody has an image of.

    Args:
        partition: as read from a run directory, which may lack anything.
    """
    clients = sorted(partition.get("clients") or [], key=lambda client: client.get("partition", 0))
    found = []
    for what, key, all_names in (("domain", "domains", "domains"), ("label", "labels", "classes")):
        names = [str(name) for name in partition.get(all_names) or []]
        counts = [_counts(client.get(key), names) for client in clients]
        if any(map(any, counts)):
            found.append((what, names, counts))
    return clients, found


def _counts(found: object, names: Sequence[str]) -> list[int]:
    """Images per name, from a list in the order of the names or from a mapping."""
    if isinstance(found, Mapping):
        return [int(found.get(name) or 0) for name in names]
    counts = [int(count or 0) for count in found] if isinstance(found, Sequence) else []
    return (counts + [0] * len(names))[: len(names)]

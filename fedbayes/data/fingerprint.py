"""The images of a federation in few bytes, so that a run that goes on or is loaded knows whether they have changed."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any, NamedTuple, final

import numpy as np
import torch

from fedbayes.data.datasets import ImageSet
from fedbayes.data.federated import FederatedData, Split

LISTED = 50_000
"""Most images that are listed one by one, in about 3 MB; beyond it there is one digest per client and split."""

BLOCK = 1000
"""Images that a thread hashes at a time."""

SPLITS: tuple[Split, ...] = ("train", "validation", "test", "held_out")


@final
class _Entry(NamedTuple):
    """An image in the list of a fingerprint."""

    name: str
    digest: str
    place: str


def fingerprint(data: FederatedData) -> dict[str, Any]:
    """Return which images each client has, as text and numbers for JSON.

    An image is the same if its path below the root, its class, its domain and its pixels as decoded are the same: a
    folder may move, and a file may be compressed anew without loss.

    Args:
        data: the images as clients get them, before any attack.

    Returns:
        The `shape` of the images, `classes`, `domains`, and for each client and split a `digest` over its images in the
        order of the partition; with at most `LISTED` images also `names` and `digests` of each.
    """
    indices = [{split: data.indices(client, split) for split in SPLITS} for client in range(len(data))]
    used = torch.cat([torch.empty(0, dtype=torch.long), *(ids for splits in indices for ids in splits.values())])
    digests = _digests(data.images, used.unique().tolist())
    clients: list[dict[str, Any]] = []
    for splits in indices:
        clients.append({})
        for split, ids in splits.items():
            names, parts = [data.images.names[i] for i in ids.tolist()], [digests[i] for i in ids.tolist()]
            folded = hashlib.blake2b("\n".join([*names, *parts]).encode("utf-8", "surrogatepass"), digest_size=16)
            clients[-1][split] = {"digest": folded.hexdigest()}
            if len(used) <= LISTED:
                clients[-1][split] |= {"names": names, "digests": parts}
    return {
        "shape": list(data.images.images.shape[1:]),
        "classes": list(data.images.classes),
        "domains": list(data.images.domain_names),
        "clients": clients,
    }


def first_difference(stored: Mapping[str, Any], current: Mapping[str, Any]) -> str | None:
    """Return the first difference between two fingerprints in words; None if they are equal.

    Args:
        stored: of the run.
        current: of the images as they are now.
    """
    if stored == current:
        return None
    try:
        return _difference(stored, current)
    except (LookupError, TypeError, AttributeError, ValueError):
        return "what was stored of them is damaged"


def _difference(stored: Mapping[str, Any], current: Mapping[str, Any]) -> str:
    if stored["shape"] != current["shape"]:
        return f"images had the shape {stored['shape']} and have {current['shape']}"
    for key in ("classes", "domains"):
        if stored[key] != current[key]:
            missing = [name for name in stored[key] if name not in current[key]]
            added = [name for name in current[key] if name not in stored[key]]
            changes = [*(f"{name} is missing" for name in missing[:5]), *(f"{name} is new" for name in added[:5])]
            return f"{key} differ: {', '.join(changes) or 'they are in another order'}"
    before, now = ({entry.name: entry for entry in _entries(part)} for part in (stored, current))
    added = [entry for name, entry in now.items() if name not in before]
    for name, entry in before.items():
        if name not in now:
            renamed = [other.name for other in added if other.digest == entry.digest]
            return f"{name} ({entry.place}) is {f'called {renamed[0]} now' if renamed else 'missing or left out'}"
    if added:
        return f"{added[0].name} ({added[0].place}) is new"
    for name, entry in before.items():
        if now[name].digest != entry.digest:
            return f"{name} ({entry.place}) has other contents"
    if len(stored["clients"]) != len(current["clients"]):
        return f"there were {len(stored['clients'])} clients and are {len(current['clients'])}"
    for client, (old, new) in enumerate(zip(stored["clients"], current["clients"], strict=True)):
        for split in SPLITS:
            if old[split]["digest"] != new[split]["digest"]:
                return f"the {split} images of client {client} differ"
    return "what was stored of them is damaged"


def _entries(stored: Mapping[str, Any]) -> Iterator[_Entry]:
    """Yield every image that a fingerprint lists; none where there are too many."""
    for client, splits in enumerate(stored["clients"]):
        for split in SPLITS:
            names, digests = splits[split].get("names", []), splits[split].get("digests", [])
            for name, digest in zip(names, digests, strict=True):
                yield _Entry(name, digest, f"{split} image of client {client}")


def _digests(images: ImageSet, ids: list[int]) -> dict[int, str]:
    """Return a digest of the pixels, the class and the domain of each of some images."""
    pixels = np.ascontiguousarray(images.images.numpy())
    labels, domains = images.labels.tolist(), images.domains.tolist()

    def hashes(block: list[int]) -> list[str]:
        keys = {i: b"%d/%d" % (labels[i], domains[i]) for i in block}
        return [hashlib.blake2b(pixels[i], digest_size=8, key=key).hexdigest() for i, key in keys.items()]

    blocks = [ids[i : i + BLOCK] for i in range(0, len(ids), BLOCK)]
    workers = min(8, os.cpu_count() or 1) if pixels[:1].size > 2**15 else 1  # threads pay for large images only
    with ThreadPoolExecutor(workers) as pool:
        return dict(zip(ids, chain.from_iterable(pool.map(hashes, blocks)), strict=True))

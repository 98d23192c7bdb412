"""The images of a federation in few bytes, so that a run that goes on or is loaded knows whether they have changed."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any

import numpy as np
import torch

from fedbayes.data.datasets import ImageSet
from fedbayes.data.federated import FederatedData, Split

LISTED = 50_000
"""Most images that are listed one by one, in about 3 MB."""

BLOCK = 1000
"""Images that a thread hashes at a time."""

SPLITS: tuple[Split, ...] = ("train", "validation", "test", "held_out")


def fingerprint(data: FederatedData) -> dict[str, Any]:
    """Return which images each client has, as text and numbers for JSON.

    An image is the same if its path below the root, its class, its domain and its pixels as decoded are the same: a
    folder may move, and a file may be compressed anew without loss. Each client and split has a `digest` over its
    images in the order of the partition, and with at most `LISTED` images also `names` and `digests` of each.
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


def first_difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Return the first difference between the fingerprints of a run and of the images now; None if they are equal."""
    if before == now:
        return None
    try:
        return next(_differences(before, now))
    except (StopIteration, LookupError, TypeError, AttributeError, ValueError):
        return "the fingerprint of the run is damaged"


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    if before["shape"] != now["shape"]:
        yield f"images had the shape {before['shape']} and have {now['shape']}"
    for key in ("classes", "domains"):
        if before[key] != now[key]:
            missing = [f"{name} is missing" for name in before[key] if name not in now[key]]
            added = [f"{name} is new" for name in now[key] if name not in before[key]]
            yield f"{key} differ: {', '.join(missing[:5] + added[:5]) or 'they are in another order'}"
    old, new = _images(before), _images(now)
    renamed = {digest: f"called {name} now" for name, (digest, _) in new.items() if name not in old}
    yield from (
        f"{name} ({place}) is {renamed.get(digest, 'missing or left out')}"
        for name, (digest, place) in old.items()
        if name not in new
    )
    yield from (f"{name} ({place}) is new" for name, (_, place) in new.items() if name not in old)
    yield from (
        f"{name} ({place}) has other contents" for name, (digest, place) in old.items() if new[name][0] != digest
    )
    if len(before["clients"]) != len(now["clients"]):
        yield f"there were {len(before['clients'])} clients and are {len(now['clients'])}"
    for client, (then, today) in enumerate(zip(before["clients"], now["clients"], strict=True)):
        for split in SPLITS:
            if then[split]["digest"] != today[split]["digest"]:
                yield f"the {split} images of client {client} differ"


def _images(fingerprint: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Return the digest and the place of every image that a fingerprint lists, by name."""
    return {
        name: (digest, f"{split} image of client {client}")
        for client, splits in enumerate(fingerprint["clients"])
        for split in SPLITS
        for name, digest in zip(splits[split].get("names", []), splits[split].get("digests", []), strict=True)
    }


def _digests(images: ImageSet, ids: list[int]) -> dict[int, str]:
    """Return a digest of the pixels, the class and the domain of each image."""
    pixels = np.ascontiguousarray(images.images.numpy())
    labels, domains = images.labels.tolist(), images.domains.tolist()

    def hashes(block: list[int]) -> list[str]:
        keys = {i: b"%d/%d" % (labels[i], domains[i]) for i in block}
        return [hashlib.blake2b(pixels[i], digest_size=8, key=key).hexdigest() for i, key in keys.items()]

    blocks = [ids[i : i + BLOCK] for i in range(0, len(ids), BLOCK)]
    workers = min(8, os.cpu_count() or 1) if pixels[:1].size > 2**15 else 1  # threads pay for large images only
    with ThreadPoolExecutor(workers) as pool:
        return dict(zip(ids, chain.from_iterable(pool.map(hashes, blocks)), strict=True))

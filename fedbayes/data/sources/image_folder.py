"""Images from folders: `<domain>/<class>/*` or `<class>/*`, either of them inside `train`, `val` and `test` or not.

Classes, domains and files are sorted by plain string comparison, as torchvision's `ImageFolder` does ("10" before "2"),
so ids never depend on the order of the file system. Pixels are decoded once; how is in `fedbayes.data.pixels`.
"""

import logging
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from PIL import Image

from fedbayes.data.datasets import GIVEN_NONE, GIVEN_TEST, GIVEN_TRAIN, GIVEN_VALIDATION, ImageSet
from fedbayes.data.pixels import decode, require_side, room_for
from fedbayes.errors import ConfigError, DataError, require_choice
from fedbayes.text import visible

EXTENSIONS = frozenset([".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"])
SPLIT_FOLDERS = {
    "train": GIVEN_TRAIN,
    "val": GIVEN_VALIDATION,
    "valid": GIVEN_VALIDATION,
    "validation": GIVEN_VALIDATION,
    "test": GIVEN_TEST,
}
EXPECTED = "expected <domain>/<class>/*.jpg or <class>/*.jpg, or either inside train/, val/ and test/"
MAX_FOLDERS = 3  # <split>/<domain>/<class>

logger = logging.getLogger("fedbayes")

Parts = tuple[str, ...]  # a file's path below the root: folders, then the file's name


def image_folder(
    root: str | None,
    image_size: int,
    on_error: str = "raise",
    classes: Sequence[object] | None = None,
    domains: Sequence[object] | None = None,
    others: str = "raise",
    source: str | None = None,
) -> ImageSet:
    """Reads every image below a folder; the layout is decided by where the images lie.

    Without domain folders there is one domain, named after the root. All domains share the union of the classes. When
    every first-level folder is called train, val, valid, validation or test, these are splits and not domains. Hidden
    files and folders and other extensions are ignored, and so is a link to a folder that it lies in.

    Args:
        root: the folder; None for no images at all, where other machines hold them.
        image_size: side of the square images, in pixels, at least 8.
        on_error: what to do with an unreadable image: "raise", or "skip" it and warn with the count.
        classes: all class names in the order of their ids, so that machines agree on them; None: those found.
        domains: all domain names in the order of their ids; None: those found.
        others: what to do with folders of other names than the given ones: "raise", or "ignore" them; then each given
            name must have images, as a misspelt one would go unnoticed.
        source: where to get a known data set and where to put it, for the error of a missing one.

    Returns:
        All images, sorted by path, in RGB.

    Raises:
        ConfigError: if `image_size`, `on_error`, `classes`, `domains` or `others` cannot work.
        DataError: if the folder is missing, empty, laid out in another way, holds an unreadable image, or has a class
            or domain that is not among the given ones, or lacks one of them where others are ignored.
    """
    require_side(image_size)
    require_choice("data.on_error", on_error, ("raise", "skip"))
    require_choice("data.others", others, ("raise", "ignore"))
    expected = f"{EXPECTED}; {source}" if source else EXPECTED
    given_classes, given_domains = _given("classes", classes, 2), _given("domains", domains, 1)
    if root is None:
        return _nothing(image_size, given_classes, given_domains)
    top = os.path.abspath(os.path.expanduser(str(root)))
    if not root or not os.path.isdir(top):
        what = "is not a folder" if os.path.exists(top) else "does not exist"
        raise DataError(f"data.root={root} {what}; {expected}.")
    files = sorted(_find(top, root))
    if not files:
        folders = any(os.path.isdir(os.path.join(top, name)) for name in os.listdir(top))
        what = f"no images ({' '.join(sorted(EXTENSIONS))})" if folders else "no class folders"
        raise DataError(f"data.root={root} has {what}; {expected}.")
    splits, domain_of, class_of = _layout(files, root, os.path.basename(top) or "root")
    if others == "ignore":
        chosen = _chosen((("classes", given_classes, class_of), ("domains", given_domains, domain_of)), root)
        files, splits = [files[i] for i in chosen], [splits[i] for i in chosen]
        domain_of, class_of = [domain_of[i] for i in chosen], [class_of[i] for i in chosen]
    class_names = _named("classes", given_classes, set(class_of), root)
    domain_names = _named("domains", given_domains, set(domain_of), root)
    class_ids = {name: i for i, name in enumerate(class_names)}
    domain_ids = {name: i for i, name in enumerate(domain_names)}
    images, kept = _decode_all(files, top, root, image_size, on_error)
    used = {class_of[i] for i in kept}
    if len(used) < 2 and given_classes is None:
        raise DataError(
            f"data.root={root} has only one class, {used.pop()}; a classifier needs two or more: {EXPECTED}."
        )
    return ImageSet(
        images=images,
        labels=torch.tensor([class_ids[class_of[i]] for i in kept], dtype=torch.int64),
        domains=torch.tensor([domain_ids[domain_of[i]] for i in kept], dtype=torch.int64),
        classes=class_names,
        domain_names=domain_names,
        given_split=torch.tensor([splits[i] for i in kept], dtype=torch.int8),
        names=tuple("/".join(files[i]) for i in kept),
    )


def _given(place: str, names: Sequence[object] | None, fewest: int) -> tuple[str, ...] | None:
    """`data.classes` or `data.domains` as text; None where the folders decide."""
    if names is None:
        return None
    if isinstance(names, str) or len(names) < fewest or len(set(map(str, names))) < len(names):
        raise ConfigError(
            f"data.{place}={names if isinstance(names, str) else list(names)} is no list of {fewest} or more different "
            f"names; write data.{place}=[a,b], or null for those found."
        )
    return tuple(map(str, names))


def _named(place: str, given: tuple[str, ...] | None, found: set[str], root: str) -> tuple[str, ...]:
    """The given names if they hold all that are found; these in plain order if none are given."""
    if given is None:
        return tuple(sorted(found))
    unknown = sorted(found - set(given))
    if unknown:
        raise DataError(
            f"data.root={root} has {', '.join(unknown)}, not among data.{place}=[{', '.join(given)}]; add it there, or "
            "rename or remove the folder."
        )
    return given


def _chosen(kinds: Sequence[tuple[str, tuple[str, ...] | None, list[str]]], root: str) -> list[int]:
    """Positions of the files whose class and domain are both among the given ones, where such are given.

    Raises:
        DataError: if a given name has no file.
    """
    chosen = [
        i for i in range(len(kinds[0][2])) if all(given is None or found[i] in given for _, given, found in kinds)
    ]
    for place, given, found in kinds:
        left = {found[i] for i in chosen}
        lacking = [name for name in given or () if name not in left]
        if lacking:
            there = sorted(set(found))
            raise DataError(
                f"data.root={root} has no images of {_few(lacking)}, among data.{place}, but of {_few(there)}; add or "
                f"rename folders, or choose data.{place}=[...] among those."
            )
    return chosen


def _few(names: Sequence[str], most: int = 12) -> str:
    """The names, the last ones of many left out."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _nothing(image_size: int, classes: tuple[str, ...] | None, domains: tuple[str, ...] | None) -> ImageSet:
    """No images, but what they would be of."""
    if classes is None or domains is None:
        raise DataError(
            "data.root=null needs data.classes=[...] and data.domains=[...], since no folder tells them; give both, or "
            "data.root=DIR."
        )
    ids = torch.empty(0, dtype=torch.int64)
    pixels = room_for(0, image_size)
    return ImageSet(pixels, ids, ids, classes, domains, torch.empty(0, dtype=torch.int8), ())


def _find(top: str, root: str) -> list[Parts]:
    """Paths of all image files below `top`, down to one folder more than any layout has."""
    found: list[Parts] = []
    seen: dict[tuple[int, int], str] = {}

    def scan(folder: str, parts: Parts, above: frozenset[tuple[int, int]]) -> None:
        identity = (os.stat(folder).st_dev, os.stat(folder).st_ino)
        if identity in above:
            logger.warning("data.root=%s: %s links to a folder it lies in and is ignored.", root, "/".join(parts))
            return
        if identity in seen:
            raise DataError(
                f"data.root={root}: {'/'.join(parts)} and {seen[identity]} are the same folder, so its images would "
                "count twice; remove the link."
            )
        seen[identity] = "/".join(parts)
        try:
            names = [name for name in os.listdir(folder) if not name.startswith(".")]
        except OSError as error:
            raise DataError(f"data.root={root}: cannot list {folder} ({error.strerror}); allow reading it.") from error
        for name in sorted(names):
            if not name.isprintable() and name != name.encode("utf-8", "replace").decode():
                shown = "/".join(map(visible, (*parts, name)))
                raise DataError(f"data.root={root}: the name of {shown} is no UTF-8; rename it.")
            path = os.path.join(folder, name)
            if os.path.isdir(path):
                if len(parts) <= MAX_FOLDERS:
                    scan(path, (*parts, name), above | {identity})
            elif os.path.splitext(name)[1].lower() in EXTENSIONS:
                found.append((*parts, name))

    scan(top, (), frozenset())
    return found


def _layout(files: list[Parts], root: str, only_domain: str) -> tuple[list[int], list[str], list[str]]:
    """Split, domain and class of each file.

    Raises:
        DataError: if there are no class folders, or if files lie at different depths.
    """
    first = {parts[0] for parts in files if len(parts) > 1}
    given = {name: SPLIT_FOLDERS[name.casefold()] for name in first if name.casefold() in SPLIT_FOLDERS}
    # A class or a domain may be called "train" (the vehicle); beside "test" it is a split.
    if len(given) < len(first):
        if len(set(given.values())) > 1:
            others = ", ".join(sorted(first - given.keys()))
            raise DataError(f"data.root={root} has {', '.join(sorted(given))} beside {others}; {EXPECTED}.")
        given = {}
    skip = 1 if given else 0
    by_depth = {len(parts) - 1 - skip: "/".join(parts) for parts in files}
    if len(by_depth) > 1:
        raise DataError(f"data.root={root} mixes layouts: {' and '.join(sorted(by_depth.values()))}; {EXPECTED}.")
    depth, example = by_depth.popitem()
    if depth < 1:
        raise DataError(f"data.root={root} has no class folders; {EXPECTED}, found {example}.")
    if depth > 2:
        raise DataError(f"data.root={root} has images too deep down ({example}); {EXPECTED}.")
    splits = [given.get(parts[0], GIVEN_NONE) for parts in files]
    domains = [parts[skip] if depth == 2 else only_domain for parts in files]
    return splits, domains, [parts[-2] for parts in files]


def _decode_all(
    files: list[Parts], top: str, root: str, image_size: int, on_error: str
) -> tuple[torch.Tensor, list[int]]:
    """Decoded images (M, 3, size, size) uint8 and the positions in `files` that they come from."""
    images = room_for(len(files), image_size)
    rows = images.numpy()
    kept: list[int] = []
    unreadable: list[str] = []
    paths = [os.path.join(top, *parts) for parts in files]
    # Pillow lets go of the interpreter while it decodes and resizes. Its warning about huge images becomes an error
    # out here, because warning filters belong to the process and not to a thread.
    with warnings.catch_warnings(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for i, pixels in enumerate(pool.map(partial(_try_decode, size=image_size), paths)):
            if isinstance(pixels, str):
                unreadable.append(f"{'/'.join(files[i])} cannot be read ({pixels})")
                if on_error == "raise":
                    pool.shutdown(wait=False, cancel_futures=True)
                    remedy = "mend or remove the file, or set data.on_error=skip"
                    raise DataError(f"data.root={root}: {unreadable[0]}; {remedy}.")
            else:
                rows[len(kept)] = pixels
                kept.append(i)
    if unreadable:
        logger.warning(
            "data.root=%s: left out %d of %d images; the first: %s.", root, len(unreadable), len(files), unreadable[0]
        )
    if not kept:
        raise DataError(f"data.root={root} has no readable image: {unreadable[0]}; {EXPECTED}.")
    # A copy only where something was left out, so that the usual case needs the memory once.
    return images if len(kept) == len(files) else images[: len(kept)].clone(), kept


def _try_decode(path: str, size: int) -> np.ndarray | str:
    """Pixels (3, size, size) of one file, or why it has none."""
    try:
        return decode(path, size)
    except Exception as error:  # on damaged bytes Pillow's decoders raise almost anything
        return str(error).replace(path, os.path.basename(path)) or type(error).__name__

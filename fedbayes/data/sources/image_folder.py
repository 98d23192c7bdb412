"""Images from folders: `<domain>/<class>/*` or `<class>/*`, either of them inside `train`, `val` and `test` or not."""

import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from PIL import Image

from fedbayes.data.datasets import ImageSet
from fedbayes.data.pixels import decode, empty_images, require_side
from fedbayes.data.sources.folder_layout import EXPECTED, SPLITS, ImageFile, Skipped, read_layout
from fedbayes.errors import ConfigError, DataError, require_choice

MOST_NAMES = 12
"""Most names that a message lists."""

logger = logging.getLogger("fedbayes")

Names = tuple[str, ...]


def image_folder(
    root: str | None,
    image_size: int,
    on_error: str = "raise",
    classes: Sequence[object] | None = None,
    domains: Sequence[object] | None = None,
    others: str = "raise",
    source: str | None = None,
    splits: Mapping[str, str] | None = None,
    ignore: Sequence[str] | None = None,
) -> ImageSet:
    """Read every image below a folder, sorted by path; the layout is told from where the images lie.

    Without domain folders there is one domain, named after the root. All domains share the union of the classes. Hidden
    files and folders and files of other types are left out. A file that several links lead to counts once.

    Args:
        root: the folder; None for no images at all, where other machines have them.
        image_size: side of the square images, in pixels, at least 8.
        on_error: what to do with an unreadable image: "raise", or "skip" it and warn with the count.
        classes: all class names in the order of their ids, so that machines agree on them; None: those of the folders.
        domains: the same for domains.
        others: what to do with folders that are not among these names: "raise", or "ignore" them; then each of these
            names must have images, as a misspelt name would go unnoticed.
        source: where to get a known data set and where to put it, for the error of a missing one.
        splits: the split ("train", "validation" or "test") of each split folder, at any level; empty if there are no
            split folders; None: folders with the usual names of splits, wherever all folders of a level have them.
        ignore: patterns of paths below the root, or of names, to leave out.

    Raises:
        ConfigError: if a value other than `root` cannot work.
        DataError: if the folder is missing, empty, laid out in another way, has an unreadable image, or its classes or
            domains are not those of the names.
    """
    require_side(image_size)
    require_choice("data.on_error", on_error, ("raise", "skip"))
    require_choice("data.others", others, ("raise", "ignore"))
    class_names, domain_names = _names("classes", classes, 2), _names("domains", domains, 1)
    if splits is not None and not isinstance(splits, Mapping):
        raise ConfigError(f"data.splits={splits} is no mapping; write 'data.splits={{FOLDER:train}}', or null.")
    for split in (splits or {}).values():
        require_choice("data.splits", split, tuple(SPLITS))
    patterns = _names("ignore", ignore, 0) or ()
    if root is None:
        if class_names is None or domain_names is None:
            raise DataError(
                "data.root=null needs data.classes=[...] and data.domains=[...], since no folder tells them; give "
                "both, or data.root=DIR."
            )
        return _image_set([], empty_images(0, image_size), class_names, domain_names)
    if not os.path.isdir(root):
        problem = "is not a folder" if os.path.exists(root) else "does not exist"
        raise DataError(f"data.root={root} {problem}; {EXPECTED}{f'; {source}' if source else ''}.")
    skipped = Skipped(list)
    files = read_layout(root, skipped, patterns, splits, class_names or (), domain_names or ())
    if others == "ignore":
        files = _choose(files, class_names, domain_names, root)
    class_names = _require_known("classes", class_names, {file.label for file in files}, root)
    domain_names = _require_known("domains", domain_names, {file.domain for file in files}, root)
    pixels, files = _decode_all(files, root, image_size, on_error, skipped)
    if skipped:
        logger.warning("data.root=%s: left out %s.", root, skipped)
    labels = {file.label for file in files}
    if len(labels) < 2 and classes is None:
        raise DataError(f"data.root={root} has only one class, {labels.pop()}; a classifier needs two: {EXPECTED}.")
    return _image_set(files, pixels, class_names, domain_names)


def _image_set(files: Sequence[ImageFile], pixels: torch.Tensor, classes: Names, domains: Names) -> ImageSet:
    class_ids, domain_ids = ({name: i for i, name in enumerate(names)} for names in (classes, domains))
    return ImageSet(
        images=pixels,
        labels=torch.tensor([class_ids[file.label] for file in files], dtype=torch.int64),
        domains=torch.tensor([domain_ids[file.domain] for file in files], dtype=torch.int64),
        classes=classes,
        domain_names=domains,
        given_split=torch.tensor([file.split for file in files], dtype=torch.int8),
        names=tuple(file.path for file in files),
    )


def _names(key: str, names: Sequence[object] | None, fewest: int) -> Names | None:
    """Return a list of names from the configuration as text; None where the folders decide."""
    if names is None:
        return None
    if isinstance(names, str) or len(names) < fewest or len(set(map(str, names))) < len(names):
        raise ConfigError(
            f"data.{key}={names if isinstance(names, str) else list(names)} is no list of {fewest} or more different "
            f"names; write data.{key}=[a,b], or null."
        )
    return tuple(map(str, names))


def _require_known(key: str, names: Names | None, present: set[str], root: str) -> Names:
    """Return the names if they include all that are present; those that are present, in plain order, without names."""
    if names is None:
        return tuple(sorted(present))
    if unknown := sorted(present - set(names)):
        raise DataError(
            f"data.root={root} has {', '.join(unknown)}, not among data.{key}=[{', '.join(names)}]; add it there, "
            "rename or remove the folder, or leave all others out with data.others=ignore."
        )
    return names


def _choose(files: list[ImageFile], classes: Names | None, domains: Names | None, root: str) -> list[ImageFile]:
    """Return the files whose class and domain are among the names, where there are names; each name needs a file."""
    chosen = [
        file
        for file in files
        if (classes is None or file.label in classes) and (domains is None or file.domain in domains)
    ]
    for key, names, field in (("classes", classes, "label"), ("domains", domains, "domain")):
        present, chosen_names = ({getattr(file, field) for file in group} for group in (files, chosen))
        if lacking := set(names or ()) - chosen_names:
            absent, others = (", ".join(sorted(group)[:MOST_NAMES]) for group in (lacking, present))
            raise DataError(
                f"data.root={root} has no images of {absent}, among data.{key}, but of {others}; add or rename "
                f"folders, or choose data.{key}=[...] among those."
            )
    return chosen


def _decode_all(
    files: list[ImageFile], root: str, image_size: int, on_error: str, skipped: Skipped
) -> tuple[torch.Tensor, list[ImageFile]]:
    """Return the decoded images (M, 3, size, size) uint8 and the files that they come from."""
    images = empty_images(len(files), image_size)
    rows, readable = images.numpy(), list[ImageFile]()
    key = "images that cannot be read"
    paths = [os.path.join(root, file.path) for file in files]
    # Pillow's warning about huge images becomes an error out here, because warning filters belong to the process and
    # not to a thread.
    with warnings.catch_warnings(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        warnings.filterwarnings("ignore", category=UserWarning, module="PIL")  # of damaged metadata
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for file, pixels in zip(files, pool.map(partial(_try_decode, size=image_size), paths), strict=True):
            if not isinstance(pixels, str):
                rows[len(readable)] = pixels
                readable.append(file)
                continue
            skipped[key].append(f"{file.path} ({pixels})")
            if on_error == "raise":
                pool.shutdown(wait=False, cancel_futures=True)
                remedy = "mend or remove the file, or set data.on_error=skip"
                raise DataError(f"data.root={root}: {file.path} cannot be read ({pixels}); {remedy}.")
    if not readable:
        raise DataError(f"data.root={root} has no readable image: {skipped[key][0]}; {EXPECTED}.")
    # A copy only where something was left out, so that the usual case needs the memory once.
    return images if len(readable) == len(files) else images[: len(readable)].clone(), readable


def _try_decode(path: str, size: int) -> np.ndarray | str:
    """Return the pixels (3, size, size) of one file, or why it has none."""
    try:
        return decode(path, size)
    except Exception as error:  # on damaged bytes Pillow's decoders raise almost anything
        return str(error).replace(path, os.path.basename(path)) or type(error).__name__

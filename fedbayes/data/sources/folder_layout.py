"""Where the images of a folder lie: in `<domain>/<class>/` or `<class>/`, with folders for splits or without.

Files are sorted by plain string comparison of their folders and names, as torchvision's `ImageFolder` does ("10" before
"2"), so that nothing depends on the order of the file system. What is left out is counted and logged with the reason.
"""

import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple, final

from fedbayes.data.datasets import GIVEN_NONE, GIVEN_TEST, GIVEN_TRAIN, GIVEN_VALIDATION
from fedbayes.data.pixels import EXTENSIONS
from fedbayes.errors import DataError
from fedbayes.text import visible

EXPECTED = "expected <domain>/<class>/*.jpg or <class>/*.jpg, or either inside train/, val/ and test/"
MAX_FOLDERS = 3
"""Folders between the root and an image: split, domain and class."""

SPLITS = {"train": GIVEN_TRAIN, "validation": GIVEN_VALIDATION, "test": GIVEN_TEST}
USUAL_SPLIT = re.compile(
    r"(?:seg|images?|data)?(?:(?P<train>train(?:ing)?)|(?P<validation>val(?:id(?:ation)?)?|dev(?:elopment)?)"
    r"|(?P<test>test(?:ing)?|eval(?:uation)?))(?:s|sets?|data|images?|imgs?|split|folder)?\d*"
)
"""Usual names of split folders, in lower case and without `-`, `_`, `.` and spaces."""

UNREAD = re.compile(r"\.(avif|heic|heif|jp2|j2k|jxl|svg|psd|raw|dng|cr2|nef|arw|tga|ico|dcm|npy)")
"""Extensions of image files that may not be read here; `EXTENSIONS` goes first."""

logger = logging.getLogger("fedbayes")

Parts = tuple[str, ...]
"""A file's path below the root: folders, then the file's name."""


@final
class ImageFile(NamedTuple):
    """An image file and what its folders say of it.

    Attributes:
        path: below the root, with `/`.
        split: as in `ImageSet.given_split`.
        domain: name of the domain.
        label: name of the class.
    """

    path: str
    split: int
    domain: str
    label: str


@final
class Skipped:
    """What is left out of a folder: counts by reason, each with its first path."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def add(self, reason: str, path: str) -> None:
        """Count one file or folder."""
        self._counts[reason] += 1
        self._first.setdefault(reason, path)

    def __str__(self) -> str:
        """Return all counts in one line."""
        return "; ".join(f"{count} {reason}, the first {self._first[reason]}" for reason, count in self._counts.items())


def read_layout(
    root: str,
    folder: str,
    skipped: Skipped,
    *,
    ignore: Sequence[str] = (),
    splits: Mapping[str, str] | None = None,
    classes: Collection[str] = (),
    domains: Collection[str] = (),
    expected: str = EXPECTED,
) -> list[ImageFile]:
    """Return all image files below a folder, sorted by path.

    Args:
        root: the folder as the user gave it, for messages.
        folder: its path.
        skipped: takes what is left out.
        ignore: patterns of paths or names to leave out.
        splits: the split of each split folder; None: folders with the usual names of splits.
        classes: names that mean classes even if splits are often called so.
        domains: the same for domains.
        expected: what the folder should hold, for messages.

    Raises:
        DataError: if there are no images, or they are laid out in another way.
    """
    paths = sorted(_scan(root, folder, ignore, skipped))
    if not paths:
        has_folders = any(os.path.isdir(os.path.join(folder, name)) for name in os.listdir(folder))
        missing = f"no images ({' '.join(sorted(EXTENSIONS))})" if has_folders else "no class folders"
        details = f" but {skipped}" if str(skipped) else ""
        raise DataError(f"data.root={root} has {missing}{details}; {expected}.")
    levels = _split_levels(paths, root, splits, classes, domains)
    single = os.path.basename(folder) or "root"
    files = []
    by_depth: dict[int, list[str]] = {}
    for parts in paths:
        names = [name for level, name in enumerate(parts[:-1]) if level not in levels]
        given = {levels[level][parts[level]] for level in levels if level < len(parts) - 1}
        path = "/".join(parts)
        if len(given) > 1:
            raise DataError(f"data.root={root}: {path} lies in folders of two splits; move it, or set data.splits.")
        by_depth.setdefault(len(names), []).append(path)
        domain, label = names[0] if len(names) > 1 else single, names[-1] if names else ""
        files.append(ImageFile(path, given.pop() if given else GIVEN_NONE, domain, label))
    _require_one_depth(by_depth, root, expected)
    return _without_links(files, root, folder, skipped)


def _scan(root: str, top: str, ignore: Sequence[str], skipped: Skipped) -> list[Parts]:
    """Return the paths of all image files below `top`, down to one folder more than any layout has."""
    files: list[Parts] = []
    seen: dict[tuple[int, int], str] = {}

    def scan(folder: str, parts: Parts, above: frozenset[tuple[int, int]]) -> None:
        status, shown, before = os.stat(folder), "/".join(parts), len(files)
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            skipped.add("links to a folder that they lie in", shown)
            return
        if identity in seen:
            raise DataError(
                f"data.root={root}: {shown} and {seen[identity]} are the same folder, so its images would count twice; "
                f"remove the link, or leave it out with data.ignore=[{shown}]."
            )
        seen[identity] = shown
        try:
            names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
        except OSError as error:
            raise DataError(f"data.root={root}: cannot list {folder} ({error.strerror}); allow reading it.") from error
        for name in names:
            if not name.isprintable() and name != name.encode("utf-8", "replace").decode():
                raise DataError(
                    f"data.root={root}: the name of {'/'.join(map(visible, (*parts, name)))} is no UTF-8; rename it."
                )
            path, suffix = "/".join((*parts, name)), os.path.splitext(name)[1].lower()
            if any(fnmatchcase(path, pattern) or fnmatchcase(name, pattern) for pattern in ignore):
                skipped.add("files or folders in data.ignore", path)
            elif os.path.isdir(os.path.join(folder, name)):
                if len(parts) <= MAX_FOLDERS:
                    scan(os.path.join(folder, name), (*parts, name), above | {identity})
                else:
                    skipped.add("folders too deep down to be looked into", path)
            elif suffix in EXTENSIONS:
                files.append((*parts, name))
            elif UNREAD.fullmatch(suffix):
                skipped.add(f"{suffix} files, a type that is not read", path)
        if parts and len(files) == before:
            skipped.add("folders without images", shown)

    scan(top, (), frozenset())
    return files


def _usual_split(name: str) -> int | None:
    """Return the split that folders of this name usually hold, if any."""
    match = USUAL_SPLIT.fullmatch(re.sub(r"[-_. ]", "", name.casefold()))
    return SPLITS[str(match.lastgroup)] if match else None


def _split_levels(
    paths: Sequence[Parts],
    root: str,
    splits: Mapping[str, str] | None,
    classes: Collection[str],
    domains: Collection[str],
) -> dict[int, dict[str, int]]:
    """Return the levels at which all folders are splits, each with the split of each folder's name.

    A class may be called "train" (the vehicle); beside "test" it is a split.

    Raises:
        DataError: if folders look like splits but stand beside others or lack training images.
    """
    named: Callable[[str], int | None] = _usual_split
    if splits is not None:
        named = {name: SPLITS[split] for name, split in splits.items()}.get
    levels = {}
    for level in range(MAX_FOLDERS + 1):
        inside = [parts for parts in paths if len(parts) > level + 1]
        holds_images = all(len(parts) == level + 2 for parts in inside)
        exempt = classes if holds_images else domains
        names = {parts[level] for parts in inside}
        kinds = {name: kind for name in sorted(names) if name not in exempt and (kind := named(name)) is not None}
        others = sorted(names - kinds.keys())
        if not kinds or (splits is None and others and holds_images and len(set(kinds.values())) == 1):
            continue
        if others or (splits is None and GIVEN_TRAIN not in kinds.values()):
            beside = f"beside {', '.join(others[:12])}" if others else "without a folder to train on"
            raise DataError(
                f"data.root={root} has {', '.join(kinds)} {beside}, so it is unclear whether these are splits; name "
                "the split folders as in 'data.splits={lessons:train,exam:test}', set 'data.splits={}' if there are "
                "none, or leave folders out with data.ignore=[NAME]."
            )
        levels[level] = kinds
    if unknown := set(splits or ()) - {name for kinds in levels.values() for name in kinds}:
        raise DataError(f"data.root={root} has no folder {', '.join(sorted(unknown))}; correct data.splits.")
    return levels


def _require_one_depth(by_depth: Mapping[int, list[str]], root: str, expected: str) -> None:
    """Raise a `DataError` if images lie at several depths, or at a depth that no layout has."""
    usual = max(by_depth, key=lambda depth: len(by_depth[depth]))
    if len(by_depth) > 1:
        strays = [path for depth, paths in by_depth.items() if depth != usual for path in paths]
        raise DataError(
            f"data.root={root} mixes layouts: {len(by_depth[usual])} images lie as {by_depth[usual][0]} does, "
            f"{len(strays)} as {strays[0]}; move these, or leave them out with "
            f"'data.ignore=[{os.path.dirname(strays[0]) or strays[0]}]'; {expected}."
        )
    if usual < 1:
        raise DataError(f"data.root={root} has no class folders above {by_depth[usual][0]}; {expected}.")
    if usual > 2:
        raise DataError(f"data.root={root} has images too deep down, as {by_depth[usual][0]}; {expected}.")


def _without_links(files: Sequence[ImageFile], root: str, folder: str, skipped: Skipped) -> list[ImageFile]:
    """Return each file once where several paths lead to it.

    Raises:
        DataError: if they differ in split, domain or class.
    """
    first: dict[tuple[int, int], ImageFile] = {}
    unique = []
    for file in files:
        try:
            status = os.stat(os.path.join(folder, file.path))
        except OSError:  # a link to nowhere is an unreadable image
            unique.append(file)
            continue
        known = first.setdefault((status.st_dev, status.st_ino), file)
        if known is file:
            unique.append(file)
        elif known[1:] == file[1:]:
            skipped.add("links to files that count once", file.path)
        else:
            raise DataError(
                f"data.root={root}: {known.path} and {file.path} are the same file in two places; remove one of them, "
                f"or leave it out with 'data.ignore=[{file.path}]'."
            )
    return unique

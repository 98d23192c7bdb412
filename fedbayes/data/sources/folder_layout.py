"""Where the images of a folder lie: in `<domain>/<class>/` or `<class>/`, with folders for splits or without.

Files are sorted by plain string comparison of their folders and names, as torchvision's `ImageFolder` does ("10" before
"2"). What is left out is counted and logged with the reason.
"""

import os
import re
from collections import defaultdict
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
    r"(?:seg|images?|data)?(?:(?P<train>train(?:ing)?|trn)|(?P<validation>val(?:id(?:ation)?)?|dev(?:elopment)?)"
    r"|(?P<test>test(?:ing)?|tst|eval(?:uation)?))(?:s|sets?|data|images?|imgs?|split|folder)?\d*"
)
"""Usual names of split folders, in lower case and without `-`, `_`, `.` and spaces."""

UNREAD = re.compile(r"\.(avif|heic|heif|jp2|j2k|jxl|svg|psd|raw|dng|cr2|nef|arw|tga|ico|dcm|npy)")
"""Extensions of image files that may not be read here; `EXTENSIONS` goes first."""

Parts = tuple[str, ...]
"""A file's path below the root: folders, then the file's name."""


@final
class ImageFile(NamedTuple):
    """An image file: its path below the root, with `/`, and what its folders say of it (`split` as in `ImageSet`)."""

    path: str
    split: int
    domain: str
    label: str


@final
class Skipped(defaultdict[str, list[str]]):
    """Paths that are left out of a folder, by reason."""

    def __str__(self) -> str:
        """Return the counts and first paths in one line."""
        return "; ".join(f"{len(paths)} {reason}, the first {paths[0]}" for reason, paths in self.items())


def read_layout(
    root: str,
    skipped: Skipped,
    ignore: Sequence[str],
    splits: Mapping[str, str] | None,
    classes: Collection[str],
    domains: Collection[str],
) -> list[ImageFile]:
    """Return all image files below a folder, sorted by path.

    Args:
        root: the folder.
        skipped: takes the paths that are left out.
        ignore: patterns of paths or names to leave out.
        splits: the split of each split folder; None: folders with the usual names of splits.
        classes: names that mean classes even if splits are often called so.
        domains: the same for domains.

    Raises:
        DataError: if there are no images, or they are laid out in another way.
    """
    paths = sorted(_scan(root, ignore, skipped))
    if not paths:
        has_folders = any(os.path.isdir(os.path.join(root, name)) for name in os.listdir(root))
        missing = f"no images ({' '.join(sorted(EXTENSIONS))})" if has_folders else "no class folders"
        raise DataError(f"data.root={root} has {missing}{f' but {skipped}' if skipped else ''}; {EXPECTED}.")
    levels = _split_levels(paths, root, splits, classes, domains)
    root_name = os.path.basename(os.path.abspath(root)) or "root"
    files, by_depth = [], defaultdict[int, list[str]](list)
    for *folders, name in paths:
        names = [folder for level, folder in enumerate(folders) if level not in levels]
        kinds = {levels[level][folder] for level, folder in enumerate(folders) if level in levels}
        path = "/".join((*folders, name))
        if len(kinds) > 1:
            raise DataError(f"data.root={root}: {path} lies in folders of two splits; move it, or set data.splits.")
        by_depth[len(names)].append(path)
        domain, label = names[0] if len(names) > 1 else root_name, names[-1] if names else ""
        files.append(ImageFile(path, kinds.pop() if kinds else GIVEN_NONE, domain, label))
    _require_one_depth(by_depth, root)
    return _without_links(files, root, skipped)


def _scan(root: str, ignore: Sequence[str], skipped: Skipped) -> list[Parts]:
    """Return the paths of all image files, down to one folder more than any layout has."""
    files: list[Parts] = []

    def scan(parts: Parts, above: frozenset[tuple[int, int]]) -> None:
        folder = os.path.join(root, *parts)
        status, before = os.stat(folder), len(files)
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            skipped["links to a folder that they lie in"].append("/".join(parts))
            return
        try:
            names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
        except OSError as error:
            raise DataError(f"data.root={root}: cannot list {folder} ({error.strerror}); allow reading it.") from error
        for name in names:
            path, suffix = "/".join((*parts, name)), os.path.splitext(name)[1].lower()
            if not name.isprintable() and name != name.encode("utf-8", "replace").decode():
                raise DataError(f"data.root={root}: the name of {visible(path)} is no UTF-8; rename it.")
            if any(fnmatchcase(path, pattern) or fnmatchcase(name, pattern) for pattern in ignore):
                skipped["files or folders in data.ignore"].append(path)
            elif os.path.isdir(os.path.join(folder, name)):
                if len(parts) <= MAX_FOLDERS:
                    scan((*parts, name), above | {identity})
                else:
                    skipped["folders too deep down to be looked into"].append(path)
            elif suffix in EXTENSIONS:
                files.append((*parts, name))
            elif UNREAD.fullmatch(suffix):
                skipped[f"{suffix} files, a type that is not read"].append(path)
        if parts and len(files) == before:
            skipped["folders without images"].append("/".join(parts))

    scan((), frozenset())
    return files


def _usual_split(name: str) -> int | None:
    """Return the split that folders of this name usually hold, if any."""
    match = USUAL_SPLIT.fullmatch(re.sub(r"[-_. ]", "", name.casefold()))
    return SPLITS[str(match.lastgroup)] if match else None


def _look_like_splits(names: Sequence[str]) -> bool:
    """Return whether every name has a word for a split in it, and one for training, as mnist_train and mnist_test."""
    kinds = [{*map(_usual_split, re.split(r"[\W\d_]+", name))} - {None} for name in names]
    return all(kinds) and {GIVEN_TRAIN} < set().union(*kinds)


def _split_levels(
    paths: Sequence[Parts],
    root: str,
    splits: Mapping[str, str] | None,
    classes: Collection[str],
    domains: Collection[str],
) -> dict[int, dict[str, int]]:
    """Return the levels at which all folders are splits, each with the split of each folder's name.

    A class may be called "train" (the vehicle); beside "test" it is a split.
    """
    split_of: Callable[[str], int | None] = _usual_split
    if splits is not None:
        split_of = {name: SPLITS[split] for name, split in splits.items()}.get
    levels = {}
    for level in range(MAX_FOLDERS + 1):
        inside = [parts for parts in paths if len(parts) > level + 1]
        has_images = all(len(parts) == level + 2 for parts in inside)
        names = {parts[level] for parts in inside}
        candidates = sorted(names.difference(classes if has_images else domains))
        kinds = {name: kind for name in candidates if (kind := split_of(name)) is not None}
        others = sorted(names - kinds.keys())
        have_no_splits = not kinds or (splits is None and others and has_images and len(set(kinds.values())) == 1)
        if have_no_splits and (splits is not None or not _look_like_splits(candidates)):
            continue
        if others or (splits is None and GIVEN_TRAIN not in kinds.values()):
            beside = " beside ".join(filter(None, (", ".join(kinds), ", ".join(others[:12]))))
            lacking = "" if others else " without a folder to train on"
            raise DataError(
                f"data.root={root} has {beside}{lacking}, so it is unclear whether these are splits; name "
                "the split folders as in 'data.splits={lessons:train,exam:test}', set 'data.splits={}' if there are "
                "none, or leave folders out with data.ignore=[NAME]."
            )
        levels[level] = kinds
    if unknown := set(splits or ()).difference(*levels.values()):
        raise DataError(f"data.root={root} has no folder {', '.join(sorted(unknown))}; correct data.splits.")
    return levels


def _without_links(files: Sequence[ImageFile], root: str, skipped: Skipped) -> list[ImageFile]:
    """Return each file once where several paths lead to it; a `DataError` if they differ in split, domain or class."""
    first: dict[object, ImageFile] = {}
    for file in files:
        try:
            status = os.stat(os.path.join(root, file.path))
        except OSError:  # a link to nowhere is an unreadable image
            first[file.path] = file
            continue
        other = first.setdefault((status.st_dev, status.st_ino), file)
        if other[1:] != file[1:]:
            raise DataError(
                f"data.root={root}: {other.path} and {file.path} are the same file in two places; remove one of them, "
                f"or leave it or its folder out, as with 'data.ignore=[{file.path}]'."
            )
        if other is not file:
            skipped["links to files that count once"].append(file.path)
    return list(first.values())


def _require_one_depth(by_depth: Mapping[int, list[str]], root: str) -> None:
    """Raise a `DataError` if images lie at several depths, or at a depth that no layout has."""
    usual = max(by_depth, key=lambda depth: len(by_depth[depth]))
    first = by_depth[usual][0]
    if strays := [path for depth, paths in by_depth.items() if depth != usual for path in paths]:
        raise DataError(
            f"data.root={root} mixes layouts: {len(by_depth[usual])} images lie as {first} does, "
            f"{len(strays)} as {strays[0]}; move these, or leave them out with "
            f"'data.ignore=[{os.path.dirname(strays[0]) or strays[0]}]'; {EXPECTED}."
        )
    if not 1 <= usual <= 2:
        problem = "images too deep down, as" if usual else "no class folders above"
        raise DataError(f"data.root={root} has {problem} {first}; {EXPECTED}.")

"""Any tree of folders: every image is read, counted as left out, or the whole is refused in one line with a remedy."""

import logging
import os
import tempfile
from pathlib import Path

from hypothesis import event, given, settings
from hypothesis import strategies as st
from PIL import Image

from fedbayes.data.sources.folder_layout import MAX_FOLDERS
from fedbayes.data.sources.image_folder import image_folder
from fedbayes.errors import DataError

FOLDERS = st.sampled_from(["train", "Testing", "val", "web", "photo", "cat", "dog", "dev1", "crops", ".hidden"])
LINKS = ["twin.png", "out.png", "first.png", "first.png"]
FILES = st.sampled_from(["a.png", "a.png", "b.PNG", "c.heic", "notes.txt", "broken.jpg", "empty", *LINKS])
POOLS = st.sampled_from([("train", "Testing"), ("train", "val", "Testing"), ("web", "photo"), ("dev1", "dev2")])
IRREGULAR = st.lists(st.tuples(st.lists(FOLDERS, max_size=MAX_FOLDERS + 2), FILES), min_size=1, max_size=12)
REGULAR = st.lists(POOLS, max_size=2, unique=True).flatmap(
    lambda pools: st.lists(
        st.tuples(st.tuples(*map(st.sampled_from, [*pools, ("cat", "dog")])).map(list), FILES), min_size=6, max_size=16
    )
)
TREES = REGULAR | REGULAR | IRREGULAR


def plant(root: Path, tree: list[tuple[list[str], str]]) -> None:
    """Write the files; links lead to a neighbour, which may be missing, out of the root, or to the first image."""
    for i, (folders, name) in enumerate(tree):
        path = root.joinpath(*folders, name)
        if any(parent.is_file() for parent in path.parents) or path.exists() or path.is_symlink():
            continue
        if name == "empty":
            path.mkdir(parents=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        outside = root.parent / f"{i}.png"
        targets = {
            "twin.png": Path("a.png"),
            "out.png": outside,
            "first.png": min(root.rglob("a.png"), default=outside),
        }
        if name in targets:
            path.symlink_to(targets[name])
        if name in ("a.png", "b.PNG", "out.png"):
            Image.new("RGB", (8, 8), (i, 0, 0)).save(path)
        elif name not in targets:
            path.write_bytes(b"no picture")


def classes(name: str) -> list[str]:
    """Return the folders of an image that are never splits."""
    return [folder for folder in name.split("/")[:-1] if folder in ("web", "photo", "cat", "dog", "crops")]


@settings(max_examples=40, deadline=None)
@given(tree=TREES, ignore=st.none() | st.lists(FOLDERS, max_size=2, unique=True), plain=st.booleans())
def test_any_tree_is_read_or_refused(tree: list[tuple[list[str], str]], ignore: list[str] | None, plain: bool) -> None:
    skipped: dict[str, list[str]] = {}
    handler = logging.Handler()
    handler.emit = lambda record: skipped.update(record.args[1])  # type: ignore[method-assign, arg-type, index]
    logging.getLogger("fedbayes").addHandler(handler)
    try:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "root"
            root.mkdir()
            plant(root, tree)
            try:
                images = image_folder(str(root), 8, "skip", ["cat", "dog", "web"] if plain else None, ignore=ignore)
            except DataError as error:
                event("a file in two places" if "the same file" in str(error) else "refused")
                if "\n" in str(error) or not str(error).startswith("data.root="):
                    raise
                return
            files = {str(path.relative_to(root)) for path in root.rglob("*") if path.suffix.lower() in (".png", ".jpg")}
            targets = {name: os.path.realpath(root / name) for name in files}
    finally:
        logging.getLogger("fedbayes").removeHandler(handler)
    event("read")
    assert len(set(images.names)) == len(images.names)
    assert set(images.names) <= files
    visible = {name for name in files if ".hidden" not in name}
    left_out = [path.split(" ")[0] for paths in skipped.values() for path in paths]
    for name in visible - set(images.names):
        assert any(f"{name}/".startswith(f"{path}/") for path in left_out), "left out without a warning"
    first = {targets[name]: name for name in images.names}
    assert len(first) == len(images.names), "a linked file counts twice"
    for name in visible - set(images.names) if ignore is None else ():
        if targets[name] in first and name.count("/") <= MAX_FOLDERS + 1:
            assert classes(name) == classes(first[targets[name]]), "a file in two classes"
            event("counts once")
    kinds = set(images.given_split.tolist())
    assert kinds == {-1} or -1 not in kinds, "splits are of all images or of none"
    assert kinds == {-1} or 0 in kinds, "there is something to train on"

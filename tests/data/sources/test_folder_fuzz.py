"""Any tree of folders: every image is read, counted as left out, or the whole is refused in one line with a remedy."""

import logging
import tempfile
from pathlib import Path

from hypothesis import event, given, settings
from hypothesis import strategies as st
from PIL import Image

from fedbayes.data.sources.folder_layout import MAX_FOLDERS
from fedbayes.data.sources.image_folder import image_folder
from fedbayes.errors import DataError

FOLDERS = st.sampled_from(["train", "Testing", "val", "web", "photo", "cat", "dog", "dev1", "crops", ".hidden"])
FILES = st.sampled_from(["a.png", "a.png", "b.PNG", "c.heic", "notes.txt", "broken.jpg", "empty"])
POOLS = st.sampled_from([("train", "Testing"), ("train", "val", "Testing"), ("web", "photo"), ("dev1", "dev2")])
IRREGULAR = st.lists(st.tuples(st.lists(FOLDERS, max_size=MAX_FOLDERS + 2), FILES), min_size=1, max_size=12)
REGULAR = st.lists(POOLS, max_size=2, unique=True).flatmap(
    lambda pools: st.lists(
        st.tuples(st.tuples(*map(st.sampled_from, [*pools, ("cat", "dog")])).map(list), FILES), min_size=6, max_size=16
    )
)
TREES = REGULAR | REGULAR | IRREGULAR


def plant(root: Path, tree: list[tuple[list[str], str]]) -> None:
    """Write the files."""
    for i, (folders, name) in enumerate(tree):
        path = root.joinpath(*folders, name)
        if any(parent.is_file() for parent in path.parents) or path.exists():
            continue
        if name == "empty":
            path.mkdir(parents=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if name in ("a.png", "b.PNG"):
            Image.new("RGB", (8, 8), (i, 0, 0)).save(path)
        else:
            path.write_bytes(b"no picture")


@settings(max_examples=40, deadline=None)
@given(tree=TREES, ignore=st.none() | st.lists(FOLDERS, max_size=2, unique=True), plain=st.booleans())
def test_any_tree_is_read_or_refused(tree: list[tuple[list[str], str]], ignore: list[str] | None, plain: bool) -> None:
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    logging.getLogger("fedbayes").addHandler(handler)
    try:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "root"
            root.mkdir()
            plant(root, tree)
            try:
                images = image_folder(str(root), 8, "skip", ["cat", "dog", "web"] if plain else None, ignore=ignore)
            except DataError as error:
                if "\n" in str(error) or not str(error).startswith("data.root="):
                    raise
                return
            files = {str(path.relative_to(root)) for path in root.rglob("*") if path.suffix.lower() in (".png", ".jpg")}
    finally:
        logging.getLogger("fedbayes").removeHandler(handler)
    event("read")
    assert len(set(images.names)) == len(images.names)
    assert set(images.names) <= files
    visible = {name for name in files if ".hidden" not in name}
    assert visible == set(images.names) or len(records) == 1, "left out without a warning"
    kinds = set(images.given_split.tolist())
    assert kinds == {-1} or -1 not in kinds, "splits are of all images or of none"
    assert kinds == {-1} or 0 in kinds, "there is something to train on"

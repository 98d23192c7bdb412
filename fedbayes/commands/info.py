"""The command `fedbayes-info`: versions, device, what can be chosen, and the files behind the choices."""

import argparse
import importlib.util
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from fedbayes.config.compose import CONF
from fedbayes.storage.names import SUBJECT

GROUPS = (*SUBJECT, "simulation", "tracking", "attack", "emulator", "sparse", "experiment")
VALUES = "values"
SEARCH = "hydra.searchpath="
HINT = "fedbayes-info GROUP=CHOICE shows the file behind a choice, fedbayes-info values all outside of the groups."
EXAMPLES = """examples:
  fedbayes-info                 versions, device, and every choice
  fedbayes-info method data     the choices of these groups
  fedbayes-info method=fedvpt   the file behind a choice: what it sets, and whose it is
  fedbayes-info values          all values outside of the groups, with defaults and comments
  fedbayes-info 'hydra.searchpath=[file://DIR]' method
                                the methods of your own in DIR/method, too"""


def choices(group: str, own: Sequence[Path] = ()) -> dict[str, str]:
    """The names in a group, each with the first sentence of its file's comments, and one's own with their files.

    Args:
        group: a folder in `conf/`.
        own: folders like `conf/`.
    """
    return {
        name: said(path.read_text(encoding="utf-8")) + (f" [{path}]" if CONF not in path.parents else "")
        for name, path in files(group, own).items()
    }


def files(group: str, own: Sequence[Path] = ()) -> dict[str, Path]:
    """The file of each name in a group; of equal names Hydra takes the first folder's."""
    paths: dict[str, Path] = {}
    for folder in (CONF, *own):
        for path in sorted((folder / group).glob("*.yaml")):
            paths.setdefault(path.stem, path)
    return paths


def search_path(word: str) -> list[Path]:
    """The folders that `hydra.searchpath=[...]` names.

    Raises:
        ValueError: if it cannot be read as a list, or there is no such folder.
    """
    try:
        places = OverridesParser.create().parse_override(word).value()
    except HydraException:
        places = None
    if not isinstance(places, list):
        raise ValueError(f"{word} is no list of folders; give one, as in '{SEARCH}[file://DIR]'.")
    folders = {place: _folder(str(place)) for place in places}
    for place, folder in folders.items():
        if folder is None or not folder.is_dir():
            raise ValueError(f"{SEARCH}[{place}] names no folder; give one, as in '{SEARCH}[file://DIR]'.")
    return [folder for folder in folders.values() if folder is not None]


def said(text: str) -> str:
    """The first sentence of a file's leading comments; `@package` is none."""
    comments = []
    for line in text.splitlines():
        if line.startswith("# @package"):
            continue
        if not line.startswith("#"):
            break
        comments.append(line[1:].strip())
    # A sentence ends where a capital follows, unless the full stop abbreviates: `Ye et al. (...)`.
    return re.split(r"(?<=[^l]\.) (?=[A-Z])", " ".join(comments))[0]


def shown(word: str, own: Sequence[Path] = ()) -> str:
    """What a word of the command asks for.

    Args:
        word: a group, a choice in one, or `values`.
        own: folders of one's own like `conf/`.

    Raises:
        ValueError: if there is no such thing, with what there is.
    """
    group, equals, name = word.partition("=")
    if word == VALUES:
        return (CONF / "config.yaml").read_text(encoding="utf-8").rstrip()
    if group not in GROUPS:
        raise ValueError(f"{word} is no group; give {', '.join(GROUPS)}, or {VALUES}.")
    if not equals:
        return f"{group}=\n{_table(choices(group, own))}"
    paths = files(group, own)
    if name not in paths:
        raise ValueError(f"{word} does not exist; choose one of {', '.join(paths)}.")
    return "\n\n".join(_with_bases(paths[name]))


def _with_bases(path: Path) -> list[str]:
    """The text of a file and of those that it builds upon, as its `defaults` name them, each with its place."""
    text = path.read_text(encoding="utf-8").rstrip()
    bases = [path.parent / f"{name}.yaml" for name in re.findall(r"^  - ((?:base/)?[a-z]\w*)$", text, re.MULTILINE)]
    return [f"# {path}\n{text}", *(part for base in bases if base.is_file() for part in _with_bases(base))]


def main() -> None:
    """Print it; exits with 2 and one line if there is no such group or choice."""
    parser = argparse.ArgumentParser(
        prog="fedbayes-info",
        description="Versions, device, and what `fedbayes` lets you choose.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", nargs="*", metavar="GROUP | GROUP=CHOICE | values", help="one or more; none shows all")
    words = parser.parse_args().what
    asked = [word for word in words if not word.startswith(SEARCH)]
    try:
        own = [folder for word in words if word.startswith(SEARCH) for folder in search_path(word)]
        text = "\n\n".join(shown(word, own) for word in asked or GROUPS)
    except ValueError as error:
        print(f"fedbayes-info: {error}", file=sys.stderr)
        sys.exit(2)
    try:
        if not asked:
            _installation()
            text = f"\n{text}\n\n{HINT}"
        print(text, flush=True)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _installation() -> None:
    import torch

    from fedbayes.simulation.hardware import available_cores
    from fedbayes.tracking.provenance import git_commit, versions

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    print("versions  ", ", ".join(f"{name} {version}" for name, version in versions().items()))
    print("commit    ", git_commit() or "not in a checkout")
    print("device    ", f"{available_cores()} CPU cores, GPU: {gpu}")
    print("packages  ", Path(__file__).resolve().parents[2])


def _folder(place: str) -> Path | None:
    """Of an entry of Hydra's search path: `file://DIR`, a bare DIR, or `pkg://PACKAGE.OF.THE.FOLDER`."""
    scheme, marked, name = place.rpartition("://")
    if not marked or scheme == "file":
        return Path(name)
    try:
        spec = importlib.util.find_spec(name.replace("/", ".")) if scheme == "pkg" else None
    except ImportError:
        spec = None
    return next((Path(location) for location in (spec and spec.submodule_search_locations) or ()), None)


def _table(found: dict[str, str]) -> str:
    """Names and texts side by side, wrapped on a terminal and in one line each elsewhere."""
    width = max(len(name) for name in found)
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else 100_000
    rows = []
    for name, text in found.items():
        first, *others = textwrap.wrap(text, max(30, columns - width - 5)) or [""]
        rows += [f"  {name:<{width}}  {first}".rstrip(), *(f"  {'':<{width}}  {line}" for line in others)]
    return "\n".join(rows)


if __name__ == "__main__":
    main()

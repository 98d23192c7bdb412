"""The command `fedbayes-info`: versions, device, what can be chosen, and the files behind the choices."""

import argparse
import os
import re
import shutil
import sys
import textwrap
from pathlib import Path

from fedbayes.configuration import CONF

GROUPS = ("method", "data", "partition", "backbone", "simulation", "tracking", "attack", "experiment")
VALUES = "values"
HINT = "fedbayes-info GROUP=CHOICE shows the file behind a choice, fedbayes-info values every single value."
EXAMPLES = """examples:
  fedbayes-info                 versions, device, and every choice
  fedbayes-info method data     the choices of these groups
  fedbayes-info method=fedvpt   the file behind a choice: what it sets, and whose it is
  fedbayes-info values          every single value with its default and a comment"""


def choices(group: str) -> dict[str, str]:
    """The names in a group of `conf/`, each with the first sentence of its file's comments."""
    return {path.stem: said(path.read_text(encoding="utf-8")) for path in sorted((CONF / group).glob("*.yaml"))}


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


def shown(word: str) -> str:
    """What a word of the command asks for.

    Raises:
        ValueError: if there is no such thing, with what there is.
    """
    group, equals, name = word.partition("=")
    if word == VALUES:
        return (CONF / "config.yaml").read_text(encoding="utf-8").rstrip()
    if group not in GROUPS:
        raise ValueError(f"{word} is no group; give {', '.join(GROUPS)}, or {VALUES}.")
    found = choices(group)
    if not equals:
        return f"{group}=\n{_table(found)}"
    if name not in found:
        raise ValueError(f"{word} does not exist; choose one of {', '.join(found)}.")
    path = CONF / group / f"{name}.yaml"
    return f"# {path}\n{path.read_text(encoding='utf-8').rstrip()}"


def main() -> None:
    """Print it; exits with 2 and one line if there is no such group or choice."""
    parser = argparse.ArgumentParser(
        prog="fedbayes-info",
        description="Versions, device, and what `fedbayes` lets you choose.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", nargs="*", metavar="GROUP | GROUP=CHOICE | values", help="one or more; none shows all")
    asked = parser.parse_args().what
    try:
        text = "\n\n".join(map(shown, asked or GROUPS))
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

    from fedbayes.provenance import git_commit, versions
    from fedbayes.simulation.hardware import available_cores

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    print("versions  ", ", ".join(f"{name} {version}" for name, version in versions().items()))
    print("commit    ", git_commit() or "not in a checkout")
    print("device    ", f"{available_cores()} CPU cores, GPU: {gpu}")
    print("packages  ", Path(__file__).resolve().parent.parent)


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

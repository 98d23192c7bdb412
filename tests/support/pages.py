"""Files and commands of a Markdown page, and running a page's commands in this process."""

import re
import runpy
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^( *)```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
SMALL = [
    "data.image_size=16",
    "partition.validation=0.02",
    "partition.test=0.02",
    "partition.max_train=8",
    "rounds=1",
    "inference.predict_samples=2",
    "simulation.threads=1",
]
"""Makes a run on the bundled data one of a second or two."""


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    language: str
    title: str | None
    body: str


def blocks(text):
    """All fenced blocks, in order."""
    return [Block(found[2], found[3], found[4]) for found in FENCE.finditer(text)]


def files(text):
    """Contents by name, of the blocks with a title."""
    return {one.title: one.body for one in blocks(text) if one.title}


def commands(text):
    """The lines after `$ ` of the console blocks, continued lines joined."""
    found = []
    for block in blocks(text):
        if block.language == "console":
            joined = re.sub(r"\\\n\s*", "", block.body)
            found += [line[2:] for line in joined.splitlines() if line.startswith("$ ")]
    return found


def words(command):
    """As a shell splits it, without the comment behind it."""
    return shlex.split(command, comments=True)


class Shell:
    """Runs a page's commands here, since a process of its own would import torch for each of them.

    Args:
        monkeypatch: of the test; its folder and variables are what the commands change.
        folder: to run in.
    """

    def __init__(self, monkeypatch, folder):
        self.patch = monkeypatch
        monkeypatch.chdir(folder)
        monkeypatch.syspath_prepend(folder)
        self.known = set(sys.modules)

    def run(self, command, extra=()):
        """Run one command, with words added to a `fedbayes`; fails if it exits with another status than 0."""
        name, *rest = words(command)
        if name == "export":
            self.patch.setenv(*rest[0].split("="))
        elif name == "python":
            runpy.run_path(rest[0], run_name="__main__")
        else:
            self.patch.setattr(sys, "argv", [name, *rest, *(extra if name == "fedbayes" else ())])
            status = status_of(entry(name))
            assert not status, f"{command}: exit status {status}"

    def close(self, names):
        """Forget the modules that a page wrote."""
        for name in names:
            sys.modules.pop(Path(name).stem, None)


def status_of(main):
    """With which exit status a command's function ends."""
    try:
        main()
    except SystemExit as end:
        return end.code
    return 0


def entry(name):
    """The function behind one of the project's commands."""
    if name == "fedbayes":
        from fedbayes.run import main
    elif name == "fedbayes-report":
        from fedbayes.report.cli import main
    elif name == "fedbayes-info":
        from fedbayes.commands.info import main
    else:
        raise AssertionError(f"{name} is none of the commands that a page can run here")
    return main

"""What a result was made by: versions, commit, threads; and what differs from that now."""

import importlib.metadata
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("fedbayes", "flwr", "torch", "timm", "pyro-ppl", "hydra-core", "numpy")


def provenance() -> dict[str, Any]:
    """`git`, `versions` and `threads` of this process."""
    return {"git": git_commit(), "versions": versions(), "threads": torch.get_num_threads()}


def differences(before: Mapping[str, Any] | None) -> list[str]:
    """In what this process differs from an earlier one, a sentence each; such a difference can move results.

    Args:
        before: that one's `provenance`; None if there was none.
    """
    if before is None:
        return []
    now = provenance()
    pairs = {"commit": (before["git"], now["git"]), "threads of torch": (before["threads"], now["threads"])}
    pairs |= {name: (before["versions"].get(name), now["versions"][name]) for name in now["versions"]}
    return [
        f"it goes on with another {what} ({new}) than it was begun with ({old}): results may differ"
        for what, (old, new) in pairs.items()
        if old != new
    ]


def versions() -> dict[str, str | None]:
    """Of Python and the packages that results depend on; None for one that runs without being installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def git_commit() -> str | None:
    """The commit of the checkout that runs, with `+` if it has changes; None outside a checkout."""
    folder = Path(__file__).resolve().parents[2]

    def ask(*words: str) -> str:
        command = ["git", "-C", str(folder), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        if Path(ask("rev-parse", "--show-toplevel")) != folder:
            return None
        return ask("rev-parse", "HEAD") + ("+" if ask("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return None

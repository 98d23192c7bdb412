"""The command `fedbayes-info`: versions, device, and what can be chosen."""

from pathlib import Path

from fedbayes.configuration import CONF
from fedbayes.provenance import git_commit, versions
from fedbayes.simulation.hardware import available_cores

GROUPS = ("method", "data", "partition", "backbone", "simulation", "tracking", "attack", "experiment")


def choices(group: str) -> dict[str, str]:
    """The names in a group of `conf/`, each with the first comment of its file."""
    found = {}
    for path in sorted((CONF / group).glob("*.yaml")):
        comments = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("# ")]
        said = [line[2:] for line in comments if not line.startswith("# @package")]
        found[path.stem] = said[0] if said else ""
    return found


def main() -> None:
    """Print it."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    print("versions  ", ", ".join(f"{name} {version}" for name, version in versions().items()))
    print("commit    ", git_commit() or "not in a checkout")
    print("device    ", f"{available_cores()} CPU cores, GPU: {gpu}")
    print("packages  ", Path(__file__).resolve().parent.parent)
    for group in GROUPS:
        found = choices(group)
        if found:
            print(f"\n{group}=")
            width = max(len(name) for name in found)
            for name, text in found.items():
                print(f"  {name:<{width}}  {text}")


if __name__ == "__main__":
    main()

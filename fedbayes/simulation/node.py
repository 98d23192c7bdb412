"""What a SuperNode's `--node-config` says about it: its partition, its own images, what it hands out.

A simulated node has but a partition. A deployed one also has `data-root`, the folder of its images: then it hands out
personal parameters only if its owner starts it with `share-personal=true`, whatever the server asks.
"""

from collections.abc import Mapping

from fedbayes.comm.messages import PARTITION
from fedbayes.errors import ConfigError

PARTITIONS, ROOT, SHARES = "num-partitions", "data-root", "share-personal"
REMEDY = "start the SuperNode with --node-config 'data-root=\"DIR\" partition-id=P num-partitions=CLIENTS'"


def partition_of(node: Mapping[str, object]) -> int:
    """Return the partition of the node.

    Raises:
        ConfigError: if it does not say.
    """
    partition = node.get(PARTITION)
    if isinstance(partition, bool) or not isinstance(partition, int) or partition < 0:
        problem = "lacks partition-id" if partition is None else f"has partition-id={partition}, no whole number from 0"
        raise ConfigError(f"a node-config {problem}; {REMEDY}.")
    return partition


def root_of(node: Mapping[str, object], clients: int, *, needed: bool) -> str | None:
    """Return the folder of the node's own images; None for a node with a partition of common ones.

    Args:
        node: the node's configuration.
        clients: partitions of the run.
        needed: whether the run is one of nodes with their own images (`partition=local_folder`).

    Raises:
        ConfigError: if node and run do not fit each other.
    """
    partition, root, partitions = partition_of(node), node.get(ROOT), node.get(PARTITIONS, clients)
    who = f"the node-config of partition {partition}"
    if partitions != clients or partition >= clients:
        problem = f"says num-partitions={partitions}" if partitions != clients else "counts from 0"
        raise ConfigError(
            f"{who} {problem}, but the run has clients={clients}; set clients to the number of SuperNodes."
        )
    if needed and not root:
        raise ConfigError(f"{who} lacks data-root, which partition=local_folder needs; {REMEDY}.")
    if root and not needed:
        raise ConfigError(
            f"{who} has images of its own (data-root={root}), but the run deals out common ones; set "
            "partition=local_folder data=imagefolder data.root=null data.classes=[...] data.domains=[...]."
        )
    return str(root) if root else None


def shares_personal(node: Mapping[str, object]) -> bool:
    """Whether the node hands out personal parameters: simulated nodes do, others only if told to."""
    return ROOT not in node or node.get(SHARES) is True

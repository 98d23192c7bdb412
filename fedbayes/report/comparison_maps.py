"""Shaded tables of a comparison: who did how well on which domain, and who held what."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fedbayes.report import page
from fedbayes.report.comparison import Comparison
from fedbayes.report.groups import Group
from fedbayes.report.run_tables import accuracy_map, holdings
from fedbayes.storage.predictions import Predictions


def domains(table: Comparison, names: Sequence[str]) -> str:
    """Accuracy of each group in each domain, mean over seeds and standard error; nothing where no run says it."""
    columns, spreads = table.domains()
    means = [found.mean for row in spreads for found in row if found is not None]
    if not means:
        return ""
    rows = [
        (name, [("–", None) if found is None else (found.text(), found.mean) for found in row])
        for name, row in zip(names, spreads, strict=True)
    ]
    caption = (
        "Test accuracy in each domain after the last round, all clients' images together: mean over seeds ± standard "
        f"error; weakest colour {min(means):.3f}, strongest {max(means):.3f}"
    )
    # Differences between methods are small beside the scale from 0 to 1. The weakest is a tenth of the strongest.
    low = min(means) - (max(means) - min(means)) / 9
    return page.heat_table(caption, ["group", *columns], rows, (low, max(means)), range(len(rows)))


def clients(
    predictions: Sequence[Sequence[Predictions]],
    partitions: Sequence[Sequence[Mapping[str, Any]]],
    names: Sequence[str],
) -> str:
    """A map of clients and domains for each group, folded, mean over seeds.

    Args:
        predictions: of each group's runs that kept any.
        partitions: the object of `partition.json` of each group's runs.
        names: of the groups.
    """
    parts = []
    for index, (found, held) in enumerate(zip(predictions, partitions, strict=True)):
        if made := accuracy_map(found, held[0], names[index]):
            parts.append(f'<div data-group="{index}">{page.folded(f"Clients and domains: {names[index]}", made)}</div>')
    if not parts:
        return ""
    mixed = any(len({_text(one) for one in held}) > 1 for held in partitions)
    note = "<p>Runs of a group differ in their partition, so a client holds other images in each.</p>" if mixed else ""
    return f"{note}<div class=maps>{''.join(parts)}</div>"


def partitions(groups: Sequence[Group], found: Sequence[Sequence[Mapping[str, Any]]]) -> str:
    """Images of each client by domain, label and split, once for each partition that the runs were on.

    Args:
        groups: of runs.
        found: the object of `partition.json` of each group's runs.
    """
    shared: dict[str, tuple[Mapping[str, Any], list[tuple[str, str]]]] = {}
    for group, held in zip(groups, found, strict=True):
        for (run, summary), one in zip(group.runs, held, strict=True):
            shared.setdefault(_text(one), (one, []))[1].append((run.name, str(summary.get("seed", "–"))))
    made = [(text, runs) for one, runs in shared.values() if (text := holdings(one))]
    if len(shared) == 1:
        return "".join(f"<p>All runs have the same partition.</p>{text}" for text, _ in made)
    seeds = [{seed for _, seed in runs} for _, runs in made]
    by_seed = sum(map(len, seeds)) == len(set().union(*seeds))
    return "".join(
        page.folded(f"Partition of {_seeds(runs) if by_seed else _few([name for name, _ in runs])}", text)
        for text, runs in made
    )


def _text(partition: Mapping[str, Any]) -> str:
    return json.dumps(partition, sort_keys=True)


def _seeds(runs: Sequence[tuple[str, str]]) -> str:
    found = sorted({seed for _, seed in runs})
    return f"seed {', '.join(found)} ({len(runs)} runs)"


def _few(names: Sequence[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more

"""Tables of one run: who did how well on what, who holds what, and what stood in the run's way."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedbayes.report import page
from fedbayes.report.curves import Rows
from fedbayes.report.partition_counts import dealt
from fedbayes.report.result_tables import EACH_CLIENT, client_rows, number, size
from fedbayes.storage.predictions import Predictions

_OPEN = 25
"""Clients up to which a table of them stands open."""
_MOST_COLUMNS = 30
_MOST_CELLS = 100_000


def accuracy_map(runs: Sequence[Predictions], partition: Mapping[str, Any], name: str = "") -> str:
    """Accuracy of each client in each domain, as a shaded table; of several runs, the mean over those with images.

    Args:
        runs: predictions of a run, or of one for each seed.
        partition: the object of `partition.json`, for the names of domains.
        name: of the runs, where there are others on the page.
    """
    found: dict[tuple[int, int], list[tuple[float, int]]] = {}
    for one in runs:
        for place, cell in one.cells().items():
            found.setdefault(place, []).append(cell)
    if not found:
        return ""
    domains = sorted({domain for _, domain in found})
    clients = sorted({client for client, _ in found})
    if len(domains) > _MOST_COLUMNS or len(clients) * len(domains) > _MOST_CELLS:
        return f"<p>{len(clients)} clients and {len(domains)} domains are too many for a table.</p>"
    names = [str(name) for name in partition.get("domains") or []]
    label = [names[domain] if domain < len(names) else str(domain) for domain in domains]
    rows = []
    for client in clients:
        shown: list[tuple[str, float | None]] = []
        for domain in domains:
            cells = found.get((client, domain), [])
            accuracy = sum(each for each, _ in cells) / (len(cells) or 1)
            images = sum(images for _, images in cells)
            shown.append((f"{accuracy:.2f} ({images})", accuracy) if images else ("–", None))
        rows.append((f"client {client}", shown))
    caption = "Test accuracy of each client in each domain, and its number of test images there"
    if len(runs) > 1:
        caption += f": mean over {len(runs)} seeds, images of all of them"
    caption = f"{name}. {caption}" if name else caption
    made = page.heat_table(f"{caption}; stronger colour is higher", ["client", *label], rows)
    return made if name else _maybe_folded(made, len(clients))


def holdings(partition: Mapping[str, Any]) -> str:
    """Images of each client by domain and by label, as shaded tables."""
    clients, found = dealt(partition)
    parts = []
    for what, names, counts in found:
        if len(names) > _MOST_COLUMNS:
            parts.append(f"<p>{len(names)} {what}s are too many for a table; see partition.json.</p>")
            continue
        rows = [
            (f"client {client.get('partition', '–')}", [(f"{c:,}", float(c)) for c in row])
            for client, row in zip(clients, counts, strict=True)
        ]
        caption = f"Images of each client by {what}, all splits together; stronger colour is more"
        most = max(map(max, counts))
        parts.append(_maybe_folded(page.heat_table(caption, ["client", *names], rows, (0.0, most)), len(clients)))
    if not parts:
        return ""
    splits = [
        [f"client {c.get('partition', '–')}", *(number(c.get(s), 0) for s in ("train", "validation", "test"))]
        for c in clients
    ]
    head = ["client", "train", "validation", "test"]
    table = page.table("Images of each client by split", head, splits, sortable=True)
    return "".join(parts) + page.folded("Images by split", table)


def circumstances(summary: Mapping[str, Any], rows: Rows) -> str:
    """Attack, privacy, faults and clients that never trained, as far as there were any."""
    parts = []
    attack = summary.get("attack") or {}
    if attack.get("hostile"):
        facts = [
            ["attack", str(attack.get("name"))],
            ["hostile clients", ", ".join(map(str, attack["hostile"]))],
        ]
        success = (summary.get("final") or {}).get("backdoor_success")
        if success is not None:
            facts.append(["marked images seen as the attack wants", number(success)])
        parts.append(page.facts("Hostile clients", ("what", "how much"), facts))
    privacy = summary.get("privacy") or {}
    if privacy:
        spent = privacy.get("epsilon")
        last = spent[-1] if isinstance(spent, Sequence) and spent else spent
        facts = [[f"epsilon after the last round, delta {privacy.get('delta')}", number(last)]]
        facts += [[name, number(privacy.get(name))] for name in ("noise", "clip")]
        parts.append(page.facts("Client-level differential privacy", ("what", "how much"), facts))
    parts += [_faults(rows), _newcomers(summary.get("new_clients") or {})]
    return "".join(parts)


def _faults(rows: Rows) -> str:
    """Clients whose replies were not used; nothing where all were."""
    train = [row for row in rows if row.get("phase") == "train"]
    kinds = {
        "dropped_late": "too late",
        "dropped_failed": "failed or unreachable",
        "dropped_invalid": "refused as invalid",
    }
    totals = {label: sum(row.get(name) or 0 for row in train) for name, label in kinds.items()}
    if not any(totals.values()):
        return ""
    asked = sum(row.get("clients") or 0 for row in train)
    used = sum(row.get("replies") or 0 for row in train)
    facts = [["clients asked, all rounds", number(asked, 0)], ["replies used", number(used, 0)]]
    facts += [[f"replies {label}", number(total, 0)] for label, total in totals.items() if total]
    return page.facts("Replies that were not used", ("what", "how much"), facts)


def _newcomers(found: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        [
            f"{steps} steps",
            number(row.get("images"), 0),
            number((row.get("accuracy") or {}).get("mean")),
            *(number(row.get(name)) for name in ("nll", "ece", "brier")),
        ]
        for steps, row in found.items()
    ]
    head = ["adapted by", "test images", "accuracy", "NLL (nats)", "ECE", "Brier"]
    return page.table("Clients that never trained", head, rows) if rows else ""


def clients(summary: Mapping[str, Any]) -> str:
    """The numbers of each client."""
    head, rows = client_rows(summary)
    table = page.table(EACH_CLIENT, head, rows, sortable=True)
    return page.folded(f"{len(rows)} clients", table) if rows else ""


def sent(rows: Rows) -> str:
    """Bytes up and down, in total and in a round."""
    ways = {way: [row[f"bytes_{way}"] for row in rows if row.get(f"bytes_{way}") is not None] for way in ("up", "down")}
    found = [[way, size(sum(values)), size(sum(values) / len(values))] for way, values in ways.items() if values]
    return (
        page.table("Bytes of all clients together", ["way", "all rounds", "a round, on average"], found)
        if found
        else ""
    )


def _maybe_folded(inner: str, clients: int) -> str:
    return inner if clients <= _OPEN else page.folded(f"A table of {clients} clients", inner)

"""The files of finished runs, made up: every number known, and names that would break a careless page."""

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from fedbayes.report.comparison import compare
from fedbayes.report.measures import MEASURES
from fedbayes.storage.run_dir import write_json

HOSTILE = "<img src=x onerror=alert(1)>"


def write_run(folder: Path, *, seed: int = 0, rounds: int = 4, clients: int = 3, posterior: bool = True, **changes):
    """A run whose numbers follow from its method's name and its seed, and its summary."""
    folder.mkdir(parents=True)
    method = changes.get("method", "pfedbayespt")
    rng = np.random.default_rng([seed, *method.encode()])
    count, classes = 20 * clients, 4
    images = np.random.default_rng(seed)  # the same ones for every method
    labels = images.integers(classes, size=count)
    probabilities = rng.dirichlet(np.ones(classes), size=count).astype(np.float32)
    partitions = np.repeat(np.arange(clients), 20)
    domains = images.integers(2, size=count)
    right = probabilities.argmax(1) == labels
    each = [float(right[partitions == client].mean()) for client in range(clients)]
    bins = {"confidence": [None, 0.5, 0.9], "accuracy": [None, 0.6, 0.8], "count": [0, 4, 6]}
    final = {
        "round": rounds,
        "accuracy": {
            "mean": float(np.mean(each)),
            "weighted": 0.5,
            "std": float(np.std(each)),
            "worst_decile": min(each),
        },
        **{
            name: float(value) for name, value in zip(("nll", "ece", "brier", "aurc"), rng.uniform(size=4), strict=True)
        },
        "ece_floor": 0.05,
        "prompt_uncertainty": 0.02 if posterior else None,
        "effective_components": 2.0 + seed if posterior else None,
        "reliability": bins,
    }
    summary = {
        "method": method,
        "data": "styled_digits",
        "partition": "domain_mixture",
        "backbone": "letters",
        "seed": seed,
        "rounds": rounds,
        "clients": clients,
        "versions": {"python": "3"},
        "final": final,
        "best": {**final, "round": rounds - 1},
        "per_client": [{"partition": c, "images": 20, "accuracy": a, "nll": 1.0} for c, a in enumerate(each)],
        "per_domain": {"ink": {"images": 10, "accuracy": float(rng.uniform()), "nll": 1.0}},
        "train": {"kl": 3.0 * rounds + seed} if posterior else {},
        "bytes": {"up": 1_234_567 + seed, "down": 2_345_678},
        "seconds": {"total": 10.0 + seed, "setup": 1.0, "train": 6.0, "evaluate": 2.0, "aggregate": 0.5},
        **changes,
    }
    write_json(folder / "summary.json", summary)
    write_json(folder / "config.yaml", {"seed": seed, "run_dir": str(folder), "method": {"name": method}})
    people = [{"partition": c, "train": 5, "validation": 5, "test": 20, "domains": [10, 20], "labels": [8, 8, 7, 7],
               "indices": {"test": list(range(20 * c, 20 * c + 20))}}
              for c in range(clients)]  # fmt: skip
    write_json(folder / "partition.json", {"domains": ["ink", HOSTILE], "classes": list("abcd"), "clients": people})
    arrays = {"probabilities": probabilities, "labels": labels, "domains": domains, "partitions": partitions}
    save_file({**arrays, "expected_entropy": np.zeros(count, np.float32)}, folder / "predictions.safetensors")
    _write_rows(folder / "metrics.jsonl", rounds, rng, posterior)
    rows = [{"round": at, "phase": "validation", "partition": c, "images": 5, "accuracy": 0.5, "nll": 1.0}
            for at in range(1, rounds + 1) for c in range(clients)]  # fmt: skip
    _lines(folder / "clients.jsonl", rows)
    return summary


def make_runs(folder, methods=("pfedbayespt", "fedvpt"), seeds=3, **options):
    """Runs, their summaries by method, and their comparison."""
    summaries = {
        method: [write_run(folder / f"{i}-{seed}", seed=seed, method=method, **options) for seed in range(seeds)]
        for i, method in enumerate(methods)
    }
    return summaries, compare(sorted(folder.iterdir()), "final", MEASURES)


def _write_rows(path, rounds, rng, posterior):
    rows = []
    for at in range(1, rounds + 1):
        train = {"round": at, "phase": "train", "loss": 2 / at, "seconds": 1.0, "bytes_up": 10, "bytes_down": 20}
        if posterior:
            train |= {"kl": 3.0 * at, "log_classes": 1.386, "effective_components": 2.0, "bound_saturation": 0.4}
            train |= {"mixing_ratio_received": 0.3, "mixing_ratio_sent": 0.4}
        values = {"accuracy": 0.5 + 0.1 * float(rng.uniform()), "nll": 1 / at, "ece": 0.1}
        rows += [train, {"round": at, "phase": "validation", "seconds": 0.5, **values}]
    _lines(path, rows)


def _lines(path, rows):
    import json

    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

"""Private prediction of the test images of finished runs: accuracy, bits, rounds and seconds; a line for each run.

    fedbayes method=fedavg_head run_dir=runs/fedavg_head && python experiments/secure.py runs/fedavg_head

Accuracies are of the same images on shares, with the same whole numbers in the clear, and in floating point.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

import fedbayes
from fedbayes.data.federated import FederatedData
from fedbayes.secure.prediction import QuantisedLinear


def measure(run_dir: Path) -> dict[str, float | bool]:
    """Return accuracies, whether all classes are equal, and costs for each image."""
    run = fedbayes.load(run_dir)
    client = run.clients.client
    data: FederatedData = client.data
    rows = torch.cat([data.indices(partition, "test") for partition in range(len(data))]).unique()
    images, labels = data.images.images[rows], data.images.labels[rows].numpy()
    linear = client.linear_scores(client.inputs.of_images(images), run.clients.parameters(None))
    classifier = QuantisedLinear.of(linear.weights.double().numpy(), linear.bias.double().numpy())
    quantised = classifier.scores(linear.features.double().numpy()).argmax(1)
    private = run.predict(images, private=True)
    classes = np.array([data.images.classes.index(label) for label in private.labels])
    clear = run.predict(images).probabilities.argmax(1)
    return {
        "images": len(rows),
        "accuracy_private": float((classes == labels).mean()),
        "accuracy_quantised": float((quantised == labels).mean()),
        "accuracy_float": float((clear == labels).mean()),
        "equal_classes": bool((classes == quantised).all()),
        **{f"bits_{kind}": bits / len(rows) for kind, bits in private.bits.items()},
        "rounds": private.rounds,
        "milliseconds": 1000 * private.seconds / len(rows),
    }


def main() -> None:
    """Print a line for each run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="run directories of methods without prompts")
    for run_dir in parser.parse_args().runs:
        print(run_dir.name, *(f"{name}={value:.6g}" for name, value in measure(run_dir).items()), sep="  ")


if __name__ == "__main__":
    main()

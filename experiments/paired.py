"""Paired comparison of two methods on the same test images; see `fedbayes.metrics.paired`.

python experiments/paired.py RUN... --against RUN...    # seeds in one order, e.g. DIR/method=x,seed=*
"""

import argparse
from pathlib import Path

from fedbayes.metrics.paired import paired_difference


def main() -> None:
    """Print both differences and their intervals."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="run directories of one method, a seed each")
    parser.add_argument("--against", nargs="+", type=Path, required=True, help="those of the other, in the same order")
    args = parser.parse_args()
    if len(args.runs) != len(args.against):
        parser.error(f"{len(args.runs)} runs against {len(args.against)}; name one of each method for every seed")
    for score, scale, unit in (("accuracy", 100, "points"), ("nll", 1, "nats")):
        difference = paired_difference(list(zip(args.runs, args.against, strict=True)), score)
        text = f"{scale * difference.mean:+.3f} {unit} [{scale * difference.low:+.3f}, {scale * difference.high:+.3f}]"
        print(f"{score}: {text}, {'clear' if difference.is_clear else 'not clear'}")


if __name__ == "__main__":
    main()

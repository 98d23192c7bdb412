"""What a run was made of, its images client by client and its backbone; whoever goes on with it needs the same."""

import hashlib
import logging
from itertools import chain
from pathlib import Path
from typing import Any

from fedbayes.build import Parts
from fedbayes.data.fingerprint import fingerprint, first_difference
from fedbayes.errors import DataError
from fedbayes.storage.run_dir import INPUTS, read_json, write_json

UNKNOWN = f"there is no {INPUTS}, so nobody knows whether images and backbone are those that the run began with"

logger = logging.getLogger("fedbayes")


def record_inputs(run_dir: Path, parts: Parts) -> None:
    """Write down what a run is made of, or compare it with what was written when the run began.

    Raises:
        DataError: see `require_same_inputs`.
    """
    if (run_dir / INPUTS).exists():
        require_same_inputs(run_dir, parts)
    else:
        write_json(run_dir / INPUTS, _inputs(parts))


def require_same_inputs(run_dir: Path, parts: Parts) -> None:
    """Refuse other images or another backbone than a run began with, and warn if there is no record of them.

    Raises:
        DataError: naming the first difference.
    """
    stored, current = read_json(run_dir / INPUTS), _inputs(parts)
    if not stored:
        logger.warning("%s: %s.", run_dir, UNKNOWN)
        return
    if stored.get("backbone") != current["backbone"]:
        difference: str | None = "the backbone has other weights"
    elif current["images"] is None:
        return
    else:
        difference = first_difference(stored.get("images") or {}, current["images"])
    if difference is not None:
        raise DataError(
            f"{run_dir} was made of other inputs: {difference}; give back what it was made of, or run it again."
        )


def _inputs(parts: Parts) -> dict[str, Any]:
    digest = hashlib.blake2b(digest_size=16)
    models = [parts.model] if parts.tuned is None else [parts.model, parts.tuned]
    for name, array in chain(*(sorted(model.backbone.weights().items()) for model in models)):
        digest.update(name.encode())
        digest.update(array.detach().float().cpu().contiguous().numpy().tobytes())
    # Deployed clients alone know their images.
    return {"images": fingerprint(parts.data) if len(parts.data.images) else None, "backbone": digest.hexdigest()}

"""Runs that end in the middle, as a kill would end them."""

import pytest

from fedbayes import simulate
from fedbayes.storage import checkpoint


class Break(BaseException):
    """Ends a run as a kill would: nobody catches it."""


def broken(overrides, monkeypatch, after):
    """Run until the checkpoint of a round is there, and end."""
    save = checkpoint.save

    def save_and_break(run_dir, found):
        save(run_dir, found)
        if found.server_round == after:
            raise Break

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save", save_and_break)
        with pytest.raises(Break):
            simulate(overrides)

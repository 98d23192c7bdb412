"""The command that compares runs in pairs; what it computes is tested with `fedbayes.metrics.paired`."""

import sys

import paired
import pytest
from run_files import write_run


def test_the_command_names_both_differences(tmp_path, monkeypatch, capsys):
    for name in ("first", "second"):
        write_run(tmp_path / name, method=name)
    words = [str(tmp_path / "first"), "--against", str(tmp_path / "second")]
    monkeypatch.setattr(sys, "argv", ["paired.py", *words])
    paired.main()
    accuracy, nll = capsys.readouterr().out.splitlines()
    assert accuracy.startswith("accuracy: ")
    assert " nats [" in nll
    monkeypatch.setattr(sys, "argv", ["paired.py", str(tmp_path / "first"), *words])
    with pytest.raises(SystemExit):
        paired.main()
    assert "2 runs against 1" in capsys.readouterr().err

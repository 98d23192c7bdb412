"""What a run says of the processor it is on."""

import pytest
import torch

from fedbayes import simulate
from fedbayes.simulation.hardware import slow_numbers

X86 = {"architecture": "x86_64"}
NEITHER = {**X86, "amx_bf16": False, "avx512_bf16": False}


@pytest.mark.parametrize(
    ("precision", "device", "processor", "warned"),
    [
        ("bf16", "cpu", NEITHER, True),
        ("bf16", "cpu", {**X86, "avx512_bf16": True}, False),
        ("bf16", "cpu", {**X86, "amx_bf16": True}, False),
        ("bf16", "cpu", {"architecture": "arm64"}, False),  # its units have other names
        ("bf16", "cpu", {}, False),
        ("bf16", "cuda", NEITHER, False),
        ("float32", "cpu", NEITHER, False),
    ],
)
def test_bf16_is_warned_of_where_a_processor_cannot_multiply_it(monkeypatch, precision, device, processor, warned):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: processor, raising=False)
    assert (slow_numbers(precision, device) is not None) == warned


def test_the_log_has_it(tmp_path, monkeypatch, no_pictures):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: NEITHER, raising=False)
    simulate(["experiment=smoke", "rounds=1", "simulation.precision=bf16", f"run_dir={tmp_path / 'run'}"])
    assert (tmp_path / "run" / "run.log").read_text().count("simulation.precision=float32 is many times as fast") == 1


def test_this_processor_says_what_it_can_multiply():
    has = getattr(torch.cpu, "get_capabilities", dict)()
    if has.get("architecture") != "x86_64":
        pytest.skip("needs an x86 processor, and a torch that knows it")
    assert {"amx_bf16", "avx512_bf16"} <= set(has)

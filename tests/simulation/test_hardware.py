"""What a run says of the processor it is on."""

import pytest
import torch

from fedbayes.simulation.hardware import warn_of_slow_numbers

X86 = {"architecture": "x86_64"}


@pytest.mark.parametrize(
    ("precision", "device", "processor", "warned"),
    [
        ("bf16", "cpu", {**X86, "amx_bf16": False, "avx512_bf16": False}, True),
        ("bf16", "cpu", {**X86, "avx512_bf16": True}, False),
        ("bf16", "cpu", {**X86, "amx_bf16": True}, False),
        ("bf16", "cpu", {"architecture": "arm64"}, False),  # its units have other names
        ("bf16", "cuda", X86, False),
        ("float32", "cpu", X86, False),
    ],
)
def test_bf16_is_warned_of_where_a_processor_cannot_multiply_it(
    monkeypatch, caplog, precision, device, processor, warned
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: processor, raising=False)
    warn_of_slow_numbers(precision, device)
    assert ("float32 is several times as fast" in caplog.text) == warned


def test_this_processor_says_what_it_can_multiply():
    has = torch.cpu.get_capabilities()
    assert "architecture" in has
    if has["architecture"] == "x86_64":
        assert {"amx_bf16", "avx512_bf16"} <= set(has)

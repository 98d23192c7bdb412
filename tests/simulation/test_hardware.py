"""What a run says of the processor it is on, and the memory that its process keeps."""

import subprocess
import sys

import pytest
import torch

from fedbayes import simulate
from fedbayes.simulation.hardware import slow_numbers

X86 = {"architecture": "x86_64"}
NEITHER = {**X86, "amx_bf16": False, "avx512_bf16": False}


@pytest.mark.parametrize(
    ("precision", "device", "processor", "is_slow"),
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
def test_bf16_is_warned_of_where_a_processor_cannot_multiply_it(monkeypatch, precision, device, processor, is_slow):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: processor, raising=False)
    assert (slow_numbers(precision, device) is not None) == is_slow


def test_the_log_has_the_warning(tmp_path, monkeypatch, no_pictures):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: NEITHER, raising=False)
    simulate(["experiment=smoke", "rounds=1", "simulation.precision=bf16", f"run_dir={tmp_path / 'run'}"])
    assert (tmp_path / "run" / "run.log").read_text().count("simulation.precision=float32") == 1


def test_this_processor_says_what_it_can_multiply():
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    if capabilities.get("architecture") != "x86_64":
        pytest.skip("needs an x86 processor, and a torch that knows it")
    assert {"amx_bf16", "avx512_bf16"} <= set(capabilities)


PROGRAM = """
import resource, torch
from fedbayes.simulation.hardware import keep_freed_memory
is_kept = keep_freed_memory()
def step():
    tensors = [torch.ones(2**20) for _ in range(8)]  # 4 MB each
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    del tensors
    tensors = [torch.ones(2**20) for _ in range(8)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
step()
print(is_kept, step())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs the allocator of glibc, hence Linux")
def test_what_was_freed_comes_back_without_new_pages():
    """In a process of its own, so that the tests' process stays as it is."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    is_kept, faults = done.stdout.split()
    assert is_kept == "False" or int(faults) < 512  # fresh, they are 8192 pages

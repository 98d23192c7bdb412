"""Memory is kept in a process of its own, so that the tests' process stays as it is."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, torch
from fedbayes.simulation.hardware import keep_freed_memory
kept = keep_freed_memory()
def step():
    held = [torch.ones(2**20) for _ in range(8)]  # 4 MB each
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    del held
    again = [torch.ones(2**20) for _ in range(8)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
step()
print(kept, step())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs the allocator of glibc, hence Linux")
def test_what_was_freed_comes_back_without_new_pages():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    kept, faults = done.stdout.split()
    assert kept == "False" or int(faults) < 512  # fresh, they are 8192 pages

"""The device, the torch threads, the numbers and the memory of a process that runs clients."""

import ctypes
import os
import sys

import torch

from fedbayes.errors import ConfigError, require_choice, require_whole

BF16_UNITS = ("amx_bf16", "avx512_bf16")
"""What x86 processors call their instructions that multiply bfloat16."""
MOST_THREADS = 1024
"""OpenMP ends a process that asks for many more than a machine can start."""
# From glibc's malloc.h; the largest threshold that it takes is 32 MB.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_FROM_HEAP, _NEVER_TRIM = 32 * 2**20, 2**31 - 1


def available_cores() -> int:
    """Return how many CPU cores this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose_device(device: str) -> str:
    """Return `cpu` or `cuda` for `simulation.device`, where `auto` takes a GPU if there is one."""
    require_choice("simulation.device", device, ("auto", "cpu", "cuda"))
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("simulation.device=cuda finds no GPU here; choose one of auto, cpu.")
    return "cuda" if device == "auto" and torch.cuda.is_available() else device.replace("auto", "cpu")


def slow_numbers(precision: str, device: str) -> str | None:
    """Return a warning of `simulation.precision=bf16` on an x86 processor without units for it, or None."""
    has: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # older versions of torch cannot tell
    if (precision, device, has.get("architecture")) != ("bf16", "cpu", "x86_64") or any(map(has.get, BF16_UNITS)):
        return None
    return (
        "simulation.precision=bf16: this processor cannot multiply bfloat16 and converts every number; "
        "simulation.precision=float32 is many times as fast"
    )


def settle(threads: int) -> None:
    """Make this process ready to run clients: its torch threads, and memory that is kept between steps."""
    torch.set_num_threads(threads)
    keep_freed_memory()


def choose_threads(threads: int | None, otherwise: int) -> int:
    """Return `simulation.threads`, or another number where it is null."""
    return otherwise if threads is None else require_whole("simulation.threads", threads, 1, MOST_THREADS)


def keep_freed_memory() -> bool:
    """Let this process keep what it frees instead of handing it back to the system.

    A step's activations are hundreds of megabytes that come and go. By default each comes as fresh zeroed pages, which
    costs about as much as computing what goes into them. The process stays as large as its largest step. It can be done
    on Linux with glibc; returned is whether it was.
    """
    if not sys.platform.startswith("linux"):
        return False
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)  # absent from other C libraries
    if set_option is None:
        return False
    wanted = ((_M_MMAP_THRESHOLD, _LARGEST_FROM_HEAP), (_M_TRIM_THRESHOLD, _NEVER_TRIM))
    return all(set_option(option, value) == 1 for option, value in wanted)

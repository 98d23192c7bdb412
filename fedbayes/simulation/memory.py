"""Memory that a step frees is kept for the next one."""

import ctypes
import sys

# From glibc's malloc.h; the largest threshold that it takes is 32 MB.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_FROM_HEAP, _NEVER_TRIM = 32 * 2**20, 2**31 - 1


def keep_freed_memory() -> bool:
    """Let this process keep what it frees instead of handing it back to the system.

    A step's activations are hundreds of megabytes that come and go. By default each comes as fresh zeroed pages, which
    costs about as much as computing what goes into them. The process stays as large as its largest step.

    Returns:
        Whether it could be done: on Linux with glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)  # absent from other C libraries
    if set_option is None:
        return False
    wanted = ((_M_MMAP_THRESHOLD, _LARGEST_FROM_HEAP), (_M_TRIM_THRESHOLD, _NEVER_TRIM))
    return all(set_option(option, value) == 1 for option, value in wanted)

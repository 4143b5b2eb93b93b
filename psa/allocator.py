"""Memory of tensors that come and go with every step: kept by the process instead of handed back to the kernel."""

import ctypes
import os
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # mallopt's numbers, from malloc.h


def keep_freed_memory(largest: int = 1 << 28) -> bool:
    """Let glibc keep what is freed, for the next tensor of that size; the process stays as large as it once was.

    By default a freed tensor of some MB goes back to the kernel, and the next one is mapped and zeroed page by page:
    half the time of a small E/M step, or nothing, as the heap happens to lie (docs/performance.md).

    Args:
        largest: Bytes; larger tensors still come from the kernel and go back to it.

    Returns:
        Whether it was done: not where the C library is another, or MALLOC_ variables say what its user wants.
    """
    if sys.platform != "linux" or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    settings = {_MMAP_THRESHOLD: largest, _TRIM_THRESHOLD: (1 << 31) - 1, _TOP_PAD: 1 << 26}
    taken = [mallopt(name, value) for name, value in settings.items()]
    return all(taken)

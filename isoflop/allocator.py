"""Makes the C library's allocator keep freed memory in the process.

Every training step allocates and frees the same large blocks. By default glibc maps a new region for a large block
(above 128 kB at first, above 32 MB always) and returns it to the system when it is freed, and also the top of its heap;
the kernel then has to find, zero and map every page again in each step.

This can be called at any time, before or after torch is imported; it applies to later allocations.
"""

import ctypes
import os

# mallopt's parameters, from glibc's malloc.h
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD, MMAP_MAX = -1, -2, -3, -4
MOST = 2**31 - 1  # bytes; mallopt takes an int
PAD = 2**26  # the least number of bytes by which the heap grows
VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_")


def keep_freed_memory() -> bool:
    """Make glibc keep freed memory. The process then holds its peak memory, which it needs again a step later.

    Nothing changes if the user has configured glibc (MALLOC_..._ or GLIBC_TUNABLES in the environment), or if the C
    library is not glibc. A preloaded allocator is not affected.

    Returns:
        Whether glibc accepted the settings.
    """
    if any(name in os.environ for name in VARIABLES) or "malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    try:
        library = ctypes.CDLL(None)
        mallopt, _ = library.mallopt, library.gnu_get_libc_version
    except (OSError, AttributeError, TypeError):
        return False
    if not mallopt(MMAP_THRESHOLD, MOST):  # glibc before 2.35 accepts at most 32 MB, but can be told never to map
        mallopt(MMAP_MAX, 0)
    return bool(mallopt(TRIM_THRESHOLD, MOST)) and bool(mallopt(TOP_PAD, PAD))

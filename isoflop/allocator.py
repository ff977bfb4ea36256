"""Memory that is freed stays in the process: what the C library's allocator is told before a run.

A training step allocates and frees the same large blocks each time. By default glibc maps a fresh region for a large
block (above 128 kB at first, above 32 MB always) and gives it back when it is freed, and the top of its heap too; the
kernel then has to find, zero and map every page anew in each step.

This may be called at any time, before or after torch is imported; it holds for what is allocated from then on.
"""

import ctypes
import os

# mallopt's parameters, from glibc's malloc.h
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD, MMAP_MAX = -1, -2, -3, -4
MOST = 2**31 - 1  # bytes; mallopt takes an int
PAD = 2**26  # bytes by which the heap grows at least
VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_")


def keep_freed_memory() -> bool:
    """Tell glibc to keep what is freed. A process then holds what it held at its worst moment, which is what it needs
    again a step later.

    Where the user has told glibc otherwise (MALLOC_..._ or GLIBC_TUNABLES in the environment) nothing is changed, nor
    where the C library is not glibc. Another allocator that was preloaded does not mind.

    Returns:
        Whether glibc took it.
    """
    if any(name in os.environ for name in VARIABLES) or "malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    try:
        library = ctypes.CDLL(None)
        mallopt, _ = library.mallopt, library.gnu_get_libc_version
    except (OSError, AttributeError, TypeError):
        return False
    if not mallopt(MMAP_THRESHOLD, MOST):  # glibc before 2.35 takes 32 MB at most, but can be told never to map
        mallopt(MMAP_MAX, 0)
    return bool(mallopt(TRIM_THRESHOLD, MOST)) and bool(mallopt(TOP_PAD, PAD))

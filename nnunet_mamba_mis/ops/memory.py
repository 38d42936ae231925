"""How the process's allocator treats freed memory."""

from __future__ import annotations

import ctypes
import functools
import os

_VARIABLES = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


@functools.cache
def keep_freed_memory() -> None:
    """Let glibc's malloc keep freed tensors for the next ones, instead of returning them to the system.

    Otherwise every tensor above 32 MiB is fresh memory, which the system has to zero page by page: at 1024 × 1024
    pixels that is two fifths of the time of inference. The process stays as large as it has been. Does nothing if one
    of malloc's environment variables is set, and without glibc. Trainers call it where nnU-Net builds a network.
    """
    if any(name in os.environ for name in _VARIABLES) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # not glibc; Windows has no library without a name
        return
    # an old glibc refuses a threshold above 32 MiB; setting the other alone would do harm
    if mallopt(_M_MMAP_THRESHOLD, 2**30):
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)

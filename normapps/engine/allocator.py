"""Freed memory that the process keeps for its next batch.

The C library of Linux (glibc) gives every large block back to the system when it is freed, and a
network's activations are such blocks: each batch then pays for pages that the last one had in its
hands. Where a page fault is dear (virtual machines, sandboxes) that is most of the time on a CPU;
`benchmarks/allocator.py` prints how much. Loads no torch.
"""

from __future__ import annotations

import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of mallopt(3), malloc.h
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, until it ends; say whether it does.

    Results do not change. The process holds its peak until its end, which is why a library call
    never does this by itself and a command that runs batches does. Elsewhere than on glibc, and
    where the user tunes malloc by the environment (`MALLOC_…`, `GLIBC_TUNABLES`), nothing happens.
    """
    if not sys.platform.startswith("linux") or _is_tuned():
        return False
    try:
        tune = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(tune(_MMAP_MAX, 0)) and bool(tune(_TRIM_THRESHOLD, _NEVER))


def _is_tuned() -> bool:
    return any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)

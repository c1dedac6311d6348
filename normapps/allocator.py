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
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # of mallopt(3), malloc.h
_NEVER = 2**31 - 1
_USUAL = ((_MMAP_THRESHOLD, 32 << 20), (_TRIM_THRESHOLD, 64 << 20), (_MMAP_MAX, 65536))
"""What glibc's own moving thresholds come to once a process has freed a block of 32 MiB."""


class _Holders:
    """How many there are who want freed memory kept; the allocator is one for the process."""

    def __init__(self) -> None:
        self.lock, self.count = threading.Lock(), 0


_holders = _Holders()


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, until it ends; say whether it does.

    Results do not change. The process holds its peak until its end, which is why a library call
    never does this by itself and a command that runs batches does. Elsewhere than on glibc, and
    where the user tunes malloc by the environment (`MALLOC_…`, `GLIBC_TUNABLES`), nothing happens.
    """
    return _hold(_glibc())


def keep_little() -> bool:
    """Let this process keep up to 64 MiB of what it frees, until it ends; say whether it does.

    For library calls that are made again and again and work on blocks of a few megabytes. glibc
    comes to these very thresholds by itself, but only when a process frees a larger block; until
    then how long such a call takes depends on what ran before it. As `keep_freed_memory` else.
    """
    library = _glibc()
    if library is None:
        return False
    with _holders.lock:
        return _holders.count > 0 or _set_usual(library)


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Do so for the time of a `with` block, and give back at its end what is free then.

    For library calls that run many batches on a CPU. The block's end changes nothing where
    another one, or `keep_freed_memory`, still wants it kept.
    """
    library = _glibc()
    holds = _hold(library)
    try:
        yield
    finally:
        if holds:
            _release(library)


def _hold(library: Any) -> bool:
    if library is None:
        return False
    with _holders.lock:
        kept = bool(library.mallopt(_MMAP_MAX, 0))
        kept = bool(library.mallopt(_TRIM_THRESHOLD, _NEVER)) and kept
        _holders.count += kept
    return kept


def _release(library: Any) -> None:
    with _holders.lock:
        _holders.count -= 1
        if _holders.count == 0:
            _set_usual(library)
            library.malloc_trim(0)


def _set_usual(library: Any) -> bool:
    done = [library.mallopt(name, value) for name, value in _USUAL]
    return all(done)


def _glibc() -> Any:
    """Return the C library, if it is one that can be told and is not told by the user."""
    if not sys.platform.startswith("linux") or _is_tuned():
        return None
    try:
        library = ctypes.CDLL(None)
        return library if library.mallopt and library.malloc_trim else None
    except (OSError, AttributeError):  # another C library
        return None


def _is_tuned() -> bool:
    return any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)

"""A full disk, or too little memory, told in one line."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..engine.loop import CHECKPOINT
from ..engine.run import has_checkpoint
from ..errors import InputError

_NO_MEMORY = re.compile("out of memory|allocate memory|not enough memory", re.IGNORECASE)


@contextmanager
def room(folder: Path, command: str) -> Iterator[None]:
    """Tell of a full disk or too little memory in one line, and how the run goes on.

    Args:
        folder: the run's.
        command: that trains, such as `gan train`.

    Raises:
        InputError: the disk was full within the block, or the memory of the device too small.
    """
    try:
        yield
    except Exception as error:
        if is_no_memory(error):
            raise InputError(
                f"{folder}: out of memory; begin another run with a smaller --batch-size, --size "
                "or --width"
            ) from error
        is_full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if not is_full and "os error 28" not in str(error):  # how safetensors tells of it
            raise
        then = "begin again"
        if has_checkpoint(folder / CHECKPOINT):
            then = (
                f"`normapps {command} --resume -o {folder}` goes on from the last checkpoint, "
                "which is whole"
            )
        raise InputError(f"{folder}: the disk is full; make room, then {then}") from error


def is_no_memory(error: Exception) -> bool:
    """Whether an error says that memory is too small; torch raises a `RuntimeError` for it."""
    is_told = isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)) is not None
    return is_told or isinstance(error, MemoryError)

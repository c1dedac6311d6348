"""A full disk, told in one line."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import InputError


@contextmanager
def room(folder: Path, command: str) -> Iterator[None]:
    """Tell of a disk that is full in one line, and how the run goes on.

    Args:
        folder: the run's.
        command: that trains, such as `gan train`.

    Raises:
        InputError: the disk was full within the block.
    """
    try:
        yield
    except Exception as error:
        is_full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if not is_full and "os error 28" not in str(error):  # how safetensors tells of it
            raise
        raise InputError(
            f"{folder}: the disk is full; make room, then `normapps {command} --resume -o {folder}`"
            " goes on from the last checkpoint, which is whole"
        ) from error

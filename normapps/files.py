"""Writing files so that nothing is ever lost: temporary name, then rename."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import InputError


@contextmanager
def atomic_path(path: str | os.PathLike[str], *, overwrite: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path` that becomes `path` when the block succeeds.

    Parents are made; on an error the temporary file is removed and `path` is as it was.

    Raises:
        InputError: `path` exists and `overwrite` is False, or it is a folder, or its parent
            cannot be written.
    """
    target = Path(path)
    _check_target(target, overwrite)
    handle, name = tempfile.mkstemp(
        dir=target.parent, prefix=f".{target.stem[:40]}.", suffix=target.suffix
    )
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _publish(temporary, target, overwrite)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def _check_target(target: Path, overwrite: bool) -> None:
    if target.is_dir():
        raise InputError(f"{target}: is a folder, not a file to write")
    if target.exists() and not overwrite:
        raise InputError(f"{target}: exists already; --overwrite replaces it")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{target.parent}: cannot be made ({error.strerror})") from error
    if not os.access(target.parent, os.W_OK):
        raise InputError(f"{target.parent}: is not writable")


def _publish(temporary: Path, target: Path, overwrite: bool) -> None:
    umask = os.umask(0)
    os.umask(umask)
    temporary.chmod(0o666 & ~umask)
    if overwrite:
        temporary.replace(target)
        return
    try:
        os.link(temporary, target)
    except FileExistsError as error:
        raise InputError(f"{target}: exists already; --overwrite replaces it") from error
    except OSError:  # a file system without hard links
        temporary.replace(target)


def write_text(path: str | os.PathLike[str], text: str, *, overwrite: bool = True) -> None:
    """Write a UTF-8 text file atomically."""
    with atomic_path(path, overwrite=overwrite) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sha256(path: str | os.PathLike[str]) -> str:
    """Return the file's SHA-256 as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

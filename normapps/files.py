"""Writing files so that nothing is ever lost: temporary name, then rename."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import InputError


@contextmanager
def atomic_path(path: str | os.PathLike[str], *, overwrite: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path` that becomes `path` when the block succeeds.

    The temporary file has `path`'s suffix. Parents are made; a symbolic link is followed; a file
    that is replaced keeps its permissions, a new one gets those of the umask. On any error,
    interrupt included, the temporary file is removed and `path` is as it was.

    Raises:
        InputError: `path` exists and `overwrite` is False (also when it comes to exist during the
            block), or it is a folder or device, or its folder cannot be made or written.
    """
    # beside the file a link points to: a rename would put the file in the link's place
    target = Path(os.path.realpath(path))
    _check_target(path, target, overwrite)
    # only the start of the name: the longest one allowed has no room for the rest
    temporary = target.with_name(f".{target.stem[:40]}.{os.urandom(6).hex()}{target.suffix}")
    try:
        temporary.touch(exist_ok=False)
        mode = (target if target.exists() else temporary).stat().st_mode & 0o777
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from error
    try:
        yield temporary
        temporary.chmod(mode)  # again: the block may have put a file of its own there
        if overwrite:
            temporary.replace(target)
        else:
            _publish_new(path, temporary, target)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def check_writable(path: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Find out, before long work, whether `atomic_path` would take a path; makes its folder.

    Raises:
        InputError: as `atomic_path` would.
    """
    _check_target(path, Path(os.path.realpath(path)), overwrite)


def check_parent(path: str | os.PathLike[str]) -> None:
    """Find out, before long work, whether something could be made at a path; makes nothing.

    Raises:
        InputError: the folder that would hold it, or the first of its parents that is there, is a
            file or may not be written to.
    """
    real = Path(os.path.realpath(path))
    near = next(parent for parent in real.parents if parent.exists())
    if not near.is_dir():
        raise InputError(f"{path}: cannot be made, {near} is a file; name another place")
    if not os.access(near, os.W_OK | os.X_OK):
        raise InputError(f"{path}: cannot be made, {near} is not writable; name another place")


def check_folder(path: str | os.PathLike[str]) -> None:
    """Find out, before long work, whether a path is a folder to write into, or can become one.

    Raises:
        InputError: it is a file, cannot be made, or may not be written to.
    """
    if Path(path).is_dir():
        if not os.access(path, os.W_OK | os.X_OK):
            raise InputError(
                f"{path}: may not be written to; change its permissions or name another folder"
            )
        return
    if Path(path).exists():
        raise InputError(f"{path}: is a file, not a folder to write to")
    check_parent(path)


def _check_target(path: str | os.PathLike[str], target: Path, overwrite: bool) -> None:
    if target.is_dir():
        raise InputError(f"{path}: is a folder, not a file to write")
    if target.exists() and not target.is_file():
        raise InputError(f"{path}: is a device or pipe; give a file to write")
    if target.exists() and not overwrite:
        raise _exists(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{target.parent}: cannot be made ({error.strerror})") from error


def _publish_new(path: str | os.PathLike[str], temporary: Path, target: Path) -> None:
    """Give the temporary file its name unless another process was quicker."""
    try:
        os.link(temporary, target)
    except FileExistsError as error:
        raise _exists(path) from error
    except OSError as error:  # a file system without hard links
        if target.exists():
            raise _exists(path) from error
        temporary.replace(target)


def _exists(path: str | os.PathLike[str]) -> InputError:
    return InputError(f"{path}: exists already; --overwrite replaces it")


def write_text(path: str | os.PathLike[str], text: str, *, overwrite: bool = True) -> None:
    """Write a UTF-8 text file as `atomic_path` does; line ends stay as they are in `text`."""
    with atomic_path(path, overwrite=overwrite) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def sha256(path: str | os.PathLike[str]) -> str:
    """Return the file's SHA-256 as 64 hexadecimal digits.

    Raises:
        OSError: the file is missing or cannot be read.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

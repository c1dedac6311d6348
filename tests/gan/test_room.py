"""What a machine lacks, in one line that says what to do."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from normapps.errors import InputError
from normapps.gan.room import room

FULL = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EDQUOT, "Disk quota exceeded"),
    RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
]


@pytest.mark.parametrize("error", FULL, ids=("device", "quota", "safetensors"))
@pytest.mark.parametrize("has_checkpoint", [False, True])
def test_a_full_disk(tmp_path: Path, error: Exception, has_checkpoint: bool) -> None:
    if has_checkpoint:
        (tmp_path / "checkpoint").mkdir()
        (tmp_path / "checkpoint" / "latest.safetensors").touch()
    then = f"`normapps gan train --resume -o {tmp_path}` goes on" if has_checkpoint else "begin aga"
    wanted = pytest.raises(InputError, match="the disk is full; make room, then ")
    with wanted as found, room(tmp_path, "gan train"):
        raise error
    assert then in str(found.value)


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("CUDA out of memory."), RuntimeError("can't allocate memory: 12")],
)
def test_too_little_memory(tmp_path: Path, error: Exception) -> None:
    wanted = pytest.raises(InputError, match=r"out of memory; .* --batch-size")
    with wanted, room(tmp_path, "gan train"):
        raise error


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes"), PermissionError(errno.EACCES, "denied"), KeyboardInterrupt()]
)
def test_anything_else_is_left_as_it_is(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)) as found, room(tmp_path, "gan train"):
        raise error
    assert found.value is error

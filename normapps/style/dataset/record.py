"""What a job leaves beside its results, by which it is resumed: options, manifest, failures.

A picture is finished when its file stands under its name and a line of a manifest of the same
options says so; the line is written after the file, so that what was in work when a job was
killed is made again. Of a line, 8 bytes are kept in memory.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from array import array
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ...errors import InputError, NormappsError, UsageError
from ...files import check_folder, write_text
from . import draw
from .tree import PREFIX

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class Outlet:
    """Puts files under their names in one step, from a folder that readers do not look into.

    Args:
        out: the folder of the results.
        part: the shard, (number, of how many).
    """

    def __init__(self, out: Path, part: tuple[int, int]) -> None:
        self._out = out
        self.staging: Path = out / f".{PREFIX}{_part(part)}partial"

    def write(self, name: str, data: bytes) -> None:
        """Write a file, whatever stood there.

        Raises:
            InputError: it cannot be written.
            NormappsError: no file can be, the disk is full.
        """
        self._put(name, lambda temporary: temporary.write_bytes(data))

    def copy(self, source: Path, name: str) -> None:
        """Copy a file with its times and permissions, whatever stood there; errors as `write`."""
        self._put(name, lambda temporary: _copy(source, temporary))

    def _put(self, name: str, fill: Any) -> None:
        target = self._out / name
        temporary = self.staging / os.urandom(8).hex()
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            fill(temporary)
            temporary.replace(target)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            if error.errno in _FULL:
                raise NormappsError(  # no InputError: those leave one picture out and go on
                    f"{target}: {error.strerror}; make room, and the same command goes on"
                ) from error
            raise InputError(f"{target}: cannot be written ({error.strerror})") from error


def _copy(source: Path, target: Path) -> None:
    try:
        shutil.copy2(source, target)
    except OSError as error:
        if error.filename == os.fspath(source) and error.filename2 is None:
            raise InputError(
                f"{source}: cannot be read ({error.strerror}); mend or remove it"
            ) from error
        raise


class Record:
    """The record of one shard in the folder of the results, from its opening to its closing.

    Args:
        out: the folder of the results; made where it is missing.
        recipe: what decides how results look; JSON values.
        part: the shard, (number, of how many).
        resume: go on with what an earlier run of the same recipe left.
        overwrite: make everything anew, whatever is there.

    Attributes:
        manifest: path of the shard's manifest.
        failures: path of the lines about what failed in this run; there only if something did.
        outlet: writes the results.

    Raises:
        UsageError: the folder holds something else, results of other options, or another process
            works on the same shard.
        InputError: the folder cannot be written, or a manifest in it is damaged.
    """

    def __init__(
        self,
        out: Path,
        recipe: Mapping[str, Any],
        part: tuple[int, int] = (1, 1),
        *,
        resume: bool = True,
        overwrite: bool = False,
    ) -> None:
        self._out, self._part = out, part
        self.job: str = f"{draw.number(json.dumps(recipe, sort_keys=True)):016x}"
        self.manifest: Path = out / f"{PREFIX}{_part(part)}manifest.jsonl"
        self.failures: Path = out / f"{PREFIX}{_part(part)}failed.txt"
        self.outlet = Outlet(out, part)
        check_folder(out)
        _check_recipe(out, recipe, resume, overwrite)
        self._lines = self._open(overwrite)
        write_text(out / f"{PREFIX}json", json.dumps(dict(recipe), indent=2) + "\n")
        self._finished = np.zeros(0, np.uint64) if overwrite else self._read()

    def is_finished(self, output: str) -> bool:
        """Whether an earlier run recorded a result, named by its path under the folder."""
        key = np.uint64(draw.number(output))
        at = int(np.searchsorted(self._finished, key))
        return at < len(self._finished) and bool(self._finished[at] == key)

    def add(self, output: str, values: Mapping[str, Any]) -> None:
        """Record a result that stands under its name: JSON values.

        Raises:
            NormappsError: the manifest cannot be written.
        """
        line = json.dumps({"output": output, **values, "job": self.job})
        try:
            self._lines.write(line.encode() + b"\n")
            self._lines.flush()
        except OSError as error:
            raise NormappsError(
                f"{self.manifest}: {error.strerror}; make room, and the same command goes on"
            ) from error

    def fail(self, line: str) -> None:
        """Add a line about what failed to the file of this run's failures."""
        with self.failures.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(" ".join(line.splitlines()) + "\n")  # a file's name may hold a line's end

    def close(self) -> None:
        """Let go of the shard; the folder of unfinished files goes, too."""
        self._lines.close()
        shutil.rmtree(self.outlet.staging, ignore_errors=True)

    def _open(self, overwrite: bool) -> BinaryIO:
        """Take the shard, clear away what a killed run left, and cut a torn last line off."""
        try:
            self._out.mkdir(parents=True, exist_ok=True)
            file = self.manifest.open("ab+")
            _lock(file, self.manifest)
            shutil.rmtree(self.outlet.staging, ignore_errors=True)
            self.outlet.staging.mkdir()
            self.failures.unlink(missing_ok=True)
            if overwrite:
                file.truncate(0)
                _remove_other_parts(self._out, self._part)
            _cut_torn(file)
        except OSError as error:
            raise InputError(f"{self._out}: cannot be written ({error.strerror})") from error
        return file

    def _read(self) -> np.ndarray:
        keys = array("Q")
        for entry in read_manifests(self._out):
            if entry.get("job") == self.job:
                keys.append(draw.number(entry["output"]))
        return np.sort(np.frombuffer(keys, np.uint64)) if keys else np.zeros(0, np.uint64)


def read_manifests(out: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """Yield every line of the manifests of all shards; of several about an output the last counts.

    Yields:
        `output` and `source` (paths under OUT and DIR), `style`, `alpha`, `width`, `height`,
        `source_sha256`, and `job`: which options.

    Raises:
        InputError: a line that is no such entry.
    """
    for path in sorted(Path(out).glob(f"{PREFIX}*manifest.jsonl")):
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.endswith(b"\n"):  # a torn one is being written, or was by a killed job
                    yield _entry(line, path, number)


def _entry(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        entry = dict(json.loads(line))
        entry["output"] = str(entry["output"])
    except (ValueError, TypeError, LookupError) as error:
        raise InputError(
            f"{path}: line {number} is not an entry about an output; remove the line"
        ) from error
    return entry


def _part(part: tuple[int, int]) -> str:
    """How a shard's files are told apart: nothing for the only one."""
    return "" if part == (1, 1) else f"{part[0]}-of-{part[1]}."


def _check_recipe(out: Path, recipe: Mapping[str, Any], resume: bool, overwrite: bool) -> None:
    path = out / f"{PREFIX}json"
    if overwrite:
        return
    if not path.exists():
        if out.is_dir() and any(PREFIX not in each.name for each in out.iterdir()):
            raise UsageError(
                f"{out}: holds files, and no job of stylize-dataset made them; name an empty "
                "folder, or --overwrite replaces what has a result's name"
            )
        return
    if not resume:
        raise UsageError(f"{out}: holds the results of a job; without --no-resume it goes on")
    before = _read_recipe(path)
    for key in (*recipe, *before):
        if recipe.get(key) != before.get(key):
            raise UsageError(
                f"{out}: its results have {key} {before.get(key)}, not {recipe.get(key)}; "
                "name another folder, or --overwrite makes them anew"
            )


def _read_recipe(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"{path}: is not the record of a job; --overwrite makes everything anew"
        ) from error


def _lock(file: BinaryIO, path: Path) -> None:
    """Keep other processes off the shard; the system lets go of the lock however we end."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UsageError(
            f"{path}: another process works on this shard; wait for it, or give another --shard"
        ) from error
    except OSError:  # a file system without locks
        return


def _cut_torn(file: BinaryIO) -> None:
    """Cut off what follows the last line's end."""
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - 65536)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            file.truncate(start + found + 1)
            return
        end = start
    file.truncate(0)


def _remove_other_parts(out: Path, part: tuple[int, int]) -> None:
    """Who makes everything anew alone needs no record of shards."""
    if part == (1, 1):
        for path in out.glob(f"{PREFIX}*-of-*.*"):
            path.unlink()

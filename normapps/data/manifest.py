"""`manifest.jsonl`: what a folder job made, of what, and how, one JSON object an output.

A line is appended as soon as its picture is there, so that a job killed at any moment has lost
nothing; of several lines about one output the last counts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import sha256, write_text
from .inputs import Input

NAME = "manifest.jsonl"


class Manifest:
    """The manifest of one folder; entries are found by output, relative to the folder.

    Args:
        folder: of the outputs; nothing is written there before the first entry.

    Raises:
        InputError: the folder has a `manifest.jsonl` that is something else, or is unreadable.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._folder = Path(folder)
        self.path = self._folder / NAME
        self._lines: dict[str, str] = {}
        self._superseded = self._torn = False
        self._load()

    def __len__(self) -> int:
        return len(self._lines)

    def get(self, output: str | os.PathLike[str]) -> dict[str, Any] | None:
        """Return the last entry about a file of the folder, or None."""
        line = self._lines.get(self._key(output))
        return None if line is None else dict(json.loads(line))

    def made(self, path: str | os.PathLike[str]) -> bool:
        """Whether an earlier job made a file, whatever path leads to it."""
        entry = self.get(path) if self._lines else None
        return entry is not None and entry.get("status") == "done"

    def add(self, output: str | os.PathLike[str], values: Mapping[str, Any]) -> None:
        """Append an entry about a file of the folder: JSON values by name.

        Raises:
            InputError: the folder cannot be written.
        """
        if self._torn:
            self._rewrite()
        key = self._key(output)
        line = json.dumps({"output": key} | dict(values))
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            # One write a line, so that jobs that share a folder do not mix theirs.
            with self.path.open("ab") as file:
                file.write(line.encode() + b"\n")
        except OSError as error:
            self._torn = True
            raise InputError(f"{self.path}: cannot be written ({error.strerror})") from error
        self._superseded |= key in self._lines
        self._lines[key] = line

    def close(self) -> None:
        """Where the file has several lines about an output, rewrite it with the last, atomically.

        Raises:
            InputError: the folder cannot be written.
        """
        if self._superseded or self._torn:
            self._rewrite()

    def _rewrite(self) -> None:
        self._load()  # again, because another job may have added to it
        write_text(self.path, "".join(line + "\n" for line in self._lines.values()))
        self._superseded = self._torn = False

    def _load(self) -> None:
        *lines, rest = _read(self.path).split(b"\n")
        self._lines = {}
        for number, line in enumerate(lines, 1):
            self._lines[self._output(line, number)] = line.decode()
        self._superseded = len(lines) > len(self._lines)
        self._torn = bool(rest)  # what a job wrote last when it was killed or the disk was full

    def _output(self, line: bytes, number: int) -> str:
        try:
            return str(json.loads(line.decode())["output"])
        except (ValueError, TypeError, LookupError) as error:
            raise InputError(
                f"{self.path}: line {number} is not an entry about an output; move the file away"
            ) from error

    def _key(self, output: str | os.PathLike[str]) -> str:
        folder, name = os.path.split(output)
        place = os.path.relpath(os.path.realpath(folder), os.path.realpath(self._folder))
        return Path(place, name).as_posix()


def without_made(
    inputs: Sequence[Input], manifest: Manifest, arguments: Sequence[str]
) -> list[Input]:
    """Leave out what an earlier job made in the output folder, unless it is named itself.

    Args:
        inputs: what `find_inputs` returned.
        manifest: of the output folder.
        arguments: what `find_inputs` was given.

    Raises:
        InputError: nothing is left.
    """
    named = {os.path.abspath(each) for each in arguments}
    left = [
        item
        for item in inputs
        if item.path is None or os.path.abspath(item.path) in named or not manifest.made(item.path)
    ]
    if not left:
        raise InputError(f"{', '.join(arguments)}: only results of an earlier job are there")
    return left


def identify(path: Path) -> dict[str, Any]:
    """Return what tells later whether a file is still the same: size, time and SHA-256.

    Of what is no file, such as a pipe, nothing can be said: an empty dict, which nothing equals.
    """
    if not path.is_file():
        return {}
    facts = path.stat()
    return {"size": facts.st_size, "mtime_ns": facts.st_mtime_ns, "sha256": sha256(path)}


def is_same(path: Path, known: Mapping[str, Any]) -> bool:
    """Whether a file is what `identify` saw; it is read only where its time has changed."""
    try:
        facts = path.stat()
        if facts.st_size != known.get("size"):
            return False
        return facts.st_mtime_ns == known.get("mtime_ns") or sha256(path) == known.get("sha256")
    except OSError:
        return False


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return b""
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); move it away") from error

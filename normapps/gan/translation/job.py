"""Translating many files: what is read, what is written where, and what an earlier run left.

One picture is in memory at a time. A folder job leaves a `manifest.jsonl`, by which the same job,
run again, keeps what is there.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...data.images import encode_image, writable_format, write_image, write_notes
from ...data.inputs import STDIO, Input, find_inputs, is_folder_output, plan_outputs
from ...data.manifest import Manifest, identify, is_same, without_made
from ...data.picture import Picture
from ...errors import InputError, NormappsError, UsageError
from ...files import check_folder
from ..room import is_no_memory
from .options import TranslateRunOptions
from .run import Translator, open_translator

_EXPECTED = (NormappsError, OSError, MemoryError, RuntimeError)


@dataclass(frozen=True)
class Translated:
    """What became of one picture.

    Attributes:
        picture: its path as it was found, `-` for standard input.
        output: the file, `-` for standard output.
        status: `done`, `kept` (an earlier run made it) or `failed`.
        width, height: of the result in pixels; 0 where it failed.
        seconds: reading, computing and writing; of a kept result those of the run that made it.
        error: why it failed, one line that names the file; otherwise empty.
        notes: what the user should know, a phrase each.
    """

    picture: str
    output: str
    status: str = "done"
    width: int = 0
    height: int = 0
    seconds: float = 0.0
    error: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Task:
    source: Input
    target: Path | None

    @property
    def result(self) -> Translated:
        """The result before anything is done."""
        names = (self.source.path, self.target)
        shown = [STDIO if path is None else str(path) for path in names]
        return Translated(shown[0], shown[1])


class TranslateJob:
    """Pictures to be translated; going through it once does the work.

    A picture that cannot be done gives a result with status `failed`, and the rest goes on. When
    the iteration ends, by an interrupt too, finished pictures and their manifest are in place.

    Args:
        options: what `normapps translate run` takes as flags.
        pictures: files, globs, folders, or `-` for standard input.
        translator: an open one; otherwise `options.model` is opened.

    Raises:
        UsageError: outputs that do not fit the results, or that are inputs themselves.
        InputError: no picture, no such model, a folder that cannot be written.
    """

    def __init__(
        self,
        options: TranslateRunOptions,
        pictures: Sequence[str],
        translator: Translator | None = None,
    ) -> None:
        self._options = options
        self._tasks, self._manifest = _plan(options.output, pictures)
        self._translator = translator or open_translator(
            options.model, back=options.back, device=options.device
        )
        self._is_size_told = False

    def __len__(self) -> int:
        return len(self._tasks)

    def __iter__(self) -> Generator[Translated, None, None]:
        try:
            for task in self._tasks:
                yield self._standing(task) or self._make(task)
        finally:
            if self._manifest is not None:
                self._manifest.close()

    def _standing(self, task: _Task) -> Translated | None:
        """The result where nothing is to be made, because the output is there."""
        target, path = task.target, task.source.path
        if target is None or self._options.overwrite or not target.exists():
            return None
        entry = self._manifest.get(target) if self._manifest is not None else None
        if entry is None or entry.get("status") != "done":
            return _failed(task, f"{target}: exists already; --overwrite replaces it")
        is_known = path is not None and is_same(path, entry.get("source", {}))
        if is_known and entry.get("recipe") == self._recipe():
            known = {key: entry.get(key, 0) for key in ("width", "height", "seconds")}
            return replace(task.result, status="kept", **known)
        return _failed(
            task,
            f"{target}: was made of another picture or with other options; --overwrite replaces it",
        )

    def _make(self, task: _Task) -> Translated:
        start = time.perf_counter()
        path = task.source.path
        try:
            source = sys.stdin.buffer if path is None else path
            known = {} if self._manifest is None or path is None else identify(path)
            made = self._translator.file(source, self._options)
            notes = self._write(made, task.target) + self._size_note(made)
            width, height = made.size
            seconds = round(time.perf_counter() - start, 4)
            result = replace(task.result, width=width, height=height, seconds=seconds, notes=notes)
            self._record(task, result, known)
        except _EXPECTED as error:
            result = _failed(task, _explain(error, task))
            if task.target is not None and not task.target.exists():
                self._record(task, result, {})
        return result

    def _write(self, made: Picture, target: Path | None) -> tuple[str, ...]:
        quality = self._options.quality
        if target is not None:
            write_image(made, target, overwrite=self._options.overwrite, quality=quality)
            return made.notes + write_notes(made, target.suffix)
        kind = made.format if made.format in ("JPEG", "WEBP") else "PNG"
        sys.stdout.buffer.write(encode_image(made, kind, quality=quality))
        sys.stdout.buffer.flush()
        return made.notes + write_notes(made, kind)

    def _size_note(self, made: Picture) -> tuple[str, ...]:
        """What holds for every large picture is said of the first of a job."""
        side = self._translator.trained_at
        if self._is_size_told or not side or max(made.size) <= 4 * side:
            return ()
        self._is_size_told = True
        return (f"trained at {side} px: a smaller --size is nearer to that (said once)",)

    def _record(self, task: _Task, result: Translated, known: dict[str, Any]) -> None:
        if self._manifest is None or task.target is None:
            return
        values = dataclasses.asdict(result)
        del values["output"]  # the manifest has it relative to its folder
        values |= {"model": self._options.model, "source": known, "recipe": self._recipe()}
        self._manifest.add(task.target, values)

    def _recipe(self) -> dict[str, Any]:
        """What decides how a result looks, but for the picture itself; JSON values."""
        chosen = {name: getattr(self._options, name) for name in ("size", "quality", "seed")}
        return chosen | {"model_sha256": self._translator.fingerprint}


def _plan(output: str, pictures: Sequence[str]) -> tuple[list[_Task], Manifest | None]:
    """Find the pictures, name the results and see that they can be written."""
    inputs = find_inputs(pictures)
    manifest = None
    if is_folder_output(output, len(inputs)):
        manifest = Manifest(output)
        inputs = without_made(inputs, manifest, pictures)
    planned = plan_outputs(inputs, [""], output, multiple=False)
    tasks = [_Task(source, target) for source, _, target in planned]
    read = {os.path.realpath(task.source.path) for task in tasks if task.source.path is not None}
    for target in (task.target for task in tasks if task.target is not None):
        try:
            writable_format(target)
        except InputError as error:
            raise UsageError(f"-o {error}") from error
        if os.path.realpath(target) in read:
            raise UsageError(f"-o {target}: is itself a picture to be read; name another output")
    first = next((task.target for task in tasks if task.target is not None), None)
    if first is not None:
        check_folder(manifest.path.parent if manifest is not None else first.parent)
    return tasks, manifest


def _failed(task: _Task, reason: str) -> Translated:
    return replace(task.result, status="failed", error=reason)


def _explain(error: Exception, task: _Task) -> str:
    """The line that says which file failed and why; what nobody expects is raised again."""
    shown = task.result
    if is_no_memory(error):
        return f"{shown.picture}: out of memory; a smaller --size needs less"
    if isinstance(error, RuntimeError):
        raise error
    reason = " ".join(str(error).split())
    is_named = reason.startswith((f"{shown.picture}: ", f"{shown.output}: "))
    return reason if is_named else f"{shown.picture}: {reason}"

"""Stylizing many files: what is read, what is written where, and what an earlier run left.

Every style is measured once and every picture read once; one picture is in memory at a time. A
folder job leaves a `manifest.jsonl`, by which the same job, run again, keeps what is there.
"""

from __future__ import annotations

import dataclasses
import re
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

from ..data.images import Picture, encode_image, read_image, write_image, write_notes
from ..data.manifest import identify, is_same
from ..errors import NormappsError
from .looks import Painter, choose_looks
from .plan import Plan, Task, plan_job
from .stylize_options import MODES, StylizeOptions

_DECIDING = ("method", "alpha", "size", "style_size", "preserve_color", "dtype", "seed", "quality")
EXPECTED = (NormappsError, OSError, MemoryError, RuntimeError)
"""What may make one result fail while the others go on."""

_NO_MEMORY = re.compile("out of memory|allocate memory|not enough memory", re.IGNORECASE)


@dataclass(frozen=True)
class PictureResult:
    """What became of one picture and style.

    Attributes:
        content: the picture's path as it was found, `-` for standard input.
        style: the style as it was given, a blend as `0.7 a.jpg + 0.3 b.jpg`.
        output: the file, `-` for standard output.
        status: `done`, `kept` (an earlier run made it) or `failed`.
        width, height: of the result in pixels; 0 where it failed.
        seconds: computing and writing, and for a picture's first style also reading; of a kept
            result those of the run that made it.
        error: why it failed, one line that names the file; otherwise empty.
        notes: what the user should know, a phrase each.
    """

    content: str
    style: str
    output: str
    status: str = "done"
    width: int = 0
    height: int = 0
    seconds: float = 0.0
    error: str = ""
    notes: tuple[str, ...] = ()


def stylize_files(
    options: StylizeOptions,
    contents: Sequence[str],
    *,
    stylizer: Painter | None = None,
    stdin: BinaryIO | None = None,
    stdout: BinaryIO | None = None,
) -> StylizeJob:
    """Prepare a job; going through the job does the work.

    Example:
        >>> for result in stylize_files(StylizeOptions(style=("a.jpg",), output="out"), ["photos"]):
        ...     print(result.output, result.status)

    Args:
        options: what `normapps stylize` takes as flags.
        contents: files, globs, folders, or `-` for standard input.
        stylizer: a loaded one of `options.runtime`; otherwise options decide which is loaded.
        stdin, stdout: for `-`; the process's own by default.

    Raises:
        UsageError: outputs that do not fit the results, or that are inputs or styles themselves.
        InputError: no picture, no such style or model, a folder that cannot be written.
    """
    plan = plan_job(options, contents)
    return StylizeJob(options, plan, stylizer or load_painter(options), stdin, stdout)


class StylizeJob:
    """Pictures to be stylized, as `stylize_files` prepared them; go through it once.

    A picture that cannot be done gives a result with status `failed`, and the rest goes on. When
    the iteration ends, by an interrupt too, finished pictures and their manifest are in place.
    """

    def __init__(
        self,
        options: StylizeOptions,
        plan: Plan,
        stylizer: Painter,
        stdin: BinaryIO | None = None,
        stdout: BinaryIO | None = None,
    ) -> None:
        self._options, self._plan, self._stylizer = options, plan, stylizer
        self._stdin, self._stdout = stdin, stdout
        self._looks = choose_looks(options, stylizer)

    def __len__(self) -> int:
        return len(self._plan.tasks)

    def __iter__(self) -> Generator[PictureResult, None, None]:
        try:
            for _, tasks in groupby(self._plan.tasks, key=lambda task: task.source):
                yield from self._do(list(tasks))
        finally:
            if self._plan.manifest:
                self._plan.manifest.close()

    def _do(self, tasks: Sequence[Task]) -> Iterator[PictureResult]:
        """All styles of one picture, which is read only if one of them is still to be made."""
        standing = [self._standing(task) for task in tasks]
        yield from (result for result in standing if result)
        missing = [task for task, result in zip(tasks, standing, strict=True) if not result]
        if not missing:
            return
        start = time.perf_counter()
        try:
            picture, identity = self._read(missing[0])
        except EXPECTED as error:
            reason = explain(error, missing[0])
            yield from (self._fail(task, reason) for task in missing)
            return
        for task in missing:
            yield self._make(task, picture, identity, start)
            start = time.perf_counter()

    def _standing(self, task: Task) -> PictureResult | None:
        """The result where nothing is to be made, because the output is there."""
        if task.target is None or self._options.overwrite or not task.target.exists():
            return None
        entry = self._plan.manifest.get(task.target) if self._plan.manifest else None
        if entry is None or entry.get("status") != "done":
            return self._result(
                task, error=f"{task.target}: exists already; --overwrite replaces it"
            )
        made_so = entry.get("recipe") == self._recipe(task)
        path = task.source.path
        if made_so and path is not None and is_same(path, entry.get("source", {})):
            known = {key: entry.get(key, 0) for key in ("width", "height", "seconds")}
            return replace(self._result(task), status="kept", **known)
        return self._result(
            task,
            error=f"{task.target}: was made of another picture or with other options; "
            "--overwrite replaces it",
        )

    def _read(self, task: Task) -> tuple[Picture, dict[str, Any]]:
        path, limit = task.source.path, self._options.max_pixels
        if path is None:
            return read_image(self._stdin or sys.stdin.buffer, max_pixels=limit), {}
        known = {} if self._plan.manifest is None else identify(path)
        return read_image(path, max_pixels=limit), known

    def _make(
        self, task: Task, picture: Picture, identity: dict[str, Any], start: float
    ) -> PictureResult:
        try:
            painted = self._paint(task, picture)
            notes = self._write(painted, task.target)
            width, height = painted.size
            seconds = round(time.perf_counter() - start, 4)
            result = replace(
                self._result(task), width=width, height=height, seconds=seconds, notes=notes
            )
            self._record(task, result, identity)
        except EXPECTED as error:
            return self._fail(task, explain(error, task))
        return result

    def _paint(self, task: Task, picture: Picture, **more: Any) -> Picture:
        """Give a picture the task's style, as the options say."""
        options = self._options
        return self._stylizer(
            picture,
            self._looks[task.style].style,
            alpha=options.alpha,
            size=options.size,
            preserve_color=options.preserve_color,
            method=options.method,
            mode=options.mode,
            detail=options.detail,
            **more,
        )

    def _write(self, painted: Picture, target: Path | None) -> tuple[str, ...]:
        quality = self._options.quality
        if target is not None:
            write_image(painted, target, overwrite=self._options.overwrite, quality=quality)
            return painted.notes + write_notes(painted, target.suffix)
        kind = painted.format if painted.format in ("JPEG", "WEBP") else "PNG"
        stdout = self._stdout or sys.stdout.buffer
        stdout.write(encode_image(painted, kind, quality=quality))
        stdout.flush()
        return painted.notes + write_notes(painted, kind)

    def _fail(self, task: Task, reason: str) -> PictureResult:
        result = self._result(task, error=reason)
        if task.target is not None and not task.target.exists():
            self._record(task, result, {})
        return result

    def _result(self, task: Task, error: str = "") -> PictureResult:
        label, status = self._looks[task.style].label, "failed" if error else "done"
        return PictureResult(task.content, label, task.output, status, error=error)

    def _record(self, task: Task, result: PictureResult, identity: dict[str, Any]) -> None:
        if self._plan.manifest is None or task.target is None:
            return
        values = dataclasses.asdict(result)
        del values["output"]  # the manifest has it relative to its folder
        values |= {"model": self._options.model, "source": identity, "recipe": self._recipe(task)}
        self._plan.manifest.add(task.target, values)

    def _recipe(self, task: Task) -> dict[str, Any]:
        """What decides how a result looks, but for the picture itself; JSON values."""
        chosen = {name: getattr(self._options, name) for name in _DECIDING}
        if self._options.detail is not None:  # which older manifests do not name
            chosen["detail"] = self._options.detail
        if self._options.runtime != "torch":  # nor this
            chosen["runtime"] = self._options.runtime
        if self._options.mode != MODES[0]:
            chosen["mode"] = self._options.mode
        # what auto stands for is the model folder's to say, and no part of its weights
        chosen["method"] = self._stylizer.method_of(self._options.method)
        parts = self._looks[task.style].parts
        return chosen | {"model_sha256": self._stylizer.fingerprint, "styles": parts}


def load_painter(options: StylizeOptions) -> Painter:
    """Load the stylizer that the options name.

    Raises:
        InputError: no such model, or it is damaged.
    """
    if options.runtime == "onnx":
        from .onnx.stylizer import OnnxStylizer

        return OnnxStylizer.load(options.model, tile=options.tile_side)
    from .stylizer import Stylizer

    return Stylizer.load(
        options.model,
        device=options.device,
        dtype=options.dtype,
        tile=options.tile_side,
        compile=options.compile,
    )


def explain(error: Exception, task: Task) -> str:
    """Return the line that says which file failed and why; what nobody expects is raised again."""
    if isinstance(error, MemoryError | RuntimeError):
        if isinstance(error, RuntimeError) and not _NO_MEMORY.search(str(error)):
            raise error
        return f"{task.content}: out of memory; a smaller --size needs less"
    reason = " ".join(str(error).split())
    names = (f"{task.content}: ", f"{task.output}: ")
    named = task.source.path is None or reason.startswith(names)
    return reason if named else f"{task.content}: {reason}"

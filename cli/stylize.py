"""`normapps stylize`: photos and paintings in, pictures out."""

from __future__ import annotations

import dataclasses
import json
import sys
import unicodedata
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Self

import typer

from normapps.errors import UsageError
from normapps.style.stylize_options import StylizeOptions

from .parameters import with_options

if TYPE_CHECKING:
    from normapps.engine.progress import BatchProgress
    from normapps.style.job import PictureResult, StylizeJob
    from normapps.style.video import ClipJob

_ROWS = 50
"""Rows of the table at most; a folder's manifest has them all."""

_HEAD = ("content", "style", "output", "size", "seconds", "notes")
_NUMBERS = ("size", "seconds")


@with_options(StylizeOptions)
def stylize(
    contents: Annotated[
        list[str],
        typer.Argument(
            metavar="CONTENT", help="Pictures or clips: files, globs, folders, - for stdin."
        ),
    ],
    options: StylizeOptions,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a line of JSON for every result.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print errors only.")] = False,
) -> None:
    """Give pictures the style of a painting.

    Every picture gets every style; with --style-weights the styles make one blend. A folder job,
    run again, keeps what it finished and does the rest; a clip goes on after its last finished
    segment. Exits with 1 if something failed, the rest being done, and with 130 if interrupted.
    """
    if as_json and options.output == "-":
        raise UsageError("--json and -o -: standard output cannot hold both; name a file")
    report = _Report(as_json, quiet, with_table=not (as_json or quiet or options.output == "-"))
    clips: list[str] = []
    try:
        from normapps.style.contents import sort_contents

        pictures, clips = sort_contents(options, contents)
        video = _clips(options, clips) if clips else None
        if pictures or not clips:
            from normapps.style.job import stylize_files

            _run(stylize_files(options, pictures), report, quiet)
        if video:
            _run_clips(video, report, quiet)
    except KeyboardInterrupt:
        report.close()
        more = "; the same command goes on with the clip" if clips else ""
        print(f"interrupted: {report.finished} finished and kept{more}", file=sys.stderr)
        raise typer.Exit(130) from None
    report.close()
    if report.failed:
        raise typer.Exit(1)


def _run(job: StylizeJob, report: _Report, quiet: bool) -> None:
    with _progress(len(job), not quiet) as progress, closing(iter(job)) as results:
        for result in results:
            report.add(result, progress)
            progress.advance(result.content)


def _clips(options: StylizeOptions, contents: Sequence[str]) -> ClipJob:
    from normapps.style.video import stylize_clips

    return stylize_clips(options, contents)


def _run_clips(job: ClipJob, report: _Report, quiet: bool) -> None:
    from normapps.engine.progress import BatchProgress

    with BatchProgress(0, enabled=not quiet) as progress, closing(iter(job)) as results:
        job.watch = progress.stage
        for result in results:
            report.add(result, progress)


def _progress(total: int, wanted: bool) -> BatchProgress | _NoProgress:
    if not wanted or total <= 1:
        return _NoProgress()
    from normapps.engine.progress import BatchProgress

    return BatchProgress(total)


class _NoProgress:
    """In place of a bar: rich alone takes as long to import as a picture to paint."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None: ...

    def print(self, line: str) -> None:
        print(line, file=sys.stderr)

    def advance(self, name: str) -> None: ...


class _Report:
    """What is printed of results: errors, notes and JSON at once, a table at the end."""

    def __init__(self, as_json: bool, quiet: bool, with_table: bool) -> None:
        self._as_json, self._quiet, self._with_table = as_json, quiet, with_table
        self._rows: list[PictureResult] = []
        self._counts: Counter[str] = Counter()
        self._seconds = 0.0
        self._error = ""

    @property
    def failed(self) -> int:
        """How many results failed."""
        return self._counts["failed"]

    @property
    def finished(self) -> int:
        """How many results are there, of this run and earlier ones."""
        return self._counts["done"] + self._counts["kept"]

    def add(self, result: PictureResult, progress: BatchProgress | _NoProgress) -> None:
        self._counts[result.status] += 1
        if result.error and result.error != self._error:  # one line for all styles of a picture
            progress.print(f"error: {result.error}")
        self._error = result.error
        if self._as_json:
            print(_json_line(result), flush=True)
        elif self._with_table:
            self._seconds += result.seconds * (result.status == "done")
            if result.status != "failed" and len(self._rows) < _ROWS:
                self._rows.append(result)
        elif result.notes and not self._quiet:
            progress.print(f"note: {result.content}: {', '.join(result.notes)}")

    def close(self) -> None:
        """Print the table, if there is to be one."""
        if self._with_table and self._rows:
            _print_table(self._rows, self.finished - len(self._rows))
        if self._with_table and self._counts.total() > 1:
            counts = ", ".join(f"{number} {status}" for status, number in self._counts.items())
            work = f"; {self._seconds:.1f} s of work" if self._counts["done"] else ""
            print(counts + work)


def _json_line(result: PictureResult) -> str:
    values = dataclasses.asdict(result)
    if not result.error:
        del values["error"]
    return json.dumps(values)


def _print_table(rows: Sequence[PictureResult], more: int) -> None:
    """Print aligned columns; rich's table, once imported, costs as much as a picture to paint."""
    lines = [_HEAD, *map(_cells, rows)]
    widths = [max(map(_columns, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        gaps = [" " * (width - _columns(cell)) for cell, width in zip(line, widths, strict=True)]
        cells = [
            gap + cell if name in _NUMBERS else cell + gap
            for name, cell, gap in zip(_HEAD, line, gaps, strict=True)
        ]
        print("  ".join(cells).rstrip())
    if more:
        print(f"… and {more} more")


def _cells(row: PictureResult) -> tuple[str, ...]:
    notes = ("kept",) * (row.status == "kept") + row.notes
    numbers = (f"{row.width}×{row.height}", f"{row.seconds:.2f}")
    texts = (row.content, row.style, row.output, *numbers, ", ".join(notes))
    return tuple(_printable(text) for text in texts)


def _printable(text: str) -> str:
    """A file's name may hold what fails to print, or moves a terminal's cursor."""
    return "".join(each if each.isprintable() else "?" for each in text)


def _columns(text: str) -> int:
    """Columns of a terminal that a text takes."""
    if text.isascii():
        return len(text)
    marks = sum(unicodedata.combining(each) > 0 for each in text)
    return len(text) - marks + sum(unicodedata.east_asian_width(each) in "WF" for each in text)

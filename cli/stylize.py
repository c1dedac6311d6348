"""`normapps stylize`: photos and paintings in, pictures out."""

from __future__ import annotations

import dataclasses
import json
import sys
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

_ROWS = 50
"""Rows of the table at most; a folder's manifest has them all."""


@with_options(StylizeOptions)
def stylize(
    contents: Annotated[
        list[str],
        typer.Argument(metavar="CONTENT", help="Pictures: files, globs, folders, - for stdin."),
    ],
    options: StylizeOptions,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a line of JSON for every result.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print errors only.")] = False,
) -> None:
    """Give pictures the style of a painting.

    Every picture gets every style; with --style-weights the styles make one blend. A folder job,
    run again, keeps what it finished and does the rest. Exits with 1 if something failed, the
    rest being done, and with 130 if interrupted.
    """
    if as_json and options.output == "-":
        raise UsageError("--json and -o -: standard output cannot hold both; name a file")
    report = _Report(as_json, quiet, with_table=not (as_json or quiet or options.output == "-"))
    try:
        from normapps.style.job import stylize_files

        _run(stylize_files(options, contents), report, quiet)
    except KeyboardInterrupt:
        report.close()
        print(f"interrupted: {report.finished} finished and kept", file=sys.stderr)
        raise typer.Exit(130) from None
    report.close()
    if report.failed:
        raise typer.Exit(1)


def _run(job: StylizeJob, report: _Report, quiet: bool) -> None:
    with _progress(len(job), not quiet) as progress, closing(iter(job)) as results:
        for result in results:
            report.add(result, progress)
            progress.advance(result.content)


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
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("content", "style", "output", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("size", justify="right")
    table.add_column("seconds", justify="right")
    table.add_column("notes")
    for row in rows:
        notes = ("kept",) * (row.status == "kept") + row.notes
        numbers = (f"{row.width}×{row.height}", f"{row.seconds:.2f}")
        cells = (row.content, row.style, row.output, *numbers, ", ".join(notes))
        table.add_row(*(Text(_printable(cell), overflow="fold") for cell in cells))
    # A file or pipe has no width: nothing is to be folded there.
    Console(width=None if sys.stdout.isatty() else 10_000).print(table)
    if more:
        print(f"… and {more} more")


def _printable(text: str) -> str:
    """A path's bytes that are no text would make printing fail."""
    return text.encode(errors="replace").decode()

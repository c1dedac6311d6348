"""`normapps translate run`: translate pictures, or draw label maps."""

from __future__ import annotations

import dataclasses
import json
import sys
from contextlib import closing, nullcontext
from typing import TYPE_CHECKING, Annotated

import typer

from normapps.errors import UsageError
from normapps.gan.translation.options import TranslateRunOptions

from .parameters import with_options

if TYPE_CHECKING:
    from normapps.engine.progress import BatchProgress
    from normapps.gan.translation.job import Translated, TranslateJob

AsJson = Annotated[bool, typer.Option("--json", help="Print a line of JSON for every result.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print errors only.")]


@with_options(TranslateRunOptions)
def run(
    pictures: Annotated[
        list[str],
        typer.Argument(
            metavar="PICTURE", help="Pictures or label maps: files, globs, folders, - for stdin."
        ),
    ],
    *,
    options: TranslateRunOptions,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Translate pictures with what a training left.

    A folder job, run again, keeps what it finished and does the rest. Exits with 1 if something
    failed, the rest being done, and with 130 if interrupted.
    """
    if as_json and options.output == "-":
        raise UsageError("--json and -o -: standard output cannot hold both; name a file")
    from normapps.gan.translation.job import TranslateJob

    done = failed = 0
    try:
        job = TranslateJob(options, pictures)
        with _progress(job, quiet) as bar, closing(iter(job)) as results:
            for result in results:
                failed += result.status == "failed"
                done += result.status != "failed"
                _show(result, options, bar, as_json, quiet)
    except KeyboardInterrupt:
        say(f"interrupted: {done} finished and kept")
        raise typer.Exit(130) from None
    if failed:
        raise typer.Exit(1)


def say(line: str) -> None:
    """Print a line to standard error."""
    print(line, file=sys.stderr, flush=True)


def _progress(job: TranslateJob, quiet: bool) -> BatchProgress | nullcontext[None]:
    if quiet or len(job) <= 1:
        return nullcontext()
    from normapps.engine.progress import BatchProgress

    return BatchProgress(len(job))


def _show(
    result: Translated,
    options: TranslateRunOptions,
    bar: BatchProgress | None,
    as_json: bool,
    quiet: bool,
) -> None:
    tell = say if bar is None else bar.print
    if result.error:
        tell(f"error: {result.error}")
    elif result.notes and not quiet:
        tell(f"note: {result.picture}: {', '.join(result.notes)}")
    if as_json:
        print(json.dumps(dataclasses.asdict(result)), flush=True)
    elif not (quiet or result.error or options.output == "-"):
        kept = "  kept" if result.status == "kept" else ""
        print(f"{result.output}  {result.width}×{result.height}  {result.seconds:.2f} s{kept}")
    if bar is not None:
        bar.advance(result.picture)

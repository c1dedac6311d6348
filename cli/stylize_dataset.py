"""`normapps stylize-dataset`: a data set in, the same data set in the style of paintings out."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections import Counter
from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import typer

from normapps.style.dataset.options import DatasetOptions

from .parameters import with_options

if TYPE_CHECKING:
    from normapps.style.dataset.job import DatasetJob


@with_options(DatasetOptions)
def stylize_dataset(
    dir: Annotated[str, typer.Argument(metavar="DIR", help="Folder of the data set.")],
    styles: Annotated[
        str,
        typer.Argument(
            metavar="STYLES", help="Folder of paintings, a painting, preset:NAME or preset:all."
        ),
    ],
    out: Annotated[str, typer.Argument(metavar="OUT", help="Folder of the results.")],
    options: DatasetOptions,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a line of JSON for every result.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print errors only.")] = False,
) -> None:
    """Stylize a data set, each picture in a drawn style.

    A hash of the picture's path draws the style.

    Tree, names and all other files are kept. Run again, killed or not, it keeps what is finished
    and does the rest; shards may run anywhere, in any order. Exits with 1 if something failed,
    the rest being done, and with 130 if interrupted.
    """
    from normapps.style.dataset.job import stylize_dataset as prepare

    counts: Counter[bool] = Counter()
    start = time.monotonic()
    try:
        job = prepare(options, dir, styles, out)
        _run(job, counts, as_json, quiet)
    except KeyboardInterrupt:
        print(f"interrupted: {counts[True]} made and kept; the same goes on", file=sys.stderr)
        raise typer.Exit(130) from None
    if not (as_json or quiet):
        _print_summary(job, counts, time.monotonic() - start)
    if counts[False]:
        raise typer.Exit(1)


def _run(job: DatasetJob, counts: Counter[bool], as_json: bool, quiet: bool) -> None:
    from normapps.engine.progress import BatchProgress

    total = max(1, job.missing)
    with BatchProgress(total, enabled=not quiet) as progress, closing(iter(job)) as results:
        for result in results:
            counts[not result.error] += 1
            if result.error:
                progress.print(f"error: {_printable(result.error)}")
            if as_json:
                print(json.dumps(dataclasses.asdict(result)), flush=True)
            progress.advance(_printable(result.output), max(total, counts.total()))


def _print_summary(job: DatasetJob, counts: Counter[bool], seconds: float) -> None:
    speed = f" ({counts[True] / seconds:.1f} a second)" if counts[True] else ""
    parts = [f"{counts[True]} made{speed}"]
    parts += [f"{job.kept} kept"] if job.kept else []
    parts += [f"{job.copied} other files copied"] if job.copied else []
    parts += [f"{counts[False]} failed, listed in {job.failures}"] if counts[False] else []
    print(", ".join(parts))
    print(f"what was made of what: {job.manifest}")


def _printable(text: str) -> str:
    """A file's name may hold what fails to print, or moves a terminal's cursor."""
    return "".join(each if each.isprintable() else "?" for each in text)

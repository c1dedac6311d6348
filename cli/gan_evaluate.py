"""`normapps gan evaluate`: scores with all that they are scores of."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from normapps.gan.evaluation.options import EvaluateOptions

from .parameters import with_options

if TYPE_CHECKING:
    from normapps.gan.evaluation.evaluate import Evaluation

Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="A run, a generator's folder or shipped name; or a folder, tar or ZIP of pictures.",
    ),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="report.json, or a folder for it and report.html."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@with_options(EvaluateOptions)
def evaluate(
    source: Source, *, options: EvaluateOptions, out: Out = None, as_json: AsJson = False
) -> None:
    """Score a generator against real pictures by a named network.

    Fréchet and kernel distance, precision, recall, density, coverage, classifier score; each beside
    what real pictures score against real ones. It is called FID under the FID's own network alone:
    --extractor inception:FILE.
    """
    from normapps.engine.progress import BatchProgress
    from normapps.gan.evaluation.evaluate import evaluate as score
    from normapps.gan.evaluation.report import check_out, numbers, write
    from normapps.measure.report import finite

    if out is not None:
        check_out(out, options.overwrite)
    with BatchProgress(0, enabled=not as_json) as bar:
        found = score(source, options, bar.print, bar.advance)
    if out is not None:
        write(out, found)
    if as_json:
        print(json.dumps(finite(numbers(found)), indent=2, ensure_ascii=False))
        return
    _show(found)
    if out is not None:
        print(out)


def _show(found: Evaluation) -> None:
    from rich.console import Console
    from rich.table import Table

    from normapps.gan.evaluation.report import headline, rows

    console = Console()
    table = Table(box=None, pad_edge=False)
    for title, side in (("score", "left"), ("drawn", "right"), ("real against real", "right")):
        table.add_column(title, justify=side)  # type: ignore[arg-type]
    for row in rows(found):
        table.add_row(*row)
    console.print(table, highlight=False)
    console.print(headline(found), style="dim", highlight=False, soft_wrap=True)
    for note in found.notes:
        print("note:", note, file=sys.stderr)

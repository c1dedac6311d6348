"""`normapps adapt evaluate`: test-time methods side by side."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from normapps.adapt.evaluate_options import EvaluateOptions
from normapps.models.options import MODEL_HELP

from .parameters import with_options

if TYPE_CHECKING:
    from rich.console import Console

    from normapps.adapt.evaluation import Evaluation
    from normapps.adapt.evaluation_report import Grid


@with_options(EvaluateOptions)
def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)],
    data: Annotated[
        str,
        typer.Argument(metavar="DATA", help="Pictures: a folder, tar, ZIP, text list or file."),
    ],
    options: EvaluateOptions,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for report.html, report.json, cells.jsonl."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare test-time methods on pictures and corruptions of them: one table, one protocol.

    Accuracy where class folders or a list label the pictures, else agreement with the model as it
    is. With -o, what is finished is kept, and the same command goes on from there.
    Exits with 1 if a picture could not be read, the rest being evaluated.
    """
    from normapps.adapt.evaluation import evaluate as compare
    from normapps.adapt.evaluation_report import evaluation_report, facts
    from normapps.engine.progress import BatchProgress
    from normapps.measure.report import finite, write_report

    bar = BatchProgress(0, enabled=not as_json)
    with bar:
        found = compare(model, data, options, out, say=bar.print, advance=bar.advance)
    if out is not None:
        write_report(out, evaluation_report(found))
    if as_json:
        advice = {"verdict": found.verdict.verdict, "reason": found.verdict.reason}
        print(json.dumps(finite(facts(found) | advice), indent=2, ensure_ascii=False))
    else:
        _show(found)
        if out is not None:
            print(out)
    for line in found.failed:
        print("error:", line, file=sys.stderr)
    if found.failed:
        raise typer.Exit(1)


def _show(found: Evaluation) -> None:
    from rich.console import Console

    from normapps.adapt.evaluation_report import explained, grids

    console = Console()
    for grid in grids(found):
        _show_grid(console, grid)
    console.print(explained(found), style="dim", highlight=False)
    verdict = f"{found.verdict.verdict}: {found.verdict.reason}"
    console.print(verdict, highlight=False, soft_wrap=True)


def _show_grid(console: Console, grid: Grid) -> None:
    """Print a grid, each domain's name on a line of its own: that is narrower than a column."""
    from rich.table import Table

    table = Table(title=grid.caption, box=None, title_justify="left")
    table.add_column(grid.columns[1], no_wrap=True)
    for title in grid.columns[2:]:
        table.add_column(title, justify="right")
    for domain, *cells in grid.rows:
        if domain:
            table.add_row(f"[bold]{domain}")
        table.add_row(f"  {cells[0]}", *cells[1:])
    console.print(table, highlight=False)
    for note in grid.notes:
        console.print(note, markup=False, highlight=False, soft_wrap=True)

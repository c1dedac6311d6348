"""`normapps norm analyze`: what normalization does in a network."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from normapps.analysis.analyze_options import AnalyzeOptions
from normapps.models.options import MODEL_HELP

from .parameters import with_options

if TYPE_CHECKING:
    from rich.console import Console

    from normapps.analysis.analyze import AnalysisReport
    from normapps.analysis.parts import Part


@with_options(AnalyzeOptions)
def analyze(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)],
    data: Annotated[
        str,
        typer.Argument(metavar="DATA", help="Pictures: a folder, tar, ZIP, text list or file."),
    ],
    options: AnalyzeOptions,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for report.html and report.json.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what normalization does in a network.

    Conditioning of each layer, propagation of activations and gradients, scale-invariant weights
    and their effective learning rates, stochasticity by batch size, the gap between training and
    inference, scales, predictiveness of a step. The network is not changed. Exits with 1 if a
    picture could not be read, the rest being looked at.
    """
    from normapps.analysis.analyze import analyze as run
    from normapps.analysis.analyze_report import facts_of
    from normapps.engine.progress import BatchProgress
    from normapps.measure.report import finite

    bar = BatchProgress(0, enabled=not as_json)
    with bar:
        report = run(model, data, options, out, say=bar.print, progress=bar.stage)
    if as_json:
        print(json.dumps(finite(facts_of(report)), indent=2))
    else:
        _show(report)
        if out is not None:
            print(out / "report.html")
    for line in report.failed:
        print("error:", line, file=sys.stderr)
    if report.failed:
        raise typer.Exit(1)


def _show(report: AnalysisReport) -> None:
    from rich.console import Console

    from normapps.analysis.parts import parts_of

    console = Console()
    for part in parts_of(report.results, report.options):
        console.print(part.title, style="bold")
        for line in part.sentences:
            console.print(line, highlight=False)
        _show_table(console, part, report.options.rows)
        console.print()
    for name, reason in report.skipped.items():
        console.print(f"{name}: {reason}", highlight=False, soft_wrap=True)
    console.print(f"{report.pictures} pictures; {report.labels}", highlight=False, soft_wrap=True)


def _show_table(console: Console, part: Part, most: int) -> None:
    """The rows that stand out, in their own order."""
    from rich.table import Table

    rows = part.table.rows
    most = most if part.table.columns[0] == "layer" else len(rows)
    order = sorted(range(len(rows)), key=lambda i: -part.salience[i])[:most]
    table = Table(box=None, padding=(0, 2, 0, 0))
    for number in part.brief:
        name = part.table.columns[number]
        table.add_column(
            name, justify="right" if number else "left", overflow="fold", no_wrap=number > 0
        )
    for index in sorted(order):
        table.add_row(*(_short(rows[index][number]) for number in part.brief))
    console.print(table)
    if len(rows) > most:
        console.print(f"and {len(rows) - most} layers that stand out less", highlight=False)


def _short(cell: str | float) -> str:
    return f"{cell:.3g}" if isinstance(cell, float) else str(cell)

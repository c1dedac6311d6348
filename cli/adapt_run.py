"""`normapps adapt run` and `adapt undo`: adapt a model to pictures and judge it; take it back."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from normapps.adapt.run_options import AdaptOptions
from normapps.models.options import MODEL_HELP

from .parameters import with_options

if TYPE_CHECKING:
    from normapps.adapt.run import AdaptReport
    from normapps.adapt.verdict import Evidence
    from normapps.measure.interval import Estimate

AsJson = Annotated[bool, typer.Option("--json", help="Print the report as JSON.")]
Model = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)]
_DISTANCES = (
    "distance of the pictures' statistics from the layer's own, in nats; halves: between two halves"
    " of the pictures"
)
_ROWS = 5
"""Layers that the table shows; the report has them all."""


@with_options(AdaptOptions)
def run(
    model: Model,
    data: Annotated[
        str,
        typer.Argument(metavar="DATA", help="Pictures: a folder, tar, ZIP, text list or file."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Model folder to write.")],
    options: AdaptOptions,
    as_json: AsJson = False,
) -> None:
    """Adapt a model to pictures, and say whether that helped.

    Writes a model folder with the adapted model, a report (report.html, report.json), and what
    `adapt undo` needs. Labels, where the data has them, only serve to judge. Exits with 1 if a
    picture could not be read, the rest being done.
    """
    from normapps.adapt.run import adapt_model
    from normapps.engine.progress import BatchProgress

    bar = BatchProgress(0, enabled=not as_json)
    with bar:
        report = adapt_model(model, data, out, options, say=bar.print, progress=bar.advance)
    if as_json:
        print((report.folder / "report.json").read_text(encoding="utf-8"), end="")
    else:
        _show(report)
        print(report.folder)
    for line in report.failed:
        print("error:", line, file=sys.stderr)
    if report.failed:
        raise typer.Exit(1)


def undo(
    folder: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", help="Model folder that `adapt run` or `mix` wrote."),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Bring back the model as it was before it was adapted, to the bit."""
    from normapps.adapt.keeping import undo as take_back

    names = take_back(folder)
    if as_json:
        print(json.dumps({"folder": str(folder), "tensors": list(names)}, indent=2))
    else:
        print(f"{len(names)} tensors are as they were before the adaptation")
        print(folder)


def _show(report: AdaptReport) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table("", "before", "after", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in _rows(report.evidence):
        table.add_row(*row)
    console.print(table)
    layers = list(report.report.numbers["distance"].items())
    if layers:
        print(_DISTANCES)
        console.print(_distances(layers))
    for note in report.notes:
        console.print(note, highlight=False, soft_wrap=True)
    verdict = f"{report.verdict.verdict}: {report.verdict.reason}"
    console.print(verdict, style="bold", highlight=False, soft_wrap=True)


def _rows(evidence: Evidence) -> list[tuple[str, ...]]:
    answers = evidence.agreement.before, evidence.agreement.after
    rows: list[tuple[str, ...]] = []
    if evidence.accuracy is not None and evidence.difference is not None:
        rows.append(("accuracy, %", *map(_percent, evidence.accuracy)))
        rows.append(("  difference", "", _percent(evidence.difference)))
    if evidence.online is not None:
        rows.append(("  while adapting", "", _percent(evidence.online)))
    rows.append(("confidence", *(f"{each.confidence:.3f}" for each in answers)))
    rows.append(("entropy, nats", *(f"{each.entropy:.3f}" for each in answers)))
    rows.append(("same class", "", f"{evidence.agreement.top1:.1%}"))
    return rows


def _percent(value: Estimate) -> str:
    return f"{100 * value.mean:.1f} ({100 * value.low:.1f} to {100 * value.high:.1f})"


def _distances(layers: list[tuple[str, dict[str, float | None]]]) -> object:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("  layer", overflow="fold")
    for name in ("before", "after", "halves"):
        table.add_column(name, justify="right")
    layers.sort(key=lambda item: -(item[1]["before"] or 0))
    for name, values in layers[:_ROWS]:
        shown = ("" if value is None else f"{value:.3g}" for value in values.values())
        table.add_row(f"  {name}", *shown)
    return table

"""`normapps norm`: the layers, conversion of a model's layers, statistics of data in a model."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from normapps.analysis.options import ConvertOptions, StatsOptions
from normapps.models.options import MODEL_HELP

from .norm_analyze import analyze
from .norm_list import AsJson, list_methods, show
from .parameters import with_options

if TYPE_CHECKING:
    from normapps.analysis.conversion import ConvertReport
    from normapps.analysis.statistics import StatsReport

app = typer.Typer(no_args_is_help=True, help="Norm layers: list, show, convert, measure, explain.")

Model = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)]

app.command("list")(list_methods)
app.command()(show)
app.command()(analyze)


@app.command()
@with_options(ConvertOptions)
def convert(
    model: Model,
    out: Annotated[Path, typer.Option("--out", "-o", help="Model folder to write.")],
    options: ConvertOptions,
    as_json: AsJson = False,
) -> None:
    """Replace the norm layers of a model.

    Scales, shifts, statistics and activations are carried over. Layers that would have nothing to
    measure on a picture of the model's size stay as they are and are named.
    """
    from normapps.analysis.conversion import convert_model

    report = convert_model(model, out, options)
    if as_json:
        print(json.dumps(_conversion_facts(report) | {"folder": str(out)}, indent=2))
    else:
        _show_conversion(report)
        print(out)


@app.command()
@with_options(StatsOptions)
def stats(
    model: Model,
    data: Annotated[
        str,
        typer.Argument(metavar="DATA", help="Pictures: a folder, tar, ZIP, text list or file."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Population to write (.safetensors).")],
    options: StatsOptions,
    as_json: AsJson = False,
) -> None:
    """Measure the statistics of pictures in a model's norm layers.

    Shows the layers that differ most from the model's own statistics and saves the new ones.
    Exits with 1 if a picture could not be read, the rest being measured.
    """
    from normapps.analysis.statistics import measure_statistics
    from normapps.engine.progress import BatchProgress

    bar = BatchProgress(0, enabled=not as_json)
    with bar:
        report = measure_statistics(
            model,
            data,
            out,
            options,
            say=bar.print,
            progress=lambda done, total: bar.advance("batches", total),
        )
    if as_json:
        print(json.dumps(_stats_facts(report) | {"file": str(out)}, indent=2))
    else:
        _show_stats(report, options.rows)
        print(out)
    for line in report.failed:
        print("error:", line, file=sys.stderr)
    if report.failed:
        raise typer.Exit(1)


def _conversion_facts(report: ConvertReport) -> dict[str, object]:
    layers = [row._asdict() for row in report.conversion.report]
    facts: dict[str, object] = {"model": report.model, "change": report.change, "layers": layers}
    return facts | ({"change_unknown": report.unknown} if report.unknown else {})


def _stats_facts(report: StatsReport) -> dict[str, object]:
    """The report as JSON has it: null where a divergence is no finite number."""
    facts = dataclasses.asdict(report)
    for shift in facts["shifts"]:
        for key in ("mean", "worst"):
            shift[key] = shift[key] if math.isfinite(shift[key]) else None
    return facts


def _show_conversion(report: ConvertReport) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(report.model, highlight=False, soft_wrap=True)
    rows = report.conversion.report
    table = Table("layers", "were", "are")
    for (before, after), count in Counter((row.before, row.after) for row in rows).items():
        table.add_row(str(count), before, after)
    console.print(table)
    for row in rows:
        if row.note:
            console.print(f"{row.name}: {row.note}", highlight=False, soft_wrap=True)
    count = report.conversion.converted
    text = f"{count} of {len(rows)} layers replaced"
    if report.change is not None:
        text += f"; outputs on noise change by {report.change:.1%}"
    if report.unknown:
        text += f"; change of the outputs not known: {report.unknown}"
    console.print(text, highlight=False)


def _show_stats(report: StatsReport, rows: int) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="symmetric KL divergence from the model's own statistics, nats")
    table.add_column("layer", overflow="fold")
    for title in ("channels", "mean", "worst", "channel"):
        table.add_column(title, justify="right")
    for shift in report.shifts[:rows]:
        numbers = (f"{shift.mean:.3g}", f"{shift.worst:.3g}", str(shift.channel))
        table.add_row(shift.layer, str(shift.channels), *numbers)
    console = Console()
    console.print(table)
    left = len(report.shifts) - rows
    if left > 0:
        console.print(f"and {left} layers that differ less", highlight=False)
    if report.unreached:
        console.print(f"not reached: {', '.join(report.unreached)}", highlight=False)
    console.print(f"{report.pictures} pictures", highlight=False)

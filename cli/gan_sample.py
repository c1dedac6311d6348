"""`normapps gan sample`, `interpolate`, `export` and `inspect`: what a trained GAN gives."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from normapps.gan.sample_options import (
    GENERATOR_HELP,
    GanExportOptions,
    InspectOptions,
    InterpolateOptions,
    SampleOptions,
)

from .parameters import with_options

if TYPE_CHECKING:
    from normapps.gan.drawing import Drawing
    from normapps.gan.export import GanExport
    from normapps.gan.inspection import Row

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Model = Annotated[str, typer.Option("--model", "-m", metavar="MODEL", help=GENERATOR_HELP)]


@with_options(SampleOptions)
def sample(
    model: Model,
    options: SampleOptions,
    out: Annotated[
        str, typer.Option("--out", "-o", help="Picture of the grid; or a folder, for a file each.")
    ] = "samples.png",
    as_json: AsJson = False,
) -> None:
    """Draw pictures: a grid, or a file each.

    A seed gives the same picture whatever is drawn beside it, but with --bn batch. A conditional
    generator draws every class that is not chosen by --class, one row a class.
    """
    from normapps.engine.progress import BatchProgress
    from normapps.gan.drawing import draw

    bar = BatchProgress(0, enabled=not as_json)
    with bar:
        drawing = draw(model, out, options, bar.advance)
    _show_drawing(drawing, as_json)


@with_options(InterpolateOptions)
def interpolate(
    model: Model,
    out: Annotated[
        str, typer.Option("--out", "-o", help="Animation (.gif, .webp), or picture of the grid.")
    ],
    options: InterpolateOptions,
    as_json: AsJson = False,
) -> None:
    """Draw the way from seed to seed: a grid or an animation.

    A conditional generator takes every class that is chosen the same way, one below the other;
    with --between classes every seed goes through the classes.
    """
    from normapps.gan.interpolate import interpolate as interpolated

    _show_drawing(interpolated(model, out, options), as_json)


@with_options(GanExportOptions)
def export(
    model: Model,
    out: Annotated[Path, typer.Option("--out", "-o", help="File .onnx or .pt2.")],
    options: GanExportOptions,
    as_json: AsJson = False,
) -> None:
    """Write a generator as ONNX or torch.export, and check it.

    It takes z, (N, latent) from N(0, I), and of a conditional generator y, (N,) class numbers; what
    it gives is in [−1, 1], a byte ⌊128·(x + 1)⌋, as the file's metadata says.
    """
    from normapps.gan.export import export_discriminator, export_generator

    write = export_discriminator if options.discriminator else export_generator
    report = write(model, out, options)
    if as_json:
        print(json.dumps(dataclasses.asdict(report), default=str))
    else:
        _show_export(report)


@with_options(InspectOptions)
def inspect(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run of `gan train`.")],
    options: InspectOptions,
    as_json: AsJson = False,
) -> None:
    """Show the norms of the discriminator's weights by layer.

    Exits with 1 if a layer's u and v are stale: more than 10 % off the norm they stand
    for. A few per cent are usual in training.
    """
    from normapps.engine.progress import BatchProgress
    from normapps.gan.inspection import inspect_run

    bar = BatchProgress(0, enabled=not as_json)
    with bar:
        rows = inspect_run(run, options, bar.advance)
    if as_json:
        print(json.dumps([_finite(row) for row in rows], indent=2))
    else:
        _show_rows(rows)
    stale = [row.layer for row in rows if row.is_stale]
    if stale:
        print(
            f"error: stale u and v in {', '.join(stale)}: `gan train --resume` mends them",
            file=sys.stderr,
        )
        raise typer.Exit(1)


def _show_drawing(drawing: Drawing, as_json: bool) -> None:
    if as_json:
        print(json.dumps(dataclasses.asdict(drawing), default=str))
        return
    if drawing.classes:
        print(f"classes: {', '.join(drawing.classes)}")
    width, height = drawing.size
    print(f"{drawing.pictures} pictures, {drawing.statistics}, {width}×{height} pixels")
    print(drawing.out)


def _show_export(report: GanExport) -> None:
    for name, shape in report.inputs.items():
        print(f"input {name}: {_words(shape)}")
    print(f"output: {_words(report.output)}")
    if report.statistics:
        kept = f"{len(report.left)} stay, their statistics in them"
        print(f"norm layers: {report.folded} folded, {kept}; {report.statistics}")
    print(f"differs from torch by {report.difference:.1e} of the largest value")
    print(f"{report.out}: {report.size / 1e6:.2f} MB")


def _words(shape: tuple[int | None, ...]) -> str:
    return "×".join("any" if size is None else str(size) for size in shape)


def _finite(row: Row) -> dict[str, object]:
    """The row as JSON has it: null where a number is not known."""
    facts = dataclasses.asdict(row)
    is_unknown = {
        key for key, value in facts.items() if isinstance(value, float) and math.isnan(value)
    }
    return {key: None if key in is_unknown else value for key, value in facts.items()}


def _show_rows(rows: list[Row]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("layer", no_wrap=True)
    table.add_column("by", no_wrap=True)
    for title in ("σ by u, v", "SVD", "conv", "at", "bound", "conv/σ"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        norms = (row.estimate, row.reshaped, row.convolution)
        name = f"{row.layer} (stale)" if row.is_stale else row.layer
        table.add_row(
            name,
            row.sigma or "–",
            *map(_number, norms),
            f"{row.size}²" if row.size else "",
            _number(row.bound),
            _number(row.effective),
        )
    console = Console()
    console.print(table)
    console.print(
        "by: which norm the weight is divided by; σ by u, v: that norm, estimated; SVD: norm of the"
        " reshaped kernel; conv: of the convolution on inputs of that size; bound: at any size;"
        " conv/σ: how much the layer still stretches",
        style="dim",
        highlight=False,
    )


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3g}"

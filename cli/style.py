"""`normapps style`: train a stylization network, encode paintings, judge, make contact sheets."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from normapps.errors import UsageError
from normapps.style.options import (
    SUFFIX,
    EncodeOptions,
    EvaluateOptions,
    SheetOptions,
    TrainOptions,
)

from .parameters import with_options

app = typer.Typer(no_args_is_help=True, help="Train, encode, judge and compare styles.")

Out = Annotated[str, typer.Option("--out", "-o", help="File to write.")]


@app.command()
@with_options(EncodeOptions)
def encode(
    painting: Annotated[str, typer.Argument(help="Picture whose style is wanted.")],
    out: Out,
    *,
    options: EncodeOptions,
) -> None:
    """Keep the style of a painting as a small file, which --style takes."""
    if Path(out).suffix != SUFFIX:
        raise UsageError(f"-o {out}: the name of a style file must end in {SUFFIX}")
    from normapps.data.images import read_image
    from normapps.style.stylizer import Stylizer

    stylizer = Stylizer.load(options.model, device=options.device, dtype="float32")
    picture = read_image(painting, max_pixels=options.max_pixels)
    style = stylizer.style(picture, size=options.size, name=options.name or Path(out).stem)
    style.save(out, overwrite=options.overwrite)
    print(out)


@app.command()
@with_options(SheetOptions)
def sheet(
    contents: Annotated[list[str], typer.Argument(help="Photos: files, globs or folders.")],
    out: Out,
    *,
    options: SheetOptions,
) -> None:
    """Draw photos in many styles on one labelled page."""
    from normapps.style.sheet import sheet_of_files

    failed = sheet_of_files(contents, out, options)
    print(out)
    for line in failed:
        print("error:", line, file=sys.stderr)
    if failed:
        raise typer.Exit(1)


@app.command()
@with_options(EvaluateOptions)
def evaluate(*, options: EvaluateOptions) -> None:
    """Judge a network on pairs of photographs and paintings."""
    from rich.console import Console
    from rich.progress import Progress

    from normapps.style.judge import judge

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("judging", total=options.pairs)
        report = judge(options, lambda done, _: bar.update(task, completed=done))
    for name, value in report.summary().items():
        print(f"{name:12} {value.mean:.4f} ± {value.margin:.4f}")
    print(f"{'pairs':12} {len(report.rows)}")


@app.command()
@with_options(TrainOptions)
def train(
    out: Annotated[Path, typer.Option("--out", "-o", help="Run folder; resumed if it has one.")],
    *,
    options: TrainOptions,
) -> None:
    """Train a stylization network, or continue where the run folder stopped."""
    from normapps.style.training import train as run

    print(run(options, out))

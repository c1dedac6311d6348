"""`normapps style`: train a stylization network, encode paintings, judge, make contact sheets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from normapps.style.options import (
    PRESET,
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
    """Keep the style of a painting as a file of a few kilobytes."""
    from normapps.data.images import read_image
    from normapps.style.stylizer import Stylizer

    stylizer = Stylizer.load(options.model, device=options.device)
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
    from normapps.data.images import read_image, write_image
    from normapps.data.inputs import find_inputs
    from normapps.style.sheet import contact_sheet
    from normapps.style.styles import list_presets
    from normapps.style.stylizer import Stylizer, resolve_style

    stylizer = Stylizer.load(options.model, device=options.device)
    specs = options.style or tuple(PRESET + name for name in list_presets())
    styles = [resolve_style(stylizer, spec) for spec in specs]
    pictures = [read_image(item.path) for item in find_inputs(contents) if item.path]
    page = contact_sheet(
        stylizer,
        pictures,
        styles,
        tile=options.tile,
        columns=options.columns,
        alpha=options.alpha,
    )
    write_image(page, out, overwrite=options.overwrite)
    print(out)


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

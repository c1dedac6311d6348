"""`normapps export`: a model as a file for another runtime."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from normapps.export_options import ExportOptions
from normapps.models.options import MODEL_HELP

from .parameters import with_options

if TYPE_CHECKING:
    from normapps.export import ExportReport

AsJson = Annotated[bool, typer.Option("--json", help="Print the report as JSON.")]


@with_options(ExportOptions)
def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="File .onnx or .pt2; of a stylizer also a folder.")
    ],
    options: ExportOptions,
    as_json: AsJson = False,
) -> None:
    """Write a model as ONNX or torch.export, and check it.

    What the pictures must go through (mean, std, size) stands in the file's metadata. A stylizer
    becomes a network of two pictures; with a folder as output, one that `normapps stylize
    --runtime onnx` takes.
    """
    from normapps.export import export_model

    report = export_model(model, out, options, say=lambda line: print(line, file=sys.stderr))
    if as_json:
        print(json.dumps(dataclasses.asdict(report), default=str))
    else:
        _show(report)


def _show(report: ExportReport) -> None:
    shapes = (_words(shape) for shape in report.inputs)
    print(f"input: {' and '.join(shapes)}")
    if report.outputs:
        print(f"output: {', '.join(_words(shape) for shape in report.outputs)}")
    if report.folded or report.left:
        print(f"norm layers: {report.folded} folded, {len(report.left)} left")
    for reason, count in Counter(reason for _, reason in report.left).items():
        print(f"  {count} left: {reason}")
    print(f"differs from torch by {report.difference:.1e} of the largest value")
    print(f"{report.out}: {report.size / 1e6:.2f} MB")


def _words(shape: tuple[int | None, ...]) -> str:
    return "×".join("any" if size is None else str(size) for size in shape)

"""`normapps quantize`: an int8 network, and whether it is worth using."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from normapps.models.options import MODEL_HELP
from normapps.quant.options import QuantizeOptions

from .parameters import with_options

if TYPE_CHECKING:
    from rich.table import Table

    from normapps.measure.interval import Estimate
    from normapps.quant.judgement import Evidence
    from normapps.quant.quantize import QuantizeReport

AsJson = Annotated[bool, typer.Option("--json", help="Print the report as JSON.")]
_LEFT = 8
"""Norm layers not folded that are named on the terminal; the report has them all."""


@with_options(QuantizeOptions)
def quantize(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")],
    options: QuantizeOptions,
    as_json: AsJson = False,
) -> None:
    """Make an int8 network, and say if it pays here.

    For ONNX Runtime: a folder with model.onnx, model.json and a report (report.html, report.json),
    which opens by normapps.OnnxModel, without torch (that of torchao has model.pt2 and opens by
    normapps.ProgramModel). No picture that calibrated judges. Exits with 1 if a
    picture of --data could not be read, the rest being done.
    """
    from normapps.engine.progress import BatchProgress
    from normapps.quant.quantize import quantize_model

    bar = BatchProgress(0, enabled=not as_json)
    with bar:
        report = quantize_model(model, out, options, say=bar.print, progress=bar.stage)
    if as_json:
        print((report.folder / "report.json").read_text(encoding="utf-8"), end="")
    else:
        _show(report)
        print(report.folder)
    for line in report.facts.failed:
        print("error:", line, file=sys.stderr)
    if report.facts.failed:
        raise typer.Exit(1)


def _show(report: QuantizeReport) -> None:
    from rich.console import Console

    console = Console()
    facts, evidence = report.facts, report.evidence
    for step in facts.steps:
        console.print(f"{step.name}: {step.said}", highlight=False, soft_wrap=True)
    for name, why in facts.left[:_LEFT]:
        console.print(f"not folded: {name} ({why})", highlight=False, soft_wrap=True)
    if len(facts.left) > _LEFT:
        console.print(f"and {len(facts.left) - _LEFT} more norms not folded", highlight=False)
    done, could = evidence.layers
    console.print(f"int8: {done} of {could} layers, ranges from {facts.range_source}")
    if evidence.stages:
        console.print(_stages(evidence))
    if evidence.latencies:
        console.print(_times(evidence))
    if facts.without_accuracy and evidence.stages:  # else the verdict says so
        text = f"accuracy is not measured: {facts.without_accuracy}"
        console.print(text, highlight=False, soft_wrap=True)
    verdict = f"{report.verdict.verdict}: {report.verdict.reason}"
    console.print(verdict, style="bold", highlight=False, soft_wrap=True)
    if facts.following:
        console.print(facts.following, highlight=False, soft_wrap=True)


def _stages(evidence: Evidence) -> Table:
    from rich.table import Table

    with_labels = evidence.stages[0].accuracy is not None
    table = Table("network", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    accuracy = ("accuracy, %", "change") if with_labels else ()
    for title in (*accuracy, "same answer, %", "logits' error"):
        table.add_column(title, justify="right", no_wrap=True)
    for each in evidence.stages:
        error = "" if each.logit_error is None else f"{each.logit_error:.3g}"
        change = "" if each.difference is None else f"{100 * each.difference.mean:+.1f}"
        known = (_percent(each.accuracy), change) if with_labels else ()
        table.add_row(each.name, *known, _percent(each.same), error)
    return table


def _times(evidence: Evidence) -> Table:
    from rich.table import Table

    from normapps.quant.latency import FLOAT, INT8, TORCH

    table = Table("batch", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for title in ("torch, ms", "ONNX Runtime, ms", "int8, ms", "times as fast"):
        table.add_column(title, justify="right", no_wrap=True)
    for each in evidence.latencies:
        times = [f"{1e3 * each.times[name].median:.2f}" for name in (TORCH, FLOAT, INT8)]
        speed = f"{each.speedup(INT8, FLOAT).median:.2f}"
        table.add_row(str(each.batch_size), *times, speed)
    return table


def _percent(value: Estimate | None) -> str:
    if value is None:
        return ""
    return f"{100 * value.mean:.1f} ({100 * value.low:.1f}–{100 * value.high:.1f})"

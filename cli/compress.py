"""`normapps compress`: from a network to a small int8 file, and whether it is worth using."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from normapps.compress.options import CompressOptions
from normapps.models.options import MODEL_HELP

from .parameters import with_options

if TYPE_CHECKING:
    from rich.table import Table

    from normapps.compress.compress import CompressReport
    from normapps.compress.judgement import Evidence
    from normapps.measure.interval import Estimate

AsJson = Annotated[bool, typer.Option("--json", help="Print the report as JSON.")]
DATA_HELP = (
    "Pictures: a folder a class, a tar or ZIP of that, or a list. Without labels nothing trains."
)


@with_options(CompressOptions)
def compress(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)],
    data: Annotated[str, typer.Argument(metavar="DATA", help=DATA_HELP)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder; an older run goes on.")],
    options: CompressOptions,
    as_json: AsJson = False,
) -> None:
    """Slim a classifier, make it int8, and say if it pays.

    Sparse training, pruning, compensation, recalibration, finetuning, int8: a folder a stage, and
    one report (report.html, report.json) on pictures that did nothing but judge. After Ctrl-C the
    same command goes on where it was. Exits with 1 if a picture could not be read, the rest being
    done.
    """
    from normapps.compress.compress import compress_model
    from normapps.engine.progress import BatchProgress

    bars = partial(BatchProgress, 0, enabled=not as_json)
    try:
        report = compress_model(model, data, out, options, say=_say, bars=bars)
    except KeyboardInterrupt:
        _say(f"{out}: stopped; the same command goes on from here")
        raise
    if as_json:
        print((report.out / "report.json").read_text(encoding="utf-8"), end="")
    else:
        _show(report)
        print(report.result)
    for line in report.facts.failed:
        print("error:", line, file=sys.stderr)
    if report.facts.failed:
        raise typer.Exit(1)


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _show(report: CompressReport) -> None:
    from rich.console import Console

    console = Console()
    console.print(_stages(report.evidence))
    if report.evidence.latencies:
        console.print(_times(report.evidence))
    verdict = f"{report.verdict.verdict}: {report.verdict.reason}"
    console.print(verdict, style="bold", highlight=False, soft_wrap=True)
    if report.facts.following:
        console.print(report.facts.following, highlight=False, soft_wrap=True)
    console.print(f"report: {report.out / 'report.html'}", highlight=False, soft_wrap=True)


def _stages(evidence: Evidence) -> Table:
    from rich.table import Table

    from normapps.measure.report import short

    with_labels = any(each.stage and each.stage.accuracy for each in evidence.networks)
    table = Table("network", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    answers = "accuracy, %" if with_labels else "same answer, %"
    for title in (answers, "parameters", "MACs", "MB"):
        table.add_column(title, justify="right", no_wrap=True)
    for each in evidence.networks:
        stage, weight = each.stage, each.footprint
        known = None if stage is None else stage.accuracy if with_labels else stage.same
        sizes = (short(weight.parameters), short(weight.macs), f"{weight.bytes / 1e6:.3g}")
        table.add_row(each.name, _percent(known), *sizes)
    return table


def _times(evidence: Evidence) -> Table:
    from rich.table import Table

    first = evidence.latencies[0]
    words = {"base": "torch", "onnxruntime": "ONNX Runtime"}
    table = Table("batch", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name in first.times:
        table.add_column(f"{words.get(name, name)}, ms", justify="right", no_wrap=True)
    for name in evidence.speedups(first):
        table.add_column(f"× {words.get(name, name)}", justify="right", no_wrap=True)
    for each in evidence.latencies:
        times = [f"{1e3 * time.median:.2f}" for time in each.times.values()]
        speeds = [f"{value:.2f}" for value in evidence.speedups(each).values()]
        table.add_row(str(each.batch_size), *times, *speeds)
    return table


def _percent(value: Estimate | None) -> str:
    if value is None:
        return ""
    return f"{100 * value.mean:.1f} ({100 * value.low:.1f}–{100 * value.high:.1f})"

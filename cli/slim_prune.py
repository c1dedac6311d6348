"""`normapps slim inspect` and `slim prune`: what could go, and a smaller model without it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from normapps.models.options import MODEL_HELP
from normapps.slim.prune_options import PruneOptions, SelectOptions

from .parameters import with_options

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from normapps.measure.interval import Estimate
    from normapps.slim.inspection import Inspection
    from normapps.slim.judgement import Evidence
    from normapps.slim.prune import PruneReport

AsJson = Annotated[bool, typer.Option("--json", help="Print the report as JSON.")]
Model = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)]
_WHOLE = 8
"""Groups left whole that are named on the terminal; the report has them all."""


@with_options(SelectOptions)
def inspect(model: Model, options: SelectOptions, as_json: AsJson = False) -> None:
    """Show what could go, at 10 to 90 % of the channels; nothing is changed or written.

    A row a ratio: what the network would have left, by the same choice as `slim prune` makes.
    """
    from normapps.slim.inspection import inspect_model

    found = inspect_model(model, options, say=_say)
    if as_json:
        print(json.dumps(found.to_json(), indent=2))
    else:
        _show_inspection(found)


@with_options(PruneOptions)
def prune(
    model: Model,
    out: Annotated[Path, typer.Option("--out", "-o", help="Model folder to write.")],
    options: PruneOptions,
    as_json: AsJson = False,
) -> None:
    """Cut the channels of the smallest scales out of a model, and say whether that helped.

    Writes a model folder with the smaller network and a report (report.html, report.json). It is
    proved that cutting a channel equals silencing it; what cannot be cut stays and is named.
    Exits with 1 if a picture of --data could not be read, the rest being done.
    """
    from normapps.engine.progress import BatchProgress
    from normapps.slim.prune import prune_model

    bar = BatchProgress(0, enabled=not as_json)
    with bar:
        report = prune_model(model, out, options, say=bar.print, progress=bar.advance)
    if as_json:
        print((report.folder / "report.json").read_text(encoding="utf-8"), end="")
    else:
        _show(report)
        print(report.folder)
    for line in report.facts.failed:
        print("error:", line, file=sys.stderr)
    if report.facts.failed:
        raise typer.Exit(1)


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _show_inspection(found: Inspection) -> None:
    from rich.console import Console
    from rich.table import Table

    from normapps.measure.report import short

    console = Console()
    channels, parameters, macs = found.size
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("ratio", justify="right")
    titles = ("gone", "threshold", "channels", "params", "MACs", "narrowest layer")
    for title in titles:
        table.add_column(title, justify="left" if title == titles[-1] else "right")
    table.add_row("", "", "", str(channels), short(parameters), short(macs), "")
    for step in found.steps:
        threshold = "" if step.threshold is None else f"{step.threshold:.4g}"
        name, left = step.narrowest
        table.add_row(
            f"{step.ratio:.0%}",
            f"{step.gone:.1%}",
            threshold,
            str(step.channels),
            f"{step.parameters / parameters:.0%}",
            f"{step.macs / max(1, macs):.0%}",
            f"{left} in {name}",
        )
    console.print(table)
    silent = f", {found.silent} of them with scales of exactly 0" if found.silent else ""
    console.print(f"{found.free} of {channels} channels could go{silent}", highlight=False)
    _show_left(console, found.left)


def _show_left(console: Console, left: tuple[tuple[str, str], ...]) -> None:
    for name, why in left[:_WHOLE]:
        console.print(f"left whole: {name} ({why})", highlight=False, soft_wrap=True)
    if len(left) > _WHOLE:
        console.print(f"and {len(left) - _WHOLE} more groups left whole", highlight=False)


def _show(report: PruneReport) -> None:
    from rich.console import Console

    console = Console()
    console.print(_sizes(report))
    if report.evidence.stages:
        console.print(_stages(report.evidence))
    for each in report.evidence.latencies:
        speed = each.speedup("slimmed")
        before, after = (1e3 * each.times[name].median for name in ("base", "slimmed"))
        text = (
            f"batch {each.batch_size}: {before:.1f} → {after:.1f} ms, {speed.median:.2f} × as fast"
        )
        console.print(text, highlight=False)
    facts = report.facts
    if facts.difference is not None:
        text = f"proof: cutting differs from silencing by {facts.difference:.2g} of the outputs"
        console.print(text, highlight=False)
    if facts.onnx is not None:
        text = f"model.onnx: differs from torch by {facts.onnx:.2g} of the outputs"
        console.print(text, highlight=False)
    _show_left(console, facts.left)
    for note in facts.choice.notes:
        console.print(note, highlight=False, soft_wrap=True)
    if facts.without_accuracy and report.evidence.stages:  # else the verdict says so
        text = f"accuracy is not measured: {facts.without_accuracy}"
        console.print(text, highlight=False, soft_wrap=True)
    verdict = f"{report.verdict.verdict}: {report.verdict.reason}"
    console.print(verdict, style="bold", highlight=False, soft_wrap=True)
    if facts.following:
        console.print(facts.following, highlight=False, soft_wrap=True)


def _sizes(report: PruneReport) -> Table:
    from rich.table import Table

    from normapps.measure.report import short

    before, after = report.evidence.before, report.evidence.after
    table = Table("", "before", "after", "gone", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    first, second = report.facts.channels
    table.add_row("channels", str(first), str(second), _gone(first, second))
    for title, name in (("parameters", "parameters"), ("MACs", "macs"), ("bytes", "bytes")):
        pair = getattr(before, name), getattr(after, name)
        table.add_row(title, *map(short, pair), _gone(*pair))
    return table


def _stages(evidence: Evidence) -> Table:
    from rich.table import Table

    with_labels = evidence.stages[0].accuracy is not None
    table = Table("stage", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    accuracy = ("accuracy, %", "change") if with_labels else ()
    for title in (*accuracy, "same answer, %", "logits' error"):
        table.add_column(title, justify="right", no_wrap=True)
    for each in evidence.stages:
        error = "" if each.logit_error is None else f"{each.logit_error:.3g}"
        change = "" if each.difference is None else f"{100 * each.difference.mean:+.1f}"
        known = (_percent(each.accuracy), change) if with_labels else ()
        table.add_row(evidence.title(each), *known, _percent(each.same), error)
    return table


def _percent(value: Estimate | None) -> str:
    if value is None:
        return ""
    return f"{100 * value.mean:.1f} ({100 * value.low:.1f}–{100 * value.high:.1f})"


def _gone(before: int, after: int) -> str:
    return f"{1 - after / before:.1%}" if before else ""

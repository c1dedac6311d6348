"""`normapps adapt train`: train on labelled sources and unlabelled targets."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from normapps.adapt.training.options import TrainOptions
from normapps.models.options import MODEL_HELP

from .parameters import with_options
from .reading import Reading, percent

if TYPE_CHECKING:
    from normapps.adapt.training.train import Trained


@with_options(TrainOptions)
def train(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Run folder; an older run goes on.")],
    *,
    options: TrainOptions,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Train on labelled sources and unlabelled targets, by norm layers that know their domain.

    The methods: source (nothing of the target), adabn, dsbn, autodial, dwt, transnorm; and ibn,
    bin, mixstyle, which need no target. The run folder gets a model folder for each target and a
    report. Ctrl-C writes a checkpoint; the same command goes on from there.
    """
    from normapps.adapt.training.job import adapt_train
    from normapps.engine.progress import BatchProgress

    def say(line: str) -> None:
        print(line, file=sys.stderr)

    bar = BatchProgress(0, enabled=not as_json)
    with bar:
        pool = Reading(bar)
        result = adapt_train(model, out, options, say=bar.print, progress=pool, ready=pool.close)
    if as_json:
        print(json.dumps(_facts(result, out), indent=2))
    else:
        _show(result, out, say)


def _facts(result: Trained, out: Path) -> dict[str, Any]:
    if result.verdict is None:
        return {"folder": str(out), "finished": False}
    accuracies = {each.name: each.accuracy.mean for each in result.scores}
    return {
        "folder": str(out),
        "finished": True,
        "models": [str(folder) for folder in result.folders],
        "accuracy": accuracies,
        "verdict": result.verdict.verdict,
        "reason": result.verdict.reason,
    }


def _show(result: Trained, out: Path, say: Any) -> None:
    if result.verdict is None:
        say(f"{out}: stopped before the end; the same command goes on")
        return
    for each in result.scores:
        lines = [f"{each.name}: {percent(each.accuracy)}"]
        if each.baseline is not None:
            lines.append(f"baseline {percent(each.baseline)}")
        print(", ".join(lines))
    print(f"{result.verdict.verdict}: {result.verdict.reason}")
    for folder in result.folders:
        print(folder)

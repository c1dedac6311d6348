"""`normapps slim train`, `slim finetune`, `slim scratch`: what comes before and after pruning."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from normapps.models.options import MODEL_HELP
from normapps.slim.train_options import FinetuneOptions, ScratchOptions, SparseOptions

from .parameters import with_options
from .reading import Reading, percent

if TYPE_CHECKING:
    from normapps.slim.fitting import Fitted

Model = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)]
Data = Annotated[str, typer.Argument(metavar="DATA", help="Labelled pictures: a folder a class.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Run folder; an older run goes on.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@with_options(SparseOptions)
def train(
    model: Model, data: Data, out: Out, *, options: SparseOptions, as_json: AsJson = False
) -> None:
    """Train with a penalty on the scales of batch norms, so that channels can go.

    Only scales whose channels can be cut out are penalized. As in the paper: `-sr --s 1e-4`.
    The run folder gets a model folder, for `slim prune`, and a report. Ctrl-C writes a
    checkpoint; the same command goes on from there.
    """
    from normapps.slim.train import slim_train

    _run(slim_train, model, data, out, options, as_json)


@with_options(FinetuneOptions)
def finetune(
    model: Model, data: Data, out: Out, *, options: FinetuneOptions, as_json: AsJson = False
) -> None:
    """Train a pruned model folder on, and say what accuracy came back.

    The run folder gets a model folder and a report. Ctrl-C writes a checkpoint; the same command
    goes on from there.
    """
    from normapps.slim.finetune import slim_finetune

    _run(slim_finetune, model, data, out, options, as_json)


@with_options(ScratchOptions)
def scratch(
    model: Model, data: Data, out: Out, *, options: ScratchOptions, as_json: AsJson = False
) -> None:
    """Train the shapes of a pruned model folder from fresh weights, and compare the two.

    The run folder gets a model folder and a report. Ctrl-C writes a checkpoint; the same command
    goes on from there.
    """
    from normapps.slim.scratch import slim_scratch

    _run(slim_scratch, model, data, out, options, as_json)


def _run(
    command: Callable[..., Fitted], model: str, data: str, out: Path, options: Any, as_json: bool
) -> None:
    from normapps.engine.progress import BatchProgress

    bar = BatchProgress(0, enabled=not as_json)
    with bar:
        read = Reading(bar)
        found = command(model, data, out, options, say=bar.print, progress=read, ready=read.close)
    if as_json:
        print(json.dumps(_facts(found, out), indent=2))
    else:
        _show(found, out)


def _facts(found: Fitted, out: Path) -> dict[str, Any]:
    facts: dict[str, Any] = {"folder": str(out), "finished": found.is_finished}
    if found.score is not None and found.verdict is not None:
        facts["model"] = str(found.folder)
        facts["accuracy"] = found.score.accuracy.mean
        facts["verdict"], facts["reason"] = found.verdict.verdict, found.verdict.reason
        if found.strength is not None:
            facts["strength"], facts["next"] = found.strength, found.then or None
    return facts


def _show(found: Fitted, out: Path) -> None:
    if not found.is_finished:
        print(f"{out}: stopped before the end; the same command goes on", file=sys.stderr)
    if found.score is None or found.verdict is None:
        return
    line = f"accuracy {percent(found.score.accuracy)}"
    if found.score.baseline is not None:
        line += f", {found.reference} {percent(found.score.baseline)}"
    print(line)
    if found.strength is not None:
        print(f"λ {found.strength:.3g} at the end")
    print(f"{found.verdict.verdict}: {found.verdict.reason}")
    if found.then:
        print(f"next: {found.then}")
    print(found.folder)

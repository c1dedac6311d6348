"""`normapps gan train`: a GAN on your pictures."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from normapps.gan.options import TrainOptions

from .parameters import typed, with_options

Out = Annotated[Path, typer.Option("--out", "-o", help="Run folder; an older run goes on.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run's saved options.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be trained, and how long.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@with_options(TrainOptions)
def train(
    ctx: typer.Context,
    out: Out,
    *,
    options: TrainOptions,
    resume: Resume = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Train a GAN with spectral normalization or its relatives.

    The run folder gets checkpoints, metrics.jsonl, grids of pictures in samples/ and, at the end or
    after --stop-after, generator/ for `gan sample`. Ctrl-C writes a checkpoint; `gan train --resume
    -o RUN` alone goes on from there.
    """
    from normapps.gan.run import open_run, resumed
    from normapps.gan.train import train as train_gan

    if resume:
        options = resumed(out, options, typed(ctx, TrainOptions))
    if dry_run:
        _show_plan(options, as_json)
        return
    train_gan(options, out, resume=resume, say=_say)
    run = open_run(out)
    if as_json:
        told = {"folder": str(out), "finished": run.is_finished, "steps": run.done}
        print(json.dumps(told | {"generator": str(out / "generator")}, indent=2))
        return
    if not run.is_finished:
        print(
            f"{out}: stopped at step {run.done} of {run.steps}; --resume goes on", file=sys.stderr
        )
    print(out / "generator")


def _show_plan(options: TrainOptions, as_json: bool) -> None:
    from normapps.gan.plan import plan

    found = plan(options, _say)
    print(json.dumps(dataclasses.asdict(found), indent=2) if as_json else "\n".join(found.lines()))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)

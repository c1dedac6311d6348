"""`normapps translate train`: learn to translate, without pairs or from label maps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from normapps.gan.translation.train_flags import TrainFlags, chosen

from .parameters import typed, with_options
from .translate_run import say


@with_options(TrainFlags)
def train(
    ctx: typer.Context,
    out: Annotated[Path, typer.Option("--out", "-o", help="Run folder; an older run goes on.")],
    *,
    options: Any,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run's saved options.")
    ] = False,
) -> None:
    """Learn to turn pictures into others, or maps into pictures.

    With --source and --target, two folders without pairs, and both ways are learned; with --maps
    and --target, pairs of a map and a picture of one name. The run folder gets checkpoints,
    metrics.jsonl, grids in samples/ and, whenever training stops, generator/. Ctrl-C writes a
    checkpoint; `translate train --resume -o RUN` alone goes on from there.
    """
    wanted = chosen(options, typed(ctx, TrainFlags), out, resume)
    try:
        made = _train(wanted, out)
    except KeyboardInterrupt:
        say(f"interrupted: {_way_on(out)}")
        raise typer.Exit(130) from None
    print(made)


def _way_on(out: Path) -> str:
    from normapps.engine.loop import CHECKPOINT
    from normapps.engine.run import has_checkpoint

    if has_checkpoint(out / CHECKPOINT):
        return f"normapps translate train --resume -o {out} goes on"
    return "before the first checkpoint; the same command begins again"


def _train(options: Any, out: Path) -> Path:
    from normapps.gan.translation.paired_options import PairedOptions

    if isinstance(options, PairedOptions):
        from normapps.gan.translation.paired_train import train_paired

        return train_paired(options, out, say=say)
    from normapps.gan.translation.train import train_unpaired

    return train_unpaired(options, out, say=say)

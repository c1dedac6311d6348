"""`normapps adapt universal`: several tasks on one network, by norm layers of their own."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from normapps.adapt.universal_options import UniversalOptions
from normapps.models.options import MODEL_HELP

from .parameters import with_options
from .reading import Reading, percent

if TYPE_CHECKING:
    from normapps.adapt.universal_job import Universal


@with_options(UniversalOptions)
def universal(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the runs, one a task.")],
    *,
    options: UniversalOptions,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Train several tasks on one frozen network, each by norm layers and a classifier of its own.

    Every task gets a plain model folder, OUT/NAME/model, and the report says what it gets right
    and how many parameters it needs for itself. Tasks are trained alone, so adding one later
    leaves the others as they are. Ctrl-C writes a checkpoint; the same command goes on from there.
    """
    from normapps.adapt.universal_job import adapt_universal
    from normapps.engine.progress import BatchProgress

    bar = BatchProgress(0, enabled=not as_json)
    with bar:
        read = Reading(bar)
        result = adapt_universal(
            model, out, options, say=bar.print, progress=read, ready=read.close
        )
    if as_json:
        print(json.dumps(_facts(result, options, out), indent=2))
    else:
        _show(result, options, out)


def _facts(result: Universal, options: UniversalOptions, out: Path) -> dict[str, object]:
    from normapps.adapt.universal_job import own_parameters

    tasks = {
        each.name: {
            "accuracy": each.score.accuracy.mean,
            "own_parameters": own_parameters(each, options),
            "model": str(each.folder),
        }
        for each in result.tasks
    }
    facts: dict[str, object] = {"folder": str(out), "finished": result.verdict is not None}
    if result.verdict is not None:
        facts |= {"verdict": result.verdict.verdict, "reason": result.verdict.reason}
    return facts | {"tasks": tasks}


def _show(result: Universal, options: UniversalOptions, out: Path) -> None:
    from normapps.adapt.universal_job import own_parameters, own_share

    if result.verdict is None:
        print(f"{out}: stopped before the end; the same command goes on", file=sys.stderr)
        return
    for each in result.tasks:
        share = f"{100 * own_share(each, options):.2g} % of the network"
        own = f"{own_parameters(each, options):,} parameters of its own ({share})"
        print(f"{each.name}: {percent(each.score.accuracy)}, {own}")
    print(f"{result.verdict.verdict}: {result.verdict.reason}")
    for each in result.tasks:
        print(each.folder)

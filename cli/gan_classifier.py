"""`normapps gan classifier`: train the network whose features a GAN's pictures are scored by."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from normapps.gan.classifier_options import ClassifierOptions

from .parameters import with_options
from .reading import percent


@with_options(ClassifierOptions)
def classifier(
    out: Annotated[Path, typer.Option("--out", "-o", help="Run folder; an older run goes on.")],
    *,
    options: ClassifierOptions,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Train a small classifier whose features score pictures.

    Give the model folder that it leaves to `gan evaluate --extractor`. Ctrl-C writes a
    checkpoint; the same command goes on from there.
    """
    from normapps.gan.classifier import gan_classifier

    def say(line: str) -> None:
        print(line, file=sys.stderr)

    found = gan_classifier(out, options, say)
    if as_json:
        shares = {} if found.accuracy is None else {"accuracy": found.accuracy.mean}
        facts = {"folder": str(out), "finished": found.is_finished, **shares}
        print(json.dumps(facts | ({"sha256": found.sha256} if found.sha256 else {}), indent=2))
        return
    if not found.is_finished:
        say(f"{out}: stopped before the end; the same command goes on")
    if found.accuracy is not None:
        print(f"accuracy {percent(found.accuracy)} on {found.accuracy.count} test pictures")
        print(found.folder)

"""`normapps translate evaluate`: how much nearer to the target pictures come."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from normapps.gan.translation.options import TranslateEvaluateOptions

from .parameters import with_options


@with_options(TranslateEvaluateOptions)
def evaluate(
    *,
    options: TranslateEvaluateOptions,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure the distance to the target, before and after.

    Fréchet and kernel distance of the features of a named network, beside what some pictures of the
    target score against the others. Called FID under the FID's own network alone.
    """
    from normapps.gan.evaluation.scores import shown
    from normapps.gan.translation.evaluate import evaluate_translation

    found = evaluate_translation(options, lambda line: print(line, file=sys.stderr, flush=True))
    numbers = found.numbers()
    if as_json:
        print(json.dumps(numbers, indent=2, ensure_ascii=False))
        return
    print(f"{'distance':10}{'before':>12}{'after':>12}{'floor':>12}")
    for name in (key for key in numbers["before"] if not key.endswith("_std")):
        cells = [shown(name, numbers[side][name]) for side in ("before", "after", "floor")]
        print(f"{name:10}" + "".join(f"{cell:>12}" for cell in cells))
    print(found.line())
    for note in found.notes:
        print("note:", note, file=sys.stderr)

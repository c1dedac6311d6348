"""`normapps adapt mix` and `adapt merge`: populations from files into a model, or into one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from normapps.adapt.run_options import MergeOptions, MixOptions
from normapps.models.options import MODEL_HELP

from .parameters import with_options

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_ROWS = 5
"""Layers that are printed, those that moved most."""


@with_options(MixOptions)
def mix(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)],
    populations: Annotated[
        list[Path],
        typer.Argument(metavar="POPULATION…", help="Files of `norm stats` or `adapt run`."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Model folder to write.")],
    options: MixOptions,
    as_json: AsJson = False,
) -> None:
    """Mix a model's statistics with those of pictures, by numbers of pictures.

    Several populations count as one data set. Against them the model's own statistics count as
    --prior pictures; with --prior 0 they are replaced.
    """
    from normapps.adapt.populations import mix_populations

    report = mix_populations(model, populations, out, options)
    if as_json:
        facts = dataclasses.asdict(report) | {"folder": str(report.folder)}
        print(json.dumps(facts, indent=2))
        return
    print(report.model)
    print(f"{report.samples} pictures; {report.share:.1%} of the statistics stay the model's own")
    for layer, nats in list(report.moved.items())[:_ROWS]:
        print(f"{layer}: moved by {nats:.3g} nats")
    print(report.folder)


@with_options(MergeOptions)
def merge(
    parts: Annotated[
        list[Path], typer.Argument(metavar="PART…", help="Files of `norm stats --shard i/n`.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Population to write (.safetensors).")],
    options: MergeOptions,
    as_json: AsJson = False,
) -> None:
    """Merge the statistics of parts of a data set into those of the whole."""
    from normapps.adapt.populations import merge_populations

    whole = merge_populations(parts, out, options.overwrite)
    if as_json:
        facts = {"file": str(out), "pictures": whole.samples, "layers": len(whole.layers)}
        print(json.dumps(facts | {"mode": whole.mode}, indent=2))
    else:
        print(f"{whole.samples} pictures in {len(parts)} parts, {len(whole.layers)} layers")
        print(out)

"""What the stages of `gan.py` share: printing, scores of a run, RESULTS.md."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import torch
from results import conditions, write_section

import normapps.models  # noqa: F401  (guard)
from normapps.engine.device import resolve_device
from normapps.gan.compare import Scoring
from normapps.gan.compare_job import make_scoring
from normapps.gan.compare_options import CompareOptions
from normapps.gan.opening import open_generator
from normapps.gan.run import Run
from normapps.gan.sampling import standing_
from normapps.measure.report import shown
from normapps.models.folder import build

REPOSITORY = Path(__file__).resolve().parent.parent
FAKES = 10_000
"""Pictures that are drawn for a score, unless told otherwise."""


def scored(
    run: Run, extractor: str, options: argparse.Namespace
) -> tuple[Scoring, Mapping[str, float], Mapping[str, float]]:
    """Score a run's generator and the same one untrained; return what by, and both scores."""
    recipe = run.options
    chosen = CompareOptions(
        data=recipe.data, config=recipe.config, width=recipe.width, d_width=recipe.d_width,
        d_norms="sn", cond=recipe.cond, ema=recipe.ema, standing=recipe.standing,
        extractor=options.extractor or extractor, fakes=options.fakes or FAKES,
        device=options.device,
    )  # fmt: skip
    scoring = make_scoring(chosen, say)
    return scoring, scoring.score(run.generator()), scoring.score(untrained(run.folder))


def untrained(folder: Path) -> torch.nn.Module:
    """Return the generator that a run began with but for the seed."""
    opened = open_generator(folder)
    generator = build(opened.manifest.builder, opened.manifest.arguments, seed=0).eval()
    standing_(generator)
    return generator


def row(name: str, values: Mapping[str, float]) -> list[str]:
    """Return a row of scores."""
    return [name, *(shown(float(each)) for each in values.values())]


def conditions_of(options: argparse.Namespace) -> str:
    """Say on what machine, with which versions, of which commit and when."""
    return conditions(("normapps", "torch"), str(resolve_device(options.device)))


def publish(name: str, parts: list[str], options: argparse.Namespace) -> None:
    """Print a section, and write it into RESULTS.md unless it is a dry run."""
    body = "\n\n".join(parts)
    print(body)
    if not options.dry_run:
        write_section(name, body)


def say(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)
